"""Resolve what tensors cannot tell: each field is taken from a named source, never guessed.

The order is: a flag, a configuration beside or inside the file, the training arguments stored in
the checkpoint, a known preset of the same widths, what the model's family takes for granted, the
layout's own convention. The number of heads has no convention.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mae_convert.canonical import square_grid
from mae_convert.errors import ConfigurationError
from reference_models.configuration import ViTMAEConfig

# (name, hidden size, MLP width, heads): Vision Transformer sizes of the literature. Dosovitskiy et
# al. 2020, table 1 (B, L, H) and Touvron et al. 2020, table 1 (Ti, S).
ENCODER_PRESETS = (
    ("ViT-Ti", 192, 768, 3),
    ("ViT-S", 384, 1536, 6),
    ("ViT-B", 768, 3072, 12),
    ("ViT-L", 1024, 4096, 16),
    ("ViT-H", 1280, 5120, 16),
)
# He et al. 2021, section 3: the default decoder is 512 wide; the published models give it 16 heads.
DECODER_PRESETS = (("MAE decoder", 512, 2048, 16),)
# The original's factory functions: width and heads.
MODEL_SIZES = {"base": (768, 12), "large": (1024, 16), "huge": (1280, 16)}
MODEL_NAME = re.compile(r"(mae_)?vit_(?P<size>base|large|huge)_patch\d+(_dec512d8b)?")

FLAGS = {
    "num_attention_heads": "--num-heads",
    "decoder_num_attention_heads": "--decoder-num-heads",
    "layer_norm_eps": "--layer-norm-eps",
    "norm_pix_loss": "--norm-pix-loss",
    "mask_ratio": "--mask-ratio",
    "image_size": "--source-image-size",
}
# One function under two names.
ACTIVATION_SYNONYMS = {"gelu_pytorch_tanh": "gelu_new", "swish": "silu"}
PREPROCESSING = ("image_mean", "image_std")
CONFIG_FIELDS = tuple(f.name for f in fields(ViTMAEConfig))


@dataclass(frozen=True)
class Evidence:
    """Everything that may tell a field, as found; each mapping may be empty.

    Attributes:
        geometry: fields that the tensors' shapes tell, and ``num_patches``.
        flags: fields that the user gave, by field name.
        stated: the configuration beside or inside the file, and where it stands.
        preprocessor: ``image_mean`` and ``image_std`` as in preprocessor_config.json.
        training_args: arguments of the training run that wrote the checkpoint.
        conventions: what the layout takes for granted, and the layout's name.
        family: what the family of models takes for granted that the checkpoint is known to belong
            to, and the family's name.
        size_hint: the image size of a family that the shapes suggest, for a message.
        fill_only: a flag tells what the file does not state, and does not overrule it.
    """

    geometry: Mapping[str, Any]
    flags: Mapping[str, Any]
    stated: Mapping[str, Any]
    stated_where: str
    preprocessor: Mapping[str, Any]
    training_args: Mapping[str, Any]
    conventions: Mapping[str, Any]
    layout: str
    family: Mapping[str, Any] = field(default_factory=dict)
    family_name: str = ""
    size_hint: str = ""
    fill_only: bool = False


@dataclass(frozen=True)
class Configuration:
    """A complete configuration, and where each field that tensors cannot tell came from.

    ``labels`` are the names of a classifier's classes, or None where nothing names them.
    """

    model: ViTMAEConfig
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    sources: Mapping[str, str]
    labels: tuple[str, ...] | None = None

    def value(self, name: str) -> Any:
        """Return a field of the model or of the preprocessing."""
        return getattr(self, name) if name in PREPROCESSING else getattr(self.model, name)

    def assumed(self) -> dict[str, dict[str, Any]]:
        """Return field → value and source, for every field that tensors do not tell."""
        return {
            name: {"value": self.value(name), "source": source}
            for name, source in self.sources.items()
        }


def untold_fields(task: str) -> tuple[str, ...]:
    """Return the fields that matter for a task and that no tensor tells."""
    common = ("num_attention_heads", "layer_norm_eps", "hidden_act", "image_size")
    masking = {
        "pretrain": ("decoder_num_attention_heads", "mask_ratio", "norm_pix_loss"),
        "encoder": ("mask_ratio",),
        "classify": (),
    }
    return common + masking[task] + PREPROCESSING


def resolve(task: str, evidence: Evidence) -> Configuration:
    """Return the configuration that the evidence gives, with the source of each field.

    Raises:
        ConfigurationError: a field that nothing tells, is impossible, or is contradicted.
    """
    _check_stated(task, evidence)
    values: dict[str, Any] = {k: v for k, v in evidence.geometry.items() if k in CONFIG_FIELDS}
    sources: dict[str, str] = {}
    for name in untold_fields(task):
        values[name], sources[name] = _first(name, evidence)
        _check_flag(name, evidence)
        if name.endswith("num_attention_heads"):
            _check_heads(name, values[name], sources[name], evidence)
    values |= _carried_along(values, evidence.stated)
    channels = evidence.geometry["num_channels"]
    preprocessing = {
        name: _per_channel(name, values.pop(name), channels, sources[name])
        for name in PREPROCESSING
    }
    try:
        model = ViTMAEConfig(**values)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"impossible configuration: {error}") from error
    labels = _labels(evidence) if task == "classify" else None
    return Configuration(model, **preprocessing, sources=sources, labels=labels)


def _labels(evidence: Evidence) -> tuple[str, ...] | None:
    """Return the names of a classifier's classes, if the configuration tells them."""
    named = evidence.stated.get("id2label")
    if named is None:
        return None
    count = evidence.geometry["num_labels"]
    try:
        by_number = {int(number): str(name) for number, name in named.items()}
    except (AttributeError, TypeError, ValueError):
        by_number = {}
    if sorted(by_number) != list(range(count)):
        raise ConfigurationError(
            f"{evidence.stated_where} names {len(by_number)} classes in id2label, but the head has"
            f" {count}; this configuration belongs to other weights"
        )
    return tuple(by_number[number] for number in range(count))


