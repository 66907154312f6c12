"""How the tensors of a conversion are put into files. Nothing here changes a tensor."""

import re
from dataclasses import dataclass

from mae_convert.checkpoint.prefixes import is_readable
from mae_convert.errors import OutputError
from mae_convert.layouts.layout import Layout

BIN = "pytorch_model.bin"
BYTES = re.compile(r"([1-9][0-9]{0,14})([KMGT]?)(i?)B", re.IGNORECASE)


def byte_count(size: int | str) -> int:
    """Return a number of bytes, which may be written as 500MB, 2GB or 2GiB.

    Raises:
        OutputError: it is no such size.
    """
    if type(size) is int and size > 0:
        return size
    match = BYTES.fullmatch(size) if isinstance(size, str) else None
    if match is None:
        raise OutputError(f"{size!r} is no size; write 500MB or 2GB")
    power = " KMGT".index(match[2].upper() or " ")
    return int(match[1]) * (1024 if match[3] else 1000) ** power


@dataclass(frozen=True)
class Packing:
    """What is asked for besides the layout's own way.

    Attributes:
        prefix: put before every name, as ``module.`` of DistributedDataParallel; in a single file.
        pickled: write a directory's weights as ``pytorch_model.bin``.
        max_shard_size: write a directory's weights in parts of at most so many bytes.
    """

    prefix: str = ""
    pickled: bool = False
    max_shard_size: int | None = None

    def check(self, layout: Layout, *, is_directory: bool) -> None:
        """Refuse what the target cannot have.

        Raises:
            OutputError: an option is for other targets, or the prefix would not be known again.
        """
        if self.prefix and is_directory:
            raise OutputError(
                f"{layout.name} is written as a directory, whose readers know no prefixes; leave"
                " --prefix out"
            )
        if self.prefix and "pth" not in layout.containers:
            raise OutputError(
                f"prefixes are of PyTorch's names, and {layout.name} has others; leave --prefix out"
            )
        if self.prefix and not is_readable(self.prefix):
            raise OutputError(
                f"the prefix {self.prefix!r} would not be known when the file is read; it is one or"
                " more names, each with a dot behind it, for instance module."
            )
        if (self.pickled or self.max_shard_size is not None) and not is_directory:
            raise OutputError(
                f"--bin and --max-shard-size are for model directories, and {layout.name} is"
                " written here as one file; leave them out"
            )
        if self.pickled and "pth" not in layout.containers:
            raise OutputError(f"{layout.name} has no form as {BIN}; leave --bin out")
