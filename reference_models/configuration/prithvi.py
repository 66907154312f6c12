"""The configuration of Prithvi-EO, a masked autoencoder for time series of satellite images."""

from dataclasses import dataclass

from reference_models.configuration.base import VideoConfiguration

COORDINATES = ("time", "location")


@dataclass(frozen=True, kw_only=True)
class PrithviConfig(VideoConfiguration):
    """Configuration of a Prithvi-EO model; "TL" models also embed times and locations.

    The model may be of version 1 or 2. For fields that are not described here, see `ViTMAEConfig`
    and `VideoConfiguration`. Fields are named as in transformers; fields that transformers does not
    have are named as in the authors' code. The defaults are the values of Prithvi-EO-2.0-300M
    (Szwarcman et al. 2024, arXiv:2412.02732).

    Attributes:
        layer_norm_eps: added to the variance in every layer normalization. The default is 1e-6,
            with which the published models were trained; the authors' library has used 1e-5 since
            December 2024.
        coords_encoding: the coordinates that are embedded: "time", "location", both or neither.
        coords_scale_learn: whether the factors that multiply the coordinate embeddings are trained.
    """

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    num_channels: int = 6
    num_frames: int = 4
    tubelet_size: int = 1
    coords_encoding: tuple[str, ...] = ()
    coords_scale_learn: bool = False

    def _check(self) -> None:
        super()._check()
        value = self.coords_encoding
        if not (isinstance(value, (list, tuple)) and set(value) <= set(COORDINATES)):
            raise ValueError(
                "coords_encoding must be a list with no items other than"
                f" {' and '.join(COORDINATES)}, not {value!r}"
            )
        object.__setattr__(self, "coords_encoding", tuple(n for n in COORDINATES if n in value))
        for name in ("hidden_size", "decoder_hidden_size"):
            if value and getattr(self, name) % 4:
                raise ValueError(
                    f"with coords_encoding, {name} must be a multiple of 4, not"
                    f" {getattr(self, name)}"
                )

    @property
    def encodes_time(self) -> bool:
        """Whether the model embeds the acquisition times of the frames."""
        return "time" in self.coords_encoding

    @property
    def encodes_location(self) -> bool:
        """Whether the model embeds the location of the frames."""
        return "location" in self.coords_encoding
