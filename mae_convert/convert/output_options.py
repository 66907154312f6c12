"""Options for how the tensors of a conversion are stored in files; none changes a tensor."""

from dataclasses import dataclass

from mae_convert.checkpoint.prefixes import is_readable
from mae_convert.errors import Option, OutputError
from mae_convert.families.options import ByteSize
from mae_convert.formats.registry import PTH
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
    """Options that change how tensors are stored."""

    prefix: str = ""
    """A prefix for every name, such as DistributedDataParallel's ``module.``; for a single file."""

    pickled: bool = False
    """Write a directory's weights as ``pytorch_model.bin``."""

    max_shard_size: int | None = None
    """The maximum number of bytes of each shard of a directory's weights."""

    def check(self, layout: Layout, *, is_directory: bool) -> None:
        """Refuse options that the target does not support.

        Raises:
            OutputError: an option applies to other targets, or the prefix would not be recognised.
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
                f"{layout.name} has no form as {BIN_NAME}",
                hint=("leave ", Option("bin", True), " out"),
            )