def _per_channel(name: str, value: Any, channels: int, source: str) -> tuple[float, ...]:
    """Return a number for each channel; one alone, as image processors allow, is for all."""
    numbers = value if isinstance(value, (list, tuple)) else (value,) * channels
    if len(numbers) != channels or not all(
        type(number) in (int, float) and math.isfinite(number) for number in numbers
    ):
        raise ConfigurationError(
            f"{name} is {value!r} ({source}), but must be {channels} numbers, one for each channel"
        )
    return tuple(numbers)


def _first(name: str, evidence: Evidence) -> tuple[Any, str]:
    for value, source in _candidates(name, evidence):
        if value is not None:
            return value, source
    if name == "image_size":
        raise ConfigurationError(
            f"{evidence.geometry['num_patches']} patches are no square grid; say the image's size"
            f" with --source-image-size HxW{evidence.size_hint}"
        )
    width_field = "decoder_hidden_size" if name.startswith("decoder") else "hidden_size"
    width = evidence.geometry[width_field]
    possible = [str(n) for n in range(1, width + 1) if width % n == 0 and width // n >= 4]
    raise ConfigurationError(
        f"nothing in the file tells the number of attention heads ({width_field} {width} allows"
        f" {', '.join(possible)}); say it with {FLAGS[name]}"
    )


def _candidates(name: str, evidence: Evidence) -> Iterator[tuple[Any, str]]:
    if name != "image_size":
        yield evidence.geometry.get(name), "the tensors' shapes"
    told = [
        (evidence.flags.get(name), f"flag {FLAGS.get(name, '')}"),
        (_stated(name, evidence), evidence.stated_where),
    ]
    yield from reversed(told) if evidence.fill_only else told
    if name in PREPROCESSING:
        yield evidence.preprocessor.get(name), "preprocessor_config.json"
        yield evidence.family.get(name), f"convention of {evidence.family_name}"
        channels = evidence.geometry["num_channels"]
        convention = evidence.conventions.get(name)
        if convention is not None and len(convention) != channels:
            # Other sensors: no convention of RGB pictures applies; say so as identity.
            yield (0.0 if name == "image_mean" else 1.0,) * channels, f"{channels} channels: none"
        yield convention, f"convention of the {evidence.layout} layout"
        return
    yield _from_training_args(name, evidence), "training arguments"
    yield from _presets(name, evidence.geometry)
    yield evidence.family.get(name), f"convention of {evidence.family_name}"
    if name == "image_size":
        yield _square_image(evidence.geometry), "square grid"
    yield evidence.conventions.get(name), f"convention of the {evidence.layout} layout"


def _stated(name: str, evidence: Evidence) -> Any:
    value = evidence.stated.get(name)
    if name in ("image_size", *PREPROCESSING) and isinstance(value, list):
        return tuple(value)
    return value


def _from_training_args(name: str, evidence: Evidence) -> Any:
    args, geometry = evidence.training_args, evidence.geometry
    if name in ("num_attention_heads", "decoder_num_attention_heads"):
        match = MODEL_NAME.fullmatch(str(args.get("model", "")))
        # The name of a preset tells the heads only of a model that has the preset's width.
        if not match or geometry["hidden_size"] != MODEL_SIZES[match["size"]][0]:
            return None
        if name == "num_attention_heads":
            return MODEL_SIZES[match["size"]][1]
        preset = DECODER_PRESETS[0]
        return preset[3] if geometry.get("decoder_hidden_size") == preset[1] else None
    if name in ("mask_ratio", "norm_pix_loss"):
        return args.get(name)
    return None


def _presets(name: str, geometry: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    presets, prefix = {
        "num_attention_heads": (ENCODER_PRESETS, ""),
        "decoder_num_attention_heads": (DECODER_PRESETS, "decoder_"),
    }.get(name, ((), ""))
    widths = (geometry.get(f"{prefix}hidden_size"), geometry.get(f"{prefix}intermediate_size"))
    for preset, hidden, intermediate, heads in presets:
        if widths == (hidden, intermediate):
            yield heads, f"preset {preset} (width {hidden}, MLP {intermediate})"


def _square_image(geometry: Mapping[str, Any]) -> int | tuple[int, int] | None:
    grid = square_grid(geometry["num_patches"])
    if grid is None:
        return None
    patch = geometry["patch_size"]
    height, width = (patch, patch) if isinstance(patch, int) else patch
    size = (grid[0] * height, grid[1] * width)
    return size[0] if size[0] == size[1] else size


def _check_flag(name: str, evidence: Evidence) -> None:
    flag = evidence.flags.get(name)
    told = evidence.geometry.get(name)
    if None not in (flag, told) and flag != told:
        raise ConfigurationError(
            f"{FLAGS[name]} {flag} contradicts the tensors' shapes, which say {told}; leave it out"
        )


def check_flags_taken(flags: Mapping[str, Any], opened: Mapping[str, Configuration]) -> None:
    """Check that each flag tells something of one of the files that it may be about.

    Args:
        flags: field → value, as the user gave them.
        opened: the configurations by the names of their files, each opened to be filled only.

    Raises:
        ConfigurationError: all of them state something else.
    """
    for name, flag in flags.items():
        others = {
            file: configuration.value(name)
            for file, configuration in opened.items()
            if name in configuration.sources
        }
        if others and all(_square(flag) != _square(value) for value in others.values()):
            said = " and ".join(f"{file}, which says {value}" for file, value in others.items())
            raise ConfigurationError(f"{FLAGS[name]} {flag} contradicts {said}; leave the flag out")


def _square(value: Any) -> Any:
    """Return a size as its one number where it is square; anything else as it is."""
    sides = tuple(value) if isinstance(value, (list, tuple)) else ()
    return sides[0] if len(sides) == 2 and sides[0] == sides[1] else value


def _check_stated(task: str, evidence: Evidence) -> None:
    """Refuse a configuration that the tensors contradict."""
    for name, told in evidence.geometry.items():
        stated = evidence.stated.get(name)
        stated = tuple(stated) if isinstance(stated, list) else stated
        if isinstance(stated, tuple) and stated and stated.count(stated[0]) == len(stated):
            stated = stated[0]
        if name == "num_labels" or (task != "pretrain" and name.startswith("decoder_")):
            continue
        if stated is not None and stated != told:
            raise ConfigurationError(
                f"{evidence.stated_where} says {name} is {stated}, but the tensors say {told};"
                " this configuration belongs to other weights"
            )
    size = evidence.flags.get("image_size") or _stated("image_size", evidence)
    if size is not None:
        _check_image_size(size, evidence)


def _check_image_size(size: Any, evidence: Evidence) -> None:
    patch, count = evidence.geometry["patch_size"], evidence.geometry["num_patches"]
    where = "--source-image-size" if evidence.flags.get("image_size") else evidence.stated_where
    try:
        height, width = (size, size) if isinstance(size, int) else size
        rows, columns = (patch, patch) if isinstance(patch, int) else patch
        fits = height % rows == width % columns == 0
        fits = fits and (height // rows) * (width // columns) == count
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ConfigurationError(
            f"{where} says the image size is {size}, but with patches of {patch} the tensors hold"
            f" {count} positions; say the size that they were made for with --source-image-size"
        )


def _carried_along(values: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return stated fields that neither tensors nor untold fields gave (dropout and the like)."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in stated.items()
        if name in CONFIG_FIELDS and name not in values and value is not None
    }


def _check_heads(name: str, heads: Any, source: str, evidence: Evidence) -> None:
    width_field = name.replace("num_attention_heads", "hidden_size")
    width = evidence.geometry[width_field]
    if type(heads) is not int:
        raise ConfigurationError(f"{name} is {heads!r} ({source}), but must be a whole number")
    if heads < 1 or width % heads:
        raise ConfigurationError(
            f"{heads} attention heads ({source}) do not divide {width_field} {width}; say the right"
            f" number with {FLAGS[name]}"
        )
