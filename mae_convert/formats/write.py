"""Write files and model directories: complete, flushed, and re-read before they are renamed."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from mae_convert.errors import MaeConvertError, OutputError
from mae_convert.files.atomic import Place, Staged, flush, saying, staged
from mae_convert.files.byte_ranges import ByteFile
from mae_convert.files.strict_json import in_unicode
from mae_convert.files.workers import Advance, Crew, Progress
from mae_convert.formats.contents import json_in
from mae_convert.formats.identify import read_contents
from mae_convert.formats.output import JsonFile, Output, directory_output, file_output, require_ours
from mae_convert.formats.output_file import Draft, Weights
from mae_convert.formats.registry import INDEX_SUFFIX
from mae_convert.formats.tensor import LazyTensor
from mae_convert.text import format_bytes


class Source(Protocol):
    """The source that tensors are read from, and work on it during the conversion (hashing)."""

    nbytes: int

    def work(self, advance: Advance) -> None:
        """Do the work, and report the number of bytes done."""

    def require_unchanged(self) -> None:
        """Raise CheckpointError if the source has changed since the beginning."""

    def amend(self, conversion: Mapping) -> Mapping:
        """Return the conversion record with the values that are now known, in as many bytes."""


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
    """Write tensors to one file, and read it again before it gets its name.

    Args:
        path: where the file is to stand.
        kind: as in `Weights`.
        tensors: as there.
        config: as there.
        conversion: as there.
        overwrite: replace an existing file.
        state_key: as there.

    Returns:
        The SHA-256 of each tensor's bytes, little-endian and in C order, by name.

    Raises:
        OutputError: the target exists, cannot be written, or did not read back as written; or the
            container cannot hold a name or a dtype. Nothing is left behind.
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
    """Write a model directory: the weights, and JSON files beside them, as in `write_file`.

    Args:
        path: its name.
        weights_name: the name of the file of weights in it.
        kind: as in `Weights`.
        tensors: as there.
        json_files: as in `Output`.
        config: as in `Weights`.
        overwrite: replace an existing directory, if we wrote it: it has a `conversion.json`, and
            nothing but files of conventional names and those that its `conversion.json` names
            under `outputs`.
        max_shard_size: as in `directory_output`.

    Raises:
        OutputError: as `write_file`; or the directory holds files that are not ours.
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
    """Write several outputs at once; all get their names at the end, or none does.

    Args:
        outputs: what to write.
        overwrite: replace what exists.
        source: what the tensors are read from.
        progress: is told how far the work is.
        on_commit: is called once all have their names, before any signal can be delivered.

    Returns:
        For each output the SHA-256 of each tensor's bytes, by name.

    Raises:
        OutputError: as `write_file` and `write_directory`; or another run was faster.
        CheckpointError: the source cannot be read, or was changed meanwhile.
    """
    progress = progress or Progress()
    places = [Place(o.target, o.is_directory, overwrite, require_ours) for o in outputs]
    with staged(*places, on_commit=on_commit) as stagings:
        with _drafts(outputs, stagings) as drafts:
            hashes = _fill(drafts, source, progress)
        for output, staging, found in zip(outputs, stagings, hashes, strict=True):
            if output.is_directory:
                with saying(output.target):
                    _write_json_files(output, staging.path, found)
        if source is not None:
            source.require_unchanged()
    return hashes


@contextmanager
def _drafts(outputs: Sequence[Output], stagings: Sequence[Staged]) -> Iterator[list[list[Draft]]]:
    """Create the weight files of each output, and close them at the end."""
    with ExitStack() as stack:
        drafts: list[list[Draft]] = []
        for output, staging in zip(outputs, stagings, strict=True):
            if output.is_directory:
                staging.path.mkdir()
            drafts.append([])
            for name, weights in output.weights.items():
                path = staging.path / name if output.is_directory else staging.path
                drafts[-1].append(Draft.begin(path, output.target, weights))
                stack.callback(drafts[-1][-1].close)
        _require_space([draft for group in drafts for draft in group])
        yield drafts


def _require_space(drafts: Iterable[Draft]) -> None:
    """Refuse outputs for which the disk has no space, before any work."""
    needed: dict[int, int] = {}
    for draft in drafts:
        disk, found = os.fstat(draft.descriptor).st_dev, os.fstatvfs(draft.descriptor)
        needed[disk] = needed.get(disk, 0) + draft.blueprint.size
        free = (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize
        if found.f_blocks and needed[disk] > free:  # some file systems tell nothing
            raise OutputError(
                f"{draft.target} cannot be written: it needs {format_bytes(needed[disk])} and"
                f" {format_bytes(free)} are free",
                hint="free some space or write elsewhere",
            )


def _fill(
    drafts: Sequence[Sequence[Draft]], source: Source | None, progress: Progress
) -> list[dict[str, str]]:
    """Write the tensors while the source is worked on, flush them, and compare what was written.

    Returns:
        For each group of files the SHA-256 of each tensor's bytes, by name.
    """
    files = [draft for group in drafts for draft in group]
    progress.begin(
        sum(2 * file.weights.nbytes for file in files) + (source.nbytes if source else 0)
    )
    try:
        with Crew(progress) as crew:
            aside = [crew.start(source.work)] if source else []
            writing = [crew.start(file.writer(n)) for file, n in _interleaved(files)]
            crew.finish(*aside, *writing)
            amend = source.amend if source else dict
            sealed = [[draft.seal(amend) for draft in group] for group in drafts]
            # The disk writes while the processor compares.
            flushing = [crew.start(file.flush) for group in sealed for file in group]
            hashes = [_compare(crew, group) for group in sealed]
            crew.finish(*flushing)
            return hashes
    except MaeConvertError:
        if source is not None:  # what looks like a fault of the disk or of the weights may be this
            source.require_unchanged()
        raise


def _interleaved(files: Sequence[Draft]) -> list[tuple[Draft, int]]:
    """Return file and number of each tensor such that all files progress at the same rate.

    Files that are converted from one source then read the same part of it at the same time, and the
    disk reads it once.
    """
    order = []
    for file in files:
        total, done = max(1, file.weights.nbytes), 0
        for number, tensor in enumerate(file.weights.tensors):
            order.append((done / total, file, number))
            done += tensor.nbytes
    return [(file, number) for _, file, number in sorted(order, key=lambda item: item[0])]


def _compare(crew: Crew, files: Sequence[Draft]) -> dict[str, str]:
    """Re-read files and compare everything in them; return the SHA-256 of each tensor."""
    opened = [(file, file.reopen()) for file in files]
    pieces = [(file, read, n) for file, read in opened for n in range(len(file.weights.tensors))]
    work = [crew.start(file.comparer(read, number)) for file, read, number in pieces]
    names = [file.weights.tensors[number].name for file, _, number in pieces]
    return dict(zip(names, crew.finish(*work), strict=True))


def _write_json_files(output: Output, folder: Path, hashes: Mapping[str, str]) -> None:
    """Write the files beside the weights, flush them to the disk, and re-read them."""
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
                f"{output.target} does not contain what was written to it", hint="check the disk"
            )
    flush(folder)
