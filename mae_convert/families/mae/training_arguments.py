"""Derive configuration fields from the training arguments that are stored in a checkpoint.

The arguments are plain data: ``args`` in facebookresearch/mae and in programs based on it,
``meta.cfg`` or ``meta.config`` in OpenMMLab's programs and EasyCV, and Lightning's hyper-parameters
in solo-learn. Missing arguments and arguments with an unexpected type are ignored.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mae_convert.errors import ConfigurationError, Option
from mae_convert.families.mae.position_tables import Grid, TableGrid

# The name of a factory function, which the original's programs store. SIZES contains the width, the
# number of blocks and the number of heads of the encoders by size; DECODER contains these numbers
# for the decoder of every pre-training model.
FACTORY = re.compile(
    r"(?P<pretrain>mae_)?vit_(?P<size>base|large|huge)_patch\d+(?P<decoder>_dec512d8b)?"
)
SIZES = {"base": (768, 12, 12), "large": (1024, 24, 16), "huge": (1280, 32, 16)}
DECODER = (512, 8, 16)
HEADS = {"num_attention_heads": "", "decoder_num_attention_heads": "decoder_"}
# The types and the possible names of the argument for each field.
PLAIN: Mapping[str, tuple[tuple[type, ...], tuple[str, ...]]] = {
    "mask_ratio": ((float, int), ("mask_ratio",)),
    "norm_pix_loss": ((bool,), ("norm_pix_loss",)),
    "num_attention_heads": ((int,), ("num_attention_heads", "num_heads", "encoder_num_heads")),
    "decoder_num_attention_heads": (
        (int,),
        ("decoder_num_attention_heads", "decoder_num_heads"),
    ),
    "decoder_layer_norm_eps": ((float,), ("decoder_layer_norm_eps",)),
    "image_mean": ((tuple,), ("image_mean",)),
    "image_std": ((tuple,), ("image_std",)),
}
IMAGE_SIZES = ("input_size", "img_size", "image_size")
UNSURE = "image_size"  # in many programs the size to which photographs are scaled before a crop
SIZE_TEXT = re.compile(r"[\[(]?\s*(\d{1,6})\s*(?:[,x]\s*(\d{1,6}))?\s*[\])]?")


@dataclass(frozen=True)
class TrainingArguments:
    """Training arguments, compared with the shapes of the tensors in the same file."""

    stored: Mapping[str, Any]
    """The stored arguments."""

    geometry: Mapping[str, Any]
    """The configuration fields that follow from the shapes of the tensors, and in addition
    ``num_patches``."""

    @classmethod
    def of(cls, stored: Mapping[str, Any], geometry: Mapping[str, Any]) -> "TrainingArguments":
        """Create an instance from the training arguments of any supported program.

        The arguments of other programs are converted to the arguments of facebookresearch/mae.

        Args:
            stored: the training arguments of any supported program.
            geometry: the configuration fields that follow from the shapes of the tensors, and in
                addition ``num_patches``.
        """
        return cls({**stored, **fields_of(stored, geometry)}, geometry)

    def value(self, name: str) -> Any:
        """Return the value that the arguments specify for a configuration field.

        The result is None if the arguments do not specify a value.

        Raises:
            ConfigurationError: the arguments have ``global_pool=True``, and the value of
                "global_pool" is requested.
        """
        if name == "global_pool":
            return self._pooling()
        kinds, names = PLAIN.get(name, ((), ()))
        values = (self.stored.get(argument) for argument in names)
        matching = next((value for value in values if type(value) in kinds), None)
        return self._heads(name) if matching is None and name in HEADS else matching

    def _pooling(self) -> str | None:
        """Return "token" if the arguments have ``global_pool=False``, otherwise None.

        The method is called only for tensors without ``fc_norm``.

        Raises:
            ConfigurationError: the arguments have ``global_pool=True``, which requires ``fc_norm``.
        """
        if self.stored.get("global_pool") is True:
            raise ConfigurationError(
                "the training arguments have global_pool=True, but the tensors lack fc_norm, which "
                "a pooled classifier has",
                hint=("specify the pooling with ", Option("global_pool")),
            )
        return "token" if self.stored.get("global_pool") is False else None

    def _heads(self, name: str) -> int | None:
        match = self._factory()
        if match is None or self.contradiction(name):
            return None
        if name == "num_attention_heads":
            return SIZES[match["size"]][2]
        return DECODER[2] if match["pretrain"] else None

    def contradiction(self, name: str) -> str | None:
        """Return a sentence about how the arguments contradict the tensors' shapes for a field.

        The result is None if the arguments do not contradict the shapes.

        Args:
            name: "num_attention_heads" (of the encoder) or "decoder_num_attention_heads".
        """
        match, prefix = self._factory(), HEADS[name]
        if match is None or (prefix and not match["pretrain"]):
            return None
        width, depth, _ = DECODER if prefix else SIZES[match["size"]]
        actual = tuple(
            self.geometry.get(f"{prefix}{field}") for field in ("hidden_size", "num_hidden_layers")
        )
        if actual == (width, depth):
            return None
        part = "a decoder" if prefix else "an encoder"
        return (
            f"the training arguments specify {match[0]}, which has {part} of width {width} with"
            f" {depth} blocks, but the tensors have width {actual[0]} and {actual[1]} blocks"
        )

    def _factory(self) -> re.Match[str] | None:
        return FACTORY.fullmatch(str(self.stored.get("model", "")))

    def image_size(self, table: TableGrid | None) -> int | tuple[int, int] | None:
        """Return the image size in the arguments; None if they contain no reliable image size.

        Args:
            table: the grid of the fixed position embeddings in the file; None if there are none.

        Raises:
            ConfigurationError: the arguments contradict `table` or the tensors' shapes.
        """
        patch = _pair(self.geometry["patch_size"])
        assert patch is not None
        patch_size = self.stored.get("patch_size")
        pair = _pair(patch_size)
        if pair is not None and pair != patch:
            raise _contradicted(f"patch_size is {patch_size}", f"the patches are {_by(patch)}")
        name = next((name for name in IMAGE_SIZES if _pair(self.stored.get(name))), None)
        size = _pair(self.stored.get(name)) if name else None
        if size is None:
            return None
        count, grid = self.geometry["num_patches"], _grid(size, patch)
        where = f"{name} is {self.stored[name or '']}"
        if grid is None or grid[0] * grid[1] != count:
            if name == UNSURE:
                return None
            raise _contradicted(
                where,
                f"the tensors have position embeddings for {count} patches of size {_by(patch)}",
            )
        if table is not None and table.grid != grid:
            raise _contradicted(
                f"{where}, which is {grid[0]} x {grid[1]} patches",
                f"{table.where} has the values for {table.words}",
            )
        return size[0] if size[0] == size[1] else size


def _contradicted(arguments: str, other: str) -> ConfigurationError:
    return ConfigurationError(
        f"according to the training arguments, {arguments}, but {other}",
        hint=(
            "specify the image size that the model was trained for with ",
            Option("source_image_size", placeholder="HxW"),
        ),
    )


def _grid(size: tuple[int, int], patch: tuple[int, int]) -> Grid | None:
    if size[0] % patch[0] or size[1] % patch[1]:
        return None
    return size[0] // patch[0], size[1] // patch[1]


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _pair(value: Any) -> tuple[int, int] | None:
    """Return a size as height and width, or None if it is not a size.

    Programs store a size as a number, as two numbers, or as text: "224", "64,256", "[64, 256]".
    """
    sides = list(_sides(value))
    if len(sides) not in (1, 2) or not all(side > 0 for side in sides):
        return None
    return sides[0], sides[-1]


def _sides(value: Any) -> Iterator[int]:
    if isinstance(value, str):
        match = SIZE_TEXT.fullmatch(value.strip())
        yield from (int(side) for side in (match.groups() if match else ()) if side)
    elif isinstance(value, (list, tuple)):
        yield from (side if type(side) is int else 0 for side in value[:4])
    elif type(value) is int:
        yield value


Fields = Iterator[tuple[str, Any]]

# The numbers of heads of mmpretrain's VisionTransformer, by the names of its sizes.
ARCHITECTURES = {
    "s": 8, "small": 8, "b": 12, "base": 12, "l": 16, "large": 16, "h": 16, "huge": 16,
    "deit-t": 3, "deit-tiny": 3, "deit-s": 6, "deit-small": 6, "deit-b": 12, "deit-base": 12,
}  # fmt: skip
# Width, blocks and heads of the models of solo-learn, by name.
SOLO = {
    "vit_tiny": (192, 12, 12),
    "vit_small": (384, 12, 12),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_huge": (1280, 32, 16),
}
# In solo-learn, the decoder has PyTorch's default epsilon, and the encoder 1e-6.
SOLO_DECODER_EPS = 1e-5
LARGEST_PIXEL = 255.0


def fields_of(arguments: Mapping[str, Any], geometry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration fields in the training arguments of OpenMMLab and solo-learn.

    Args:
        arguments: the training arguments of a checkpoint.
        geometry: fields that follow from the tensors' shapes.

    Returns:
        The values of the fields by name. ``input_size`` and ``patch_size`` are included with the
        meaning that they have in the arguments of facebookresearch/mae.
    """
    meta = _mapping_at(arguments, "meta")
    settings = _mapping_at(meta, "cfg") or _mapping_at(meta, "config")
    if _mapping_at(settings, "model"):
        return dict(_openmmlab(settings))
    if arguments.get("method") == "mae" and _mapping_at(arguments, "method_kwargs"):
        return dict(_solo(arguments, geometry))
    return {}


