"""The configuration of the image MAE, with the field names of transformers' ``config.json``."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any

from reference_models.configuration import checks
from reference_models.configuration.block import ACTIVATIONS, BlockConfig
from reference_models.configuration.checks import Size, as_size, pair

POOLINGS = ("token", "avg")


@dataclass(frozen=True, kw_only=True)
class ViTMAEConfig:
    """Configuration of a masked autoencoder or of a classifier fine-tuned from one.

    Names and meaning are those of ``transformers.ViTMAEConfig``, and the defaults are the ViT-B of
    He et al. 2021 (arXiv:2111.06377, table 3 and appendix A), with one difference to transformers:
    ``layer_norm_eps`` is 1e-6, which is what the original trains with; the class in transformers
    defaults to 1e-12.

    Attributes:
        hidden_size: width of the encoder.
        num_hidden_layers: blocks in the encoder.
        num_attention_heads: heads of the encoder; divides ``hidden_size``.
        intermediate_size: hidden width of the encoder's MLPs.
        hidden_act: activation of the MLPs, one of ``ACTIVATIONS``.
        hidden_dropout_prob: dropout after attention and MLP (and, in a classifier, the embedding).
        attention_probs_dropout_prob: dropout on attention probabilities.
        initializer_range: standard deviation of freshly initialised tokens.
        layer_norm_eps: added to the variance in every layer normalisation.
        decoder_layer_norm_eps: the same in the decoder; None where it is ``layer_norm_eps`` there
            too.
        image_size: side of a square image or (height, width), in pixels.
        patch_size: side of a square patch or (height, width); divides ``image_size``.
        num_channels: channels of an image.
        qkv_bias: whether the query, key and value projections have biases.
        decoder_num_attention_heads: heads of the decoder; divides ``decoder_hidden_size``.
        decoder_hidden_size: width of the decoder.
        decoder_num_hidden_layers: blocks in the decoder.
        decoder_intermediate_size: hidden width of the decoder's MLPs.
        mask_ratio: share of patches that the encoder does not see, in [0, 1).
        norm_pix_loss: whether the decoder predicts pixels normalised patch by patch.
        global_pool: what a classifier reads: the class "token" after the final norm, or the "avg"
            of the patch tokens.
        fc_norm: whether that average is normalised (None or True, as the original fine-tunes), or
            the tokens before it (False), as in timm. Nothing for the class token.
        num_labels: classes of a classifier.

    Raises:
        ValueError: a field is impossible by itself or together with another.
    """

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: Size = 224
    patch_size: Size = 16
    num_channels: int = 3
    qkv_bias: bool = True
    decoder_num_attention_heads: int = 16
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_intermediate_size: int = 2048
    mask_ratio: float = 0.75
    norm_pix_loss: bool = False
    decoder_layer_norm_eps: float | None = None
    global_pool: str = "token"
    fc_norm: bool | None = None
    num_labels: int = 1000

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size"):
            # The one place where a frozen field is set: [224, 224], (224, 224) and 224 are equal.
            object.__setattr__(self, name, as_size(name, getattr(self, name)))
        _check(self)

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return pair(self.image_size)

    @property
    def patch_hw(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return pair(self.patch_size)

    @property
    def decoder_eps(self) -> float:
        """Epsilon of the decoder's layer normalisations."""
        eps = self.decoder_layer_norm_eps
        return self.layer_norm_eps if eps is None else eps

    @property
    def normalises_mean(self) -> bool:
        """Whether a classifier normalises the mean of its patches, and not its tokens."""
        return self.global_pool == "avg" and self.fc_norm is not False

    @property
    def encoder_block(self) -> BlockConfig:
        """Sizes of a block of the encoder."""
        return self._block("", self.layer_norm_eps)

    @property
    def decoder_block(self) -> BlockConfig:
        """Sizes of a block of the decoder."""
        return self._block("decoder_", self.decoder_eps)

    def _block(self, prefix: str, eps: float) -> BlockConfig:
        return BlockConfig(
            width=getattr(self, f"{prefix}hidden_size"),
            heads=getattr(self, f"{prefix}num_attention_heads"),
            hidden=getattr(self, f"{prefix}intermediate_size"),
            eps=eps,
            act=self.hidden_act,
            qkv_bias=self.qkv_bias,
            dropout=self.hidden_dropout_prob,
            attention_dropout=self.attention_probs_dropout_prob,
        )

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return (self.num_channels, *self.image_hw)

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Height and width of a patch in pixels, under the name that all families have."""
        return self.patch_hw

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of patches in an image, under the name that all families have."""
        return self.grid_hw

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Rows and columns of patches in an image."""
        return (
            self.image_hw[0] // self.patch_hw[0],
            self.image_hw[1] // self.patch_hw[1],
        )

    @property
    def num_patches(self) -> int:
        """Patches in an image, L."""
        return prod(self.grid_hw)

    @property
    def patch_dim(self) -> int:
        """Numbers in a patch: height x width x channels."""
        return prod(self.patch_hw) * self.num_channels

    @property
    def num_kept(self) -> int:
        """Patches that the encoder sees: L (1 - mask_ratio), rounded down as the original does."""
        return int(self.num_patches * (1 - self.mask_ratio))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data that JSON can hold."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ViTMAEConfig":
        """Build a configuration from a mapping; names that are not fields are ignored.

        Raises:
            ValueError: a field is impossible.
        """
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def _check(config: ViTMAEConfig) -> None:
    checks.check_counts(config, (field.name for field in fields(config) if field.type is int))
    checks.check_choice(config, "hidden_act", ACTIVATIONS)
    checks.check_choice(config, "global_pool", POOLINGS)
    if not (config.fc_norm is None or isinstance(config.fc_norm, bool)):
        raise ValueError(f"fc_norm must be true, false or null, not {config.fc_norm!r}")
    checks.check_flags(config, ("qkv_bias", "norm_pix_loss"))
    probabilities = ("hidden_dropout_prob", "attention_probs_dropout_prob", "mask_ratio")
    checks.check_fractions(config, probabilities)
    checks.check_positive(config, ("layer_norm_eps", "initializer_range"))
    if config.decoder_layer_norm_eps is not None:
        checks.check_positive(config, ("decoder_layer_norm_eps",))
    checks.check_heads(config)
    checks.check_patches(config.image_hw, config.patch_hw)
