"""The targets of a conversion: their names, file formats, and how tensors are stored in files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mae_convert.checkpoint.prefixes import is_readable
from mae_convert.errors import Option, OutputError
from mae_convert.families.checkpoint_options import ByteSize
from mae_convert.formats.registry import FILE_SUFFIXES, PTH, SUFFIX_FORMATS
from mae_convert.layouts.layout import Layout

BIN_NAME = "pytorch_model.bin"


def byte_count(size: int | str) -> int:
    """Return the number of bytes for a size such as 500MB, 2GB or 2GiB.

    Raises:
        OutputError: the text is not a size.
    """
    if type(size) is int and size > 0:
        return size
    try:
        return ByteSize().read(str(size))
    except ValueError as error:
        raise OutputError(str(error), option="max_shard_size") from error


@dataclass(frozen=True)
class Packing:
    """Options for how tensors are stored in files."""

    prefix: str = ""
    """A prefix for the names of all tensors, such as DistributedDataParallel's ``module.``; only
    for a target that is a single file."""

    pickled: bool = False
    """Write a directory's weights as ``pytorch_model.bin`` instead of ``model.safetensors``."""

    max_shard_size: int | None = None
    """The maximum number of bytes of each shard of a directory's weights; None for weights in a
    single file."""

    def check(self, layout: Layout, *, is_directory: bool) -> None:
        """Refuse options that the target does not support.

        Args:
            layout: the layout of the target.
            is_directory: whether the target is a directory.

        Raises:
            OutputError: an option does not apply to the target, or the prefix would not be
                recognised when the target is read.
        """
        if self.prefix and is_directory:
            raise OutputError(
                f"{layout.name} is written as a directory, whose readers do not accept prefixes",
                hint=("leave ", Option("prefix"), " out"),
            )
        if self.prefix and PTH not in layout.containers:
            raise OutputError(
                f"a prefix can only be added to PyTorch parameter names, and {layout.name} does "
                "not use them",
                hint=("leave ", Option("prefix"), " out"),
            )
        if self.prefix and not is_readable(self.prefix):
            raise OutputError(
                f"the prefix {self.prefix!r} would not be recognised when the file is read",
                hint="it must be one or more names, each followed by a dot, for example module.",
            )
        if (self.pickled or self.max_shard_size is not None) and not is_directory:
            raise OutputError(
                *(Option("bin", True), " and ", Option("max_shard_size")),
                f" are for model directories, and {layout.name} is written here as one file",
                hint="leave them out",
            )
        if self.pickled and PTH not in layout.containers:
            raise OutputError(
                f"{layout.name} cannot be written as {BIN_NAME}",
                hint=("leave ", Option("bin", True), " out"),
            )


def is_directory(layout: Layout, target: Path) -> bool:
    """Return whether a layout is written to this target as a model directory."""
    return layout.weights_name is not None and not (layout.also_file and _suffix(target))


def _suffix(target: Path) -> str | None:
    """Return the suffix of the target's name if it is the suffix of a file format, else None."""
    return next((s for s in SUFFIX_FORMATS if target.name.endswith(s)), None)


def container_kind(layout: Layout, target: Path) -> str:
    """Return the name of the file format for a target.

    Raises:
        OutputError: the layout cannot be written to a target with this name.
    """
    suffixes = [s for s, k in SUFFIX_FORMATS.items() if k in layout.containers]
    as_file = f"a file whose name ends in {' or '.join(suffixes)}"
    if is_directory(layout, target):
        if target.name.lower().endswith(FILE_SUFFIXES):
            forms = f"a directory or as {as_file}" if layout.also_file else "a directory"
            raise OutputError(
                f"{layout.name} is written as {forms}, and {target.name} has the suffix of another "
                "file format",
                hint="choose another name",
            )
        return layout.containers[0]
    kind = SUFFIX_FORMATS.get(_suffix(target) or "")
    if kind not in layout.containers:
        raise OutputError(
            f"{layout.name} is written as {as_file}, not as {target.name or target}",
            hint="choose another name",
        )
    return kind


def parse_targets(target: Path, texts: Sequence[str]) -> list[tuple[str, Path]]:
    """Return a pair (layout, path) for each value of the option ``--to``.

    A value is ``LAYOUT=PATH``, or ``LAYOUT`` for the path `target`. Exactly one value must be
    without a path.

    Raises:
        OutputError: none or several values are without a path, or two paths are equal.
    """
    parsed = []
    for text in texts:
        layout, equals, path = text.partition("=")
        parsed.append((layout, Path(path) if equals else target))
    plain = sum("=" not in text for text in texts)
    if plain != 1:
        raise OutputError(
            *(f"{plain} of the ", Option("to"), " options have no path"),
            hint=(
                *("write one as ", Option("to", placeholder="LAYOUT"), f", for {target}, and"),
                *(" each further layout as ", Option("to", placeholder="LAYOUT=PATH")),
            ),
        )
    if len({path.resolve() for _, path in parsed}) < len(parsed):
        raise OutputError(
            "two ",
            Option("to"),
            " options specify the same path",
            hint="specify a different path for each",
        )
    return parsed