def conventions_by_names(names: Collection[str]) -> dict[str, Any]:
    """Return the fields with fixed values in solo-learn, if the tensors have solo-learn's names.

    The result is empty for other names. solo-learn writes its settings to ``args.json`` in the same
    directory, so the checkpoint may not contain them.

    Args:
        names: the stored names of all tensors in the file.
    """
    solo = "backbone.cls_token" in names and "decoder.decoder_pred.weight" in names
    if solo and any(name.startswith("classifier.") for name in names):
        return {"decoder_layer_norm_eps": SOLO_DECODER_EPS}
    return {}


def _openmmlab(settings: Mapping[str, Any]) -> Fields:
    model = _mapping_at(settings, "model")
    backbone, neck, head = (_mapping_at(model, name) for name in ("backbone", "neck", "head"))
    size = backbone.get("arch")
    heads = size.get("num_heads") if isinstance(size, Mapping) else backbone.get("num_heads")
    if isinstance(size, str):
        heads = ARCHITECTURES.get(size.lower())
    yield from _count("num_attention_heads", heads)
    yield from _count("decoder_num_attention_heads", neck.get("decoder_num_heads"))
    for name in ("img_size", "patch_size"):
        if name in backbone:
            yield ("input_size" if name == "img_size" else name), backbone[name]
    for holder, name in ((head, "norm_pix"), (model, "norm_pix_loss")):
        if isinstance(holder.get(name), bool):
            yield "norm_pix_loss", holder[name]
    for holder in (backbone, model):
        if isinstance(holder.get("mask_ratio"), float):
            yield "mask_ratio", holder["mask_ratio"]
    pixels = _mapping_at(model, "data_preprocessor") or _mapping_at(settings, "data_preprocessor")
    for name, field in (("mean", "image_mean"), ("std", "image_std")):
        if values := _numbers(pixels.get(name)):
            yield field, tuple(round(value / LARGEST_PIXEL, 6) for value in values)


