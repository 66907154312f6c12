"""Write a weights file: compute its layout, write it with several threads, flush, re-read."""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert.errors import Option, OutputError
from mae_convert.files.atomic import os_errors_explained
from mae_convert.files.byte_ranges import FileArray
from mae_convert.files.progress import Advance
from mae_convert.files.strict_json import in_unicode
from mae_convert.formats.container import read_file
from mae_convert.formats.contents import Contents
from mae_convert.formats.registry import FORMATS, TF_H5
from mae_convert.formats.tensor import LazyTensor, as_bytes

BytesAt = tuple[int, bytes]
"""An offset in a file, and the bytes there."""


@dataclass(frozen=True)
class FileLayout:
    """The layout of a file: the offsets of its parts, known before any tensor is read.

    Tensors can therefore be written in any order, by several threads at once.
    """

    size: int
    """The size of the file in bytes."""

    offsets: Sequence[int]
    """The offset of each tensor's first byte, in the order of the tensors."""

    finalize: Callable[[Sequence[int]], Iterable[BytesAt]]
    """Takes the CRC-32 of each written tensor, or an empty sequence if `checksums` is None, and
    returns the other parts of the file."""

    checksums: Sequence[int] | None = None
    """The initial value of each tensor's CRC-32, which is updated while the tensor is written; None
    if `finalize` needs no CRC-32."""


LONGEST_NAME = 1000


