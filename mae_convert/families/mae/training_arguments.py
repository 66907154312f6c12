"""What the arguments of a training run, stored in its checkpoint, say about the model.

They are plain data: ``args`` of the original's programs and of those made from them, and what
`mae_convert.families.mae.training_programs` reads of others.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mae_convert.errors import ConfigurationError, Option
from mae_convert.families.mae.position_tables import Grid, TableGrid
from mae_convert.families.mae.training_programs import fields_of

# The original's factory functions, whose names its programs store: width, blocks and heads. Those
# of pre-training have a decoder of this width, depth and number of heads.
FACTORY = re.compile(
    r"(?P<pretrain>mae_)?vit_(?P<size>base|large|huge)_patch\d+(?P<decoder>_dec512d8b)?"
)
SIZES = {"base": (768, 12, 12), "large": (1024, 24, 16), "huge": (1280, 32, 16)}
DECODER = (512, 8, 16)
HEADS = {"num_attention_heads": "", "decoder_num_attention_heads": "decoder_"}
# Where a program states a field by itself: the type, and the names that it may have there.
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
    """The arguments as they are stored."""

    geometry: Mapping[str, Any]
    """Fields that the tensors' shapes give, and ``num_patches``."""

    @classmethod
    def of(cls, stored: Mapping[str, Any], geometry: Mapping[str, Any]) -> "TrainingArguments":
        """Return the arguments of any program that is known, in the form of the original's."""
        return cls({**stored, **fields_of(stored, geometry)}, geometry)

    def value(self, name: str) -> Any:
        """Return the value of a field in the training arguments, or None."""
        if name == "global_pool":
            return self._pooling()
        kinds, names = PLAIN.get(name, ((), ()))
        values = (self.stored.get(argument) for argument in names)
        stated = next((value for value in values if type(value) in kinds), None)
        return self._heads(name) if stated is None and name in HEADS else stated

    def _pooling(self) -> str | None:
        """Return the pooling, for names that do not give it: those without ``fc_norm``.

        Raises:
            ConfigurationError: the original's program was told to pool, which makes ``fc_norm``.
        """
        if self.stored.get("global_pool") is True:
            raise ConfigurationError(
                "the training arguments have global_pool=True, but the tensors lack fc_norm, which "
                "such a model has",
                hint=("specify what the head reads with ", Option("global_pool")),
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
        """Return why the name of the model in the arguments does not give a number of heads.

        That is a sentence where the name is that of another model than the tensors', else None.
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
            f"the training arguments name {match[0]}, which has {part} of width {width} with"
            f" {depth} blocks, but the tensors have width {actual[0]} and {actual[1]} blocks"
        )

    def _factory(self) -> re.Match[str] | None:
        return FACTORY.fullmatch(str(self.stored.get("model", "")))

    def image_size(self, table: TableGrid | None) -> int | tuple[int, int] | None:
        """Return the image size in the arguments, or None.

        Args:
            table: the grid of the fixed position table, or None where that gives none.

        Raises:
            ConfigurationError: the arguments contradict the table, or the tensors' shapes.
        """
        patch = _pair(self.geometry["patch_size"])
        assert patch is not None
        said = self.stored.get("patch_size")
        stated = _pair(said)
        if stated is not None and stated != patch:
            raise _contradicted(f"patch_size is {said}", f"the patches are {_by(patch)}")
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
                where, f"with patches of {_by(patch)} the tensors hold {count} positions"
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
    """Return a size as height and width; None for anything that is not a size.

    Programs store it as a number, as two numbers, or as text: "224", "64,256", "[64, 256]".
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