def _solo(arguments: Mapping[str, Any], geometry: Mapping[str, Any]) -> Fields:
    backbone, method = _mapping_at(arguments, "backbone"), _mapping_at(arguments, "method_kwargs")
    width, depth, heads = SOLO.get(str(backbone.get("name")), (0, 0, 0))
    if (geometry.get("hidden_size"), geometry.get("num_hidden_layers")) == (width, depth):
        yield "num_attention_heads", heads
    yield from _count("decoder_num_attention_heads", method.get("decoder_num_heads"))
    yield "decoder_layer_norm_eps", SOLO_DECODER_EPS
    for name, kind in (("norm_pix_loss", bool), ("mask_ratio", float)):
        if isinstance(method.get(name), kind):
            yield name, method[name]
    kwargs = _mapping_at(backbone, "kwargs")
    for name, argument in (("img_size", "input_size"), ("patch_size", "patch_size")):
        if name in kwargs:
            yield argument, kwargs[name]


def _count(field: str, value: Any) -> Fields:
    if type(value) is int and value > 0:
        yield field, value


def _numbers(values: Any) -> list[float]:
    if not isinstance(values, (list, tuple)) or not all(type(v) in (int, float) for v in values):
        return []
    return [float(value) for value in values]


def _mapping_at(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    mapping = settings.get(name)
    return mapping if isinstance(mapping, Mapping) else {}
