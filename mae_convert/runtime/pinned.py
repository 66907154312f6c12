"""Give a child process exactly the files that are open, even if their paths change.

A child opens files by path. If another program replaced files during a verification, the files that
were run would not be those that were hashed. Therefore the child gets links to the open files.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.files.byte_ranges import ByteFile
from mae_convert.formats.directory import is_read_beside
from mae_convert.runtime.job import StoredWeights
from mae_convert.runtime.staging import Staged


def pinned(staged: Staged, checkpoint: Checkpoint, work: Path) -> tuple[Staged, Sequence[ByteFile]]:
    """Return what a child loads, with links instead of paths, and the open files.

    Args:
        staged: files of the checkpoint, its directory, or files that were created in ``work``.
        checkpoint: the checkpoint.
        work: a directory for links, which is removed after the run.

    Returns:
        What the child loads, and the open files, which must not change during the run.
    """
    container = checkpoint.container
    known = {file.path.name: file for file in (*container.opened, *container.beside)}
    folder = work / "files"
    folder.mkdir()
    read = [staged.weights, *([staged.confirmed.weights] if staged.confirmed else [])]
    others = {path.name: path for weights in read for path in _paths(weights, work)}
    known |= {name: ByteFile(path) for name, path in others.items() if name not in known}
    for name, file in known.items():
        (folder / name).symlink_to(file.pinned.absolute())
    confirmed = staged.confirmed
    if confirmed is not None:
        confirmed = replace(confirmed, weights=_linked(confirmed.weights, work))
    weights = _linked(staged.weights, work)
    return replace(staged, weights=weights, confirmed=confirmed), tuple(known.values())


def _paths(weights: StoredWeights, work: Path) -> list[Path]:
    """Return the files that a child reads, except those that were created for it."""
    paths = [path for path in map(Path, weights.files) if not path.is_relative_to(work)]
    if paths and paths[0].is_dir():
        inside = paths[0].iterdir()
        return [path for path in inside if is_read_beside(path.name) and path.is_file()]
    return paths


def _linked(weights: StoredWeights, work: Path) -> StoredWeights:
    """Return weights with the paths of links instead of their own."""
    paths = [Path(file) for file in weights.files]
    folder = work / "files"
    if all(path.is_relative_to(work) for path in paths):
        return weights
    if paths[0].is_dir():
        return replace(weights, files=(str(folder),))
    return replace(weights, files=tuple(str(folder / path.name) for path in paths))
