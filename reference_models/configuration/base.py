"""Fields that the configurations of all model families share, and checks of their values."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any, Self

Size = int | tuple[int, int]
ACTIVATIONS = (
    "gelu",  # exact, with the error function; the original uses it
    "gelu_new",  # the tanh approximation, which has two names
    "gelu_pytorch_tanh",
    "quick_gelu",  # x * sigmoid(1.702 x)
    "relu",
    "silu",  # x * sigmoid(x), which has two names
    "swish",
)


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """The configuration of a transformer block, derived from the configuration of a model."""

    width: int
    """Width of the tokens, D."""

    heads: int
    """Number of attention heads; divides ``width``."""

    hidden: int
    """Hidden width of the MLP."""

    eps: float
    """Added to the variance in the layer normalizations."""

    act: str = "gelu"
    """Activation of the MLP, one of ``ACTIVATIONS``."""

    qkv_bias: bool = True
    """Whether the query, key and value projections have biases."""

    key_bias: bool = True
    """Whether the key projection has a bias; it never has a bias if ``qkv_bias`` is false."""

    layer_scale: float = 0.0
    """Initial value of the trainable factors that scale each channel of the outputs of attention
    and MLP; 0 if there are no such factors."""

    dropout: float = 0.0
    """Dropout probability after attention and MLP."""

    attention_dropout: float = 0.0
    """Dropout probability for the attention probabilities."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Base class of configurations, with the fields that all families have.

    The fields are described in `ViTMAEConfig`.

    Raises:
        ValueError: a field is invalid, alone or in combination with others.
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

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size"):
            # The only place where a frozen field is set: [224, 224], (224, 224) and 224 are equal.
            object.__setattr__(self, name, as_size(name, getattr(self, name)))
        self._check()

    def _check(self) -> None:
        check_counts(self, (field.name for field in fields(self) if field.type is int))
        check_choice(self, "hidden_act", ACTIVATIONS)
        check_flags(self, (field.name for field in fields(self) if field.type is bool))
        probabilities = ("hidden_dropout_prob", "attention_probs_dropout_prob", "mask_ratio")
        check_fractions(self, probabilities)
        check_positive(self, ("layer_norm_eps", "initializer_range"))
        if self.decoder_layer_norm_eps is not None:
            check_positive(self, ("decoder_layer_norm_eps",))
        check_heads(self)
        check_patches(self.image_hw, self.patch_hw)

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
        """Epsilon of the decoder's layer normalizations."""
        eps = self.decoder_layer_norm_eps
        return self.layer_norm_eps if eps is None else eps

    @property
    def encoder_block(self) -> BlockConfig:
        """The configuration of a block of the encoder."""
        return self._block("", self.layer_norm_eps)

    @property
    def decoder_block(self) -> BlockConfig:
        """The configuration of a block of the decoder."""
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
    def grid_hw(self) -> tuple[int, int]:
        """Number of rows and of columns of patches in an image."""
        (height, width), (patch_height, patch_width) = self.image_hw, self.patch_hw
        return height // patch_height, width // patch_width

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Channels, height and width of an image."""
        return (self.num_channels, *self.image_hw)

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Height and width of a patch in pixels."""
        return self.patch_hw

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Number of patches along each axis."""
        return self.grid_hw

    @property
    def num_patches(self) -> int:
        """Number of patches in an image, L."""
        return prod(self.grid_shape)

    @property
    def patch_dim(self) -> int:
        """Number of values in a patch, over all channels."""
        return prod(self.patch_shape) * self.num_channels

    @property
    def num_kept(self) -> int:
        """Number of visible patches: num_patches (1 - mask_ratio).

        The number is rounded down, as in the authors' code.
        """
        return int(self.num_patches * (1 - self.mask_ratio))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data that can be written as JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Create a configuration from a mapping; names that are not fields are ignored.

        Raises:
            ValueError: a field is invalid.
        """
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in names})