@dataclass(frozen=True)
class Weights:
    """The content of a weights file."""

    kind: str
    """The format, a key of `registry.FORMATS`."""

    tensors: Sequence[LazyTensor]
    """The tensors, in the order of the file."""

    config: Mapping | None = None
    """The model configuration to store, or None. It is stored as JSON text unless the format can
    store nested values."""

    conversion: Mapping | None = None
    """The conversion record to store, or None. It is stored in the same form as `config`."""

    state_key: str | None = "model"
    """The key of the tensors in a PyTorch checkpoint ("pth"); None for a plain state dict."""

    complete: Callable[[Mapping, Mapping[str, str]], Mapping] | None = None
    """Called with the conversion record and the SHA-256 of each tensor's bytes by name; returns the
    record completed with these hashes. In the file, the completed record must take as many bytes as
    before. None if the record needs no hashes."""

    @property
    def nbytes(self) -> int:
        """The size of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def through_json(self) -> "Weights":
        """Return a copy with settings converted to JSON and back, so that tuples become lists."""
        config, conversion = _through_json(self.config), _through_json(self.conversion)
        return replace(self, config=config, conversion=conversion)

    def layout(self) -> FileLayout:
        """Return the layout of the file."""
        form = FORMATS[self.kind]
        keys = (self.state_key,) if form.has_keys else ()
        layout: FileLayout = form.lay_out(self.tensors, self.config, self.conversion, *keys)
        return layout


@dataclass(frozen=True)
class OutputFile:
    """A file that is being written."""

    path: Path
    """The temporary path of the file."""

    target: Path
    """The output that the file belongs to, for messages."""

    weights: Weights
    """The tensors and the metadata to write."""

    layout: FileLayout
    """The offsets of the parts of the file."""

    descriptor: int
    """The descriptor of the open file."""

    checksums: list[int] = field(default_factory=list)
    """The CRC-32 of each tensor, updated while the tensor is written."""

    @classmethod
    def begin(cls, path: Path, target: Path, weights: Weights) -> "OutputFile":
        """Compute the layout of a file, and create it with its final size.

        Args:
            path: the temporary path at which the file is created.
            target: the output that the file belongs to, for messages.
            weights: the content of the file.

        Raises:
            OutputError: the format cannot store the tensors, or the file cannot be created.
        """
        check_limits(target, weights.kind, weights.tensors)
        weights = weights.through_json()
        layout = weights.layout()
        with os_errors_explained(target):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o666)
            try:
                os.ftruncate(descriptor, layout.size)
            except BaseException:
                os.close(descriptor)
                raise
        return cls(path, target, weights, layout, descriptor, list(layout.checksums or ()))

    def writer(self, number: int) -> Callable[[Advance], None]:
        """Return a function that writes the tensor at index `number`."""
        return lambda advance: self._write(number, advance)

    def comparer(self, read: Contents, number: int) -> Callable[[Advance], str]:
        """Return a function that compares a tensor of the source with the tensor in the file.

        The function raises an OutputError if the tensors differ. Otherwise it returns the SHA-256
        of the tensor's bytes.

        Args:
            read: the contents of the file, which was opened again after it was written.
            number: the index of the tensor.
        """
        return lambda advance: self._compare(read, number, advance)

    def _write(self, number: int, advance: Advance) -> None:
        """Write the bytes of a tensor.

        Args:
            number: the index of the tensor in ``weights.tensors``.
            advance: called with the number of bytes of each piece.

        Raises:
            OutputError: the file cannot be written, or the tensor is too short.
        """
        tensor = self.weights.tensors[number]
        at = self.layout.offsets[number]
        end = at + tensor.nbytes
        for piece in tensor.pieces():
            data = as_bytes(piece)
            self._put(data, at)
            if self.checksums:
                self.checksums[number] = zlib.crc32(data, self.checksums[number])
            at += len(data)
            advance(len(data))
        if at != end:
            raise OutputError(f"{tensor.name} is {end - at} bytes too short")

    def finalize(self, amend: Callable[[Mapping], Mapping]) -> "OutputFile":
        """Write the parts of the file that are not tensors.

        Args:
            amend: takes the conversion record, and returns the record with all values that are
                available at this time. In the file, this record must take as many bytes as
                before. The function is not called if there is no conversion record.

        Returns:
            The file with the amended conversion record.

        Raises:
            OutputError: the file cannot be written, or the record has another length.
        """
        finalized = self
        if self.weights.conversion is not None:
            conversion = amend(self.weights.conversion)
            weights = replace(self.weights, conversion=conversion).through_json()
            finalized = replace(self, weights=weights, layout=weights.layout())
            if (finalized.layout.size, finalized.layout.offsets) != (
                self.layout.size,
                self.layout.offsets,
            ):
                raise OutputError(
                    self.target, ": its conversion record does not have the reserved length"
                )
        for at, data in finalized.layout.finalize(self.checksums):
            self._put(memoryview(data), at)
        return finalized

    def completed(self, hashes: Mapping[str, str]) -> "OutputFile | None":
        """Write the conversion record again, completed with the tensors' SHA-256 by name.

        Returns:
            The file, which must be flushed again; None if there is no record to complete.

        Raises:
            OutputError: the file cannot be written, or differs when it is re-read.
        """
        complete = self.weights.complete
        if complete is None or self.weights.conversion is None:
            return None
        finalized = self.finalize(lambda record: complete(record, hashes))
        finalized.reopen()
        return finalized

    def flush(self, _advance: Advance) -> None:
        """Wait until all data is on the disk.

        Raises:
            OutputError: the operating system reports an error.
        """
        with os_errors_explained(self.target):
            os.fsync(self.descriptor)

    def reopen(self) -> Contents:
        """Read the file with `read_file`, as for any other checkpoint.

        Raises:
            OutputError: the names, order, dtypes or shapes of the tensors, or the settings, differ
                from the written data.
        """
        read, weights = read_file(self.path), self.weights
        names = [tensor.name for tensor in weights.tensors]
        # HDF5 keeps the order only within each group.
        ordered = not FORMATS[read.kind].has_groups
        same = (
            (list(read.tensors) == names if ordered else set(read.tensors) == set(names))
            and (read.config, read.conversion) == (weights.config, weights.conversion)
            and all(
                (read.tensors[tensor.name].shape, read.tensors[tensor.name].dtype)
                == (tensor.shape, tensor.dtype)
                for tensor in weights.tensors
            )
        )
        if not same:
            raise self._differs()
        return read

    def _compare(self, read: Contents, number: int, advance: Advance) -> str:
        """Read a tensor's bytes from the source again, and compare them with the bytes in the file.

        Args:
            read: the contents of the written file.
            number: the index of the tensor in ``weights.tensors``.
            advance: called with the number of bytes of each piece.

        Returns:
            The SHA-256 of the bytes in the file.

        Raises:
            OutputError: the bytes differ.
        """
        tensor, digest, at = self.weights.tensors[number], hashlib.sha256(), 0
        stored = read.tensors[tensor.name].load
        tensor = tensor.unchecked or tensor  # its values were checked when they were written
        for piece in tensor.pieces() if tensor.nbytes else ():
            if not isinstance(stored, FileArray):
                raise self._differs()
            written = stored.elements(at, at + piece.size)
            if not _equal(written.view(np.uint8), piece):
                raise self._differs()
            digest.update(as_bytes(written))
            at += piece.size
            advance(piece.nbytes)
        return digest.hexdigest()

    def _differs(self) -> OutputError:
        """Return the error for a file that differs from the written data."""
        return OutputError(
            self.target, " does not contain the data written to it", hint="check the disk"
        )

    def close(self) -> None:
        """Close the file without flushing it."""
        os.close(self.descriptor)

    def _put(self, data: memoryview, at: int) -> None:
        with os_errors_explained(self.target):
            while data:
                count = os.pwrite(self.descriptor, data, at)
                data, at = data[count:], at + count


def _equal(data: np.ndarray, piece: np.ndarray) -> bool:
    """Return whether bytes equal the bytes of an array; words of 8 bytes are compared for speed."""
    expected = piece.view(np.uint8)
    words = len(data) // 8 * 8
    return bool(
        (data[:words].view(np.uint64) == expected[:words].view(np.uint64)).all()
        and (data[words:] == expected[words:]).all()
    )


def _through_json(value: Mapping | None) -> Any:
    return None if value is None else json.loads(json.dumps(in_unicode(value)))


def check_limits(target: Path, kind: str, tensors: Sequence[LazyTensor]) -> None:
    """Require that a format can store all tensors.

    Raises:
        OutputError: the format cannot store the name or the dtype of a tensor, or cannot store two
            of the names in one file.
    """
    form, names = FORMATS[kind], [tensor.name for tensor in tensors]
    for name in names:
        impossible = not 0 < len(name) <= LONGEST_NAME or "\0" in name or not _is_text(name)
        if impossible or name in form.reserved:
            raise OutputError(
                target, f" cannot store a tensor named {name[:100]!r}", hint="rename it"
            )
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise OutputError(target, f" cannot store two tensors named {twice}", hint="rename one")
    if form.has_groups:
        _check_paths(target, kind, names)
    for tensor in tensors:
        if str(tensor.dtype) not in form.dtypes:
            raise OutputError(
                f"{target} cannot store {tensor.name} as {tensor.dtype}",
                hint=("choose another dtype, for example ", Option("dtype", "float32")),
                path=target,
            )


def _check_paths(target: Path, kind: str, names: Sequence[str]) -> None:
    groups: set[str] = set()
    for name in names:
        parts = name.split("/")
        if any(part in ("", ".") for part in parts) or (kind == TF_H5 and len(parts) < 2):
            raise OutputError(target, f" cannot store a tensor named {name!r}", hint="rename it")
        groups.update("/".join(parts[:length]) for length in range(1, len(parts)))
    both = groups.intersection(names)
    if both or (kind == TF_H5 and "top_level_model_weights" in groups):
        name = min(both, default="top_level_model_weights")
        raise OutputError(
            target, f" cannot store {name} as a tensor and as a group", hint="rename one"
        )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
