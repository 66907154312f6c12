"""The configuration of VideoMAE, with the field names of transformers' ``config.json``."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from reference_models.configuration.base import (
    BlockConfig,
    VideoConfiguration,
    check_positive,
    is_number,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class VideoMAEConfig(VideoConfiguration):
    """Configuration of a VideoMAE or of a classifier fine-tuned from one.

    Fields that also exist in ``transformers.VideoMAEConfig`` have the same meaning there.
    For fields that are not described here, see `ViTMAEConfig` and `VideoConfiguration`. The
    defaults are the values of the ViT-B in Tong et al. 2022 (arXiv:2203.12602) and of the decoder
    that it was trained with; ``layer_norm_eps`` is 1e-6 as in the authors' code, not 1e-12 as in
    transformers.

    Attributes:
        qkv_bias: whether the query and value projections have biases; the key projection never has
            a bias.
        use_mean_pooling: whether a classifier's head reads the mean of all tokens, normalized by
            ``fc_norm``, instead of the first token after the encoder's final norm. An encoder has a
            final norm only if this field is false; the encoder of a pre-training model always has a
            final norm.
        layer_scale_init_value: initial value of ``gamma_1`` and ``gamma_2``, which scale the output
            of attention and MLP for each channel; 0 if the model has no such parameters.
        final_layer_norm_eps: epsilon of the decoder's final norm and of ``fc_norm``; None if it is
            the same as in the other norms. In transformers, it is 1e-5 for every configuration.
        image_mean: mean of each channel, which was subtracted from the pixels; None for the mean
            of ImageNet or, if there are not three channels, 0. The loss is computed after this
            normalization has been undone.
        image_std: standard deviation of each channel, by which the pixels were divided; None for
            the values of ImageNet or, if there are not three channels, 1.
    """

    num_channels: int = 3
    mask_ratio: float = 0.9
    norm_pix_loss: bool = True
    decoder_num_attention_heads: int = 6
    decoder_hidden_size: int = 384
    decoder_num_hidden_layers: int = 4
    decoder_intermediate_size: int = 1536
    use_mean_pooling: bool = True
    layer_scale_init_value: float = 0.0
    final_layer_norm_eps: float | None = None
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    num_labels: int = 400

    def _check(self) -> None:
        super()._check()
        if self.final_layer_norm_eps is not None:
            check_positive(self, ("final_layer_norm_eps",))
        value = self.layer_scale_init_value
        if not (is_number(value) and 0 <= value < float("inf")):
            raise ValueError(
                f"layer_scale_init_value must be 0 or a positive number, not {value!r}"
            )
        for name in ("image_mean", "image_std"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, self._of_channels(name))

    def _of_channels(self, name: str) -> tuple[float, ...]:
        values = getattr(self, name)
        if not (isinstance(values, Sequence) and all(map(is_number, values))):
            raise ValueError(f"{name} must be a list of numbers, not {values!r}")
        if len(values) != self.num_channels or (name == "image_std" and min(values) <= 0):
            raise ValueError(
                f"{name} must have a {'positive ' * (name == 'image_std')}number for each of the"
                f" {self.num_channels} channels, not {list(values)!r}"
            )
        return tuple(map(float, values))

    @property
    def pixel_mean(self) -> tuple[float, ...]:
        """Mean of each channel, which was subtracted from the pixels."""
        if self.image_mean is not None:
            return self.image_mean
        return IMAGENET_MEAN if self.num_channels == 3 else (0.0,) * self.num_channels

    @property
    def pixel_std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, by which the pixels were divided."""
        if self.image_std is not None:
            return self.image_std
        return IMAGENET_STD if self.num_channels == 3 else (1.0,) * self.num_channels

    @property
    def num_kept(self) -> int:
        """Number of visible patches.

        At each time step, ``int(mask_ratio * rows * columns)`` patches are removed.
        """
        time, rows, columns = self.grid_shape
        return time * (rows * columns - int(self.mask_ratio * rows * columns))

    @property
    def decoder_norm_eps(self) -> float:
        """Epsilon of the decoder's final norm."""
        return self.decoder_eps if self.final_layer_norm_eps is None else self.final_layer_norm_eps

    @property
    def fc_norm_eps(self) -> float:
        """Epsilon of the norm after mean pooling."""
        eps = self.final_layer_norm_eps
        return self.layer_norm_eps if eps is None else eps

    def _block(self, prefix: str, eps: float) -> BlockConfig:
        return replace(
            super()._block(prefix, eps), key_bias=False, layer_scale=self.layer_scale_init_value
        )