@dataclass(frozen=True)
class PatchGeometry:
    """Shapes of a prediction and of its patches, which may differ from the shapes of the input."""

    pixel_shape: tuple[int, ...]
    """The shape of the prediction: channels, [frames,] height and width."""

    patch_shape: tuple[int, ...]
    """[frames,] height and width of a patch."""

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Number of patches along each axis."""
        axes = zip(self.pixel_shape[1:], self.patch_shape, strict=True)
        return tuple(pixels // patch for pixels, patch in axes)

    @property
    def num_patches(self) -> int:
        """Number of patches in an image or video, L."""
        return prod(self.grid_shape)

    @property
    def patch_dim(self) -> int:
        """Number of values in a patch, over all channels."""
        return prod(self.patch_shape) * self.pixel_shape[0]


@dataclass(frozen=True, kw_only=True)
class VideoConfiguration(Configuration):
    """Base class of the configurations of video models, whose inputs are (N, C, T, H, W)."""

    num_frames: int = 16
    """Number of frames in a video, T."""

    tubelet_size: int = 2
    """Number of frames in a patch; divides ``num_frames``."""

    def _check(self) -> None:
        super()._check()
        if self.num_frames % self.tubelet_size:
            raise ValueError(
                f"tubelet_size must divide num_frames; {self.tubelet_size} does not divide"
                f" {self.num_frames}"
            )

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Channels, frames, height and width of a video."""
        return (self.num_channels, self.num_frames, *self.image_hw)

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Frames, height and width of a patch."""
        return (self.tubelet_size, *self.patch_hw)

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Number of patches along time, height and width."""
        return (self.num_frames // self.tubelet_size, *self.grid_hw)


def pair(size: Size) -> tuple[int, int]:
    """Return a size as (height, width)."""
    return (size, size) if isinstance(size, int) else size


def as_size(name: str, value: int | Sequence[int]) -> Size:
    """Return a size as an integer if height and width are equal, else as (height, width).

    Raises:
        ValueError: the value is not a size.
    """
    sides = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    if len(sides) != 2 or not all(is_count(side) for side in sides):
        raise ValueError(
            f"{name} must be a positive integer or a pair (height, width) of positive "
            f"integers, not {value!r}"
        )
    height, width = sides
    return height if height == width else (height, width)


def is_count(value: object) -> bool:
    """Return whether a value is a positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: object) -> bool:
    """Return whether a value is a real number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_counts(config: Any, names: Iterable[str]) -> None:
    """Check that fields are positive integers; raise ValueError otherwise."""
    for name in names:
        if not is_count(getattr(config, name)):
            raise ValueError(f"{name} must be a positive integer, not {getattr(config, name)!r}")


def check_choice(config: Any, name: str, choices: Sequence[str]) -> None:
    """Check that a field has one of the allowed values; raise ValueError otherwise."""
    value = getattr(config, name)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def check_flags(config: Any, names: Iterable[str]) -> None:
    """Check that fields are true or false; raise ValueError otherwise."""
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name} must be true or false, not {getattr(config, name)!r}")


def check_fractions(config: Any, names: Iterable[str]) -> None:
    """Check that fields are at least 0 and less than 1; raise ValueError otherwise."""
    for name in names:
        value = getattr(config, name)
        if not (is_number(value) and 0 <= value < 1):
            raise ValueError(f"{name} must be at least 0 and less than 1, not {value!r}")


def check_positive(config: Any, names: Iterable[str]) -> None:
    """Check that fields are finite positive numbers; raise ValueError otherwise."""
    for name in names:
        value = getattr(config, name)
        if not (is_number(value) and 0 < value < float("inf")):
            raise ValueError(f"{name} must be a positive number, not {value!r}")


def check_heads(config: Any, prefixes: Iterable[str] = ("", "decoder_")) -> None:
    """Check that the numbers of heads divide the widths; raise ValueError otherwise."""
    for prefix in prefixes:
        width = getattr(config, f"{prefix}hidden_size")
        heads = getattr(config, f"{prefix}num_attention_heads")
        if width % heads:
            raise ValueError(
                f"{prefix}num_attention_heads must divide {prefix}hidden_size;"
                f" {heads} does not divide {width}"
            )


def check_patches(image_hw: tuple[int, int], patch_hw: tuple[int, int]) -> None:
    """Check that the patch size divides the image size; raise ValueError otherwise."""
    for side, image, patch in zip(("height", "width"), image_hw, patch_hw, strict=True):
        if image % patch:
            raise ValueError(
                f"patch_size must divide image_size; the {side} of a patch, {patch}, does not"
                f" divide the {side} of the image, {image}"
            )
