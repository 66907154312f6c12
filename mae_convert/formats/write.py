"""Write files and model directories under temporary names, and rename them at the end.

They are flushed and re-read before they get their final names.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mae_convert.errors import MaeConvertError, Option, OutputError
from mae_convert.files.atomic import Destination, Staged, flush, os_errors_explained, staged
from mae_convert.files.byte_ranges import ByteFile, open_input
from mae_convert.files.progress import Advance, Progress
from mae_convert.files.strict_json import in_unicode
from mae_convert.files.workers import WorkerThreads
from mae_convert.formats.container import JSON_NAMES, read_contents
from mae_convert.formats.contents import json_in
from mae_convert.formats.output_file import OutputFile, Weights
from mae_convert.formats.registry import (
    BIN,
    CERTIFICATE_NAMES,
    FORMATS,
    INDEX_NAMES,
    INDEX_SUFFIX,
    WEIGHTS_NAMES,
)
from mae_convert.formats.shards import (
    SHARD,
    index_of,
    shard_names,
    split,
)
from mae_convert.formats.tensor import LazyTensor
from mae_convert.text import format_bytes

Hashes = Mapping[str, str]
JsonFile = Mapping | Callable[[Hashes], Mapping]

OUR_NAMES = frozenset((*JSON_NAMES, *WEIGHTS_NAMES, *INDEX_NAMES, *CERTIFICATE_NAMES, "README.md"))
RECORD = "conversion.json"


@dataclass(frozen=True)
class Output:
    """A file or a model directory that is to be written."""

    target: Path
    """The path of the output."""

    weights: Mapping[str, Weights]
    """The weights by file name; the name is "" if the output is a single file."""

    json_files: Mapping[str, JsonFile] = field(default_factory=dict)
    """The contents of JSON files in the same directory, by file name.

    Each value is a mapping, or a function that returns a mapping. The argument of the function is a
    mapping from tensor names to the SHA-256 of each tensor's bytes (little-endian, in C order).
    """

    is_directory: bool = False
    """Whether the target is a directory."""

    def tensors(self) -> list[LazyTensor]:
        """Return the tensors of all files."""
        return [tensor for weights in self.weights.values() for tensor in weights.tensors]


def file_output(path: Path | str, weights: Weights) -> Output:
    """Return the description of an output that writes `weights` to a single file."""
    return Output(Path(path), {"": weights})


def directory_output(
    path: Path | str,
    weights_name: str,
    weights: Weights,
    json_files: Mapping[str, JsonFile],
    *,
    max_shard_size: int | None = None,
) -> Output:
    """Return the description of an output that writes a model directory.

    Args:
        path: the path of the directory.
        weights_name: the name of the weights file.
        weights: the content of the weights file. The file also stores `weights.config` if the
            format allows it, so that the file can be used without the directory.
        json_files: see `Output`.
        max_shard_size: the maximum number of bytes of a shard; larger weights are written in shards
            with an index. None to write one file of any size.

    Raises:
        OutputError: the weights cannot be sharded.
    """
    kind, config = weights.kind, None if weights.kind == BIN else weights.config
    parts = [weights.tensors] if max_shard_size is None else split(weights.tensors, max_shard_size)
    if len(parts) > 1 and not FORMATS[kind].sharded:
        raise OutputError(
            f"{weights_name} cannot be sharded",
            hint=("leave ", Option("max_shard_size"), " out"),
        )
    names = [weights_name] if len(parts) == 1 else shard_names(weights_name, len(parts))
    shards: dict[str, Sequence[LazyTensor]] = dict(zip(names, parts, strict=True))
    index = {f"{weights_name}{INDEX_SUFFIX}": index_of(shards)} if len(parts) > 1 else {}
    files = {name: Weights(kind, part, config) for name, part in shards.items()}
    return Output(Path(path), files, {**index, **json_files}, is_directory=True)


def require_own_files(directory: Path) -> None:
    """Raise OutputError if a directory contains anything that mae-convert did not write."""
    names = sorted(path.name for path in directory.iterdir())
    try:
        with open_input(directory / RECORD) as file:
            record = json.load(file)
        outputs = record.get("outputs", ())
    except (MaeConvertError, OSError, ValueError, AttributeError, RecursionError):
        record, outputs = None, ()
    ours = OUR_NAMES | set(outputs if isinstance(outputs, dict | list) else ())
    foreign = [n for n in names if record is None or not (n in ours or SHARD.fullmatch(n))]
    foreign += [name for name in names if (directory / name).is_dir()]
    if foreign:
        raise OutputError(
            directory,
            f" contains {foreign[0]}, which mae-convert did not write",
            hint="choose another name or remove the directory yourself",
        )


class Source(Protocol):
    """The source of the tensors, which is hashed during the conversion."""

    nbytes: int

    def work(self, advance: Advance) -> None:
        """Hash the source, and report the number of bytes that were hashed."""

    def require_unchanged(self) -> None:
        """Raise CheckpointError if the source has changed since the conversion began."""

    def amend(self, conversion: Mapping) -> Mapping:
        """Return the conversion record, with the values that are known only after writing.

        In a file, the returned record must take as many bytes as `conversion`: the offsets of the
        file's parts are already fixed.
        """


def write_file(
    path: Path | str,
    kind: str,
    tensors: Iterable[LazyTensor],
    *,
    config: Mapping | None = None,
    conversion: Mapping | None = None,
    overwrite: bool = False,
    state_key: str | None = "model",
) -> dict[str, str]:
    """Write tensors to one file, and re-read it before it is renamed to its final name.

    Args:
        path: the path of the file.
        kind: the format, a key of `registry.FORMATS`.
        tensors: the tensors.
        config: the model configuration to store; None to store none.
        conversion: the conversion record to store; None to store none.
        overwrite: replace an existing file.
        state_key: the key of the tensors in a PyTorch checkpoint ("pth"); None for a plain state
            dict.

    Returns:
        The SHA-256 of each tensor's bytes, little-endian and in C order, by name.

    Raises:
        OutputError: the target exists, cannot be written, or differs when it is re-read; or the
            format cannot store a name or a dtype. No new file is left behind, and an existing file
            is unchanged.
    """
    weights = Weights(kind, list(tensors), config, conversion, state_key)
    return write_all([file_output(path, weights)], overwrite=overwrite)[0]


def write_directory(
    path: Path | str,
    weights_name: str,
    kind: str,
    tensors: Iterable[LazyTensor],
    json_files: Mapping[str, JsonFile],
    *,
    config: Mapping | None = None,
    overwrite: bool = False,
    max_shard_size: int | None = None,
) -> dict[str, str]:
    """Write a model directory: the weights, and JSON files beside the weights.

    As in `write_file`, the output is re-read before it gets its final name.

    Args:
        path: the path of the directory.
        weights_name: the name of the weights file in the directory.
        kind: see `Weights`.
        tensors: the tensors.
        json_files: see `Output`.
        config: see `Weights`.
        overwrite: replace an existing directory that mae-convert wrote. Such a directory contains a
            `conversion.json`. Each other file has a conventional name, or is listed under
            `outputs` in the `conversion.json`.
        max_shard_size: see `directory_output`.

    Returns:
        The SHA-256 of each tensor's bytes, little-endian and in C order, by name.

    Raises:
        OutputError: see `write_file`; or the directory contains files that mae-convert did not
            write.
    """
    weights = Weights(kind, list(tensors), config)
    output = directory_output(
        path, weights_name, weights, json_files, max_shard_size=max_shard_size
    )
    return write_all([output], overwrite=overwrite)[0]


def write_all(
    outputs: Sequence[Output],
    *,
    overwrite: bool = False,
    source: Source | None = None,
    progress: Progress | None = None,
    on_commit: Callable[[], None] = lambda: None,
) -> list[dict[str, str]]:
    """Write several outputs; at the end all are renamed to their final names, or none is.

    Args:
        outputs: the outputs.
        overwrite: replace existing targets.
        source: the source of the tensors, which is hashed and checked for changes; None if there
            is no such source.
        progress: receives the progress.
        on_commit: called after all outputs have been renamed, before any signal is delivered.

    Returns:
        For each output, the SHA-256 of each tensor's bytes, by name.

    Raises:
        OutputError: see `write_file` and `write_directory`; or another program has written the
            target during the call.
        CheckpointError: the source cannot be read, or was changed during the call.
    """
    progress = progress or Progress()
    destinations = [
        Destination(o.target, o.is_directory, overwrite, require_own_files) for o in outputs
    ]
    with staged(*destinations, on_commit=on_commit) as stagings:
        with _output_files(outputs, stagings) as files:
            hashes = _fill(files, source, progress)
        for output, staging, digests in zip(outputs, stagings, hashes, strict=True):
            if output.is_directory:
                with os_errors_explained(output.target):
                    _write_json_files(output, staging.path, digests)
        if source is not None:
            source.require_unchanged()
    return hashes


@contextmanager
def _output_files(
    outputs: Sequence[Output], stagings: Sequence[Staged]
) -> Iterator[list[list[OutputFile]]]:
    """Create the weight files of each output, and close them when the context ends."""
    with ExitStack() as stack:
        files: list[list[OutputFile]] = []
        for output, staging in zip(outputs, stagings, strict=True):
            if output.is_directory:
                staging.path.mkdir()
            files.append([])
            for name, weights in output.weights.items():
                path = staging.path / name if output.is_directory else staging.path
                files[-1].append(OutputFile.begin(path, output.target, weights))
                stack.callback(files[-1][-1].close)
        _require_space([file for group in files for file in group])
        yield files


def _require_space(files: Iterable[OutputFile]) -> None:
    """Refuse outputs for which the disk has no space, before any work is done."""
    needed: dict[int, int] = {}
    for file in files:
        disk, space = os.fstat(file.descriptor).st_dev, os.fstatvfs(file.descriptor)
        needed[disk] = needed.get(disk, 0) + file.layout.size
        free = (space.f_bfree if os.geteuid() == 0 else space.f_bavail) * space.f_frsize
        if space.f_blocks and needed[disk] > free:  # some file systems report no sizes
            raise OutputError(
                f"{file.target} cannot be written: it needs {format_bytes(needed[disk])}, but only"
                f" {format_bytes(free)} are free",
                hint="free some space or write elsewhere",
            )


def _fill(
    groups: Sequence[Sequence[OutputFile]], source: Source | None, progress: Progress
) -> list[dict[str, str]]:
    """Write the tensors while the source is hashed, flush them, and compare the written files.

    The data of the files are read back and compared with the tensors.

    Args:
        groups: for each output, its weights files.
        source: the source of the tensors, which is hashed; None to hash nothing.
        progress: receives the progress.

    Returns:
        For each output, the SHA-256 of each tensor's bytes, by name.
    """
    files = [file for group in groups for file in group]
    progress.begin(
        sum(2 * file.weights.nbytes for file in files) + (source.nbytes if source else 0)
    )
    try:
        with WorkerThreads(progress) as threads:
            hashing = [threads.start(source.work)] if source else []
            writing = [threads.start(file.writer(n)) for file, n in _interleaved(files)]
            threads.finish(*hashing, *writing)
            amend = source.amend if source else dict
            finalized = [[file.finalize(amend) for file in group] for group in groups]
            # The disk writes while the processor compares.
            flushing = [threads.start(file.flush) for group in finalized for file in group]
            hashes = [_compare(threads, group) for group in finalized]
            threads.finish(*flushing)
            completed = [
                file.completed(digests)
                for group, digests in zip(finalized, hashes, strict=True)
                for file in group
            ]
            threads.finish(*(threads.start(file.flush) for file in completed if file))
            return hashes
    except MaeConvertError:
        if source is not None:  # first check whether the source has changed
            source.require_unchanged()
        raise


def _interleaved(files: Sequence[OutputFile]) -> list[tuple[OutputFile, int]]:
    """Return each tensor's file and index, in an order in which all files progress equally fast.

    Files that are converted from one source then need the same part of the source at the same time,
    so that the disk reads each part once.
    """
    order = []
    for file in files:
        total, written = max(1, file.weights.nbytes), 0
        for number, tensor in enumerate(file.weights.tensors):
            order.append((written / total, file, number))
            written += tensor.nbytes
    return [(file, number) for _, file, number in sorted(order, key=lambda item: item[0])]


def _compare(threads: WorkerThreads, files: Sequence[OutputFile]) -> dict[str, str]:
    """Re-read files, compare them with what was written, and return the SHA-256 of each tensor."""
    opened = [(file, file.reopen()) for file in files]
    pieces = [(file, read, n) for file, read in opened for n in range(len(file.weights.tensors))]
    work = [threads.start(file.comparer(read, number)) for file, read, number in pieces]
    names = [file.weights.tensors[number].name for file, _, number in pieces]
    return dict(zip(names, threads.finish(*work), strict=True))


def _write_json_files(output: Output, folder: Path, hashes: Mapping[str, str]) -> None:
    """Write the JSON files of an output, flush them to the disk, and re-read them.

    Args:
        output: the output.
        folder: the directory in which the files are written.
        hashes: the SHA-256 of each tensor's bytes, by tensor name.

    Raises:
        OutputError: a file does not contain what was written to it.
    """
    for name, given in output.json_files.items():
        value = in_unicode(given(hashes) if callable(given) else given)
        text = json.dumps(value, indent=2, sort_keys=name.endswith(INDEX_SUFFIX)) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
        flush(folder / name)
        same = json_in(ByteFile(folder / name), "check the disk") == json.loads(text)
        if not same or (
            name.endswith(INDEX_SUFFIX)
            and list(read_contents(folder / name).tensors) != [t.name for t in output.tensors()]
        ):
            raise OutputError(
                f"{output.target} does not contain the data written to it", hint="check the disk"
            )
    flush(folder)
