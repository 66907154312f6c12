"""Give a child process the very files that are open here, whatever their paths name meanwhile.

A child opens files by path. If another program puts other files there while a verification runs,
what was run would not be what was hashed. So the child gets links to the open files.
"""

from collections.abc import Sequence
from pathlib import Path

from mae_convert.checkpoint import Checkpoint
from mae_convert.containers.bytefile import ByteFile
from mae_convert.containers.directory import is_read_beside


def pinned(weights: Path, checkpoint: Checkpoint, work: Path) -> tuple[Path, Sequence[ByteFile]]:
    """Return a path for the child in place of ``weights``, and what is open behind it.

    Args:
        weights: a file of the checkpoint, its directory, or a file that was made in ``work``.
        checkpoint: what is run.
        work: a directory for links, which is removed after the run.

    Returns:
        The path, and the open files, which must be as they were when the run is over.
    """
    container = checkpoint.container
    known = {file.path.name: file for file in (*container.opened, *container.beside)}
    if weights.is_relative_to(work):
        return weights, tuple(known.values())
    folder = work / "files"
    folder.mkdir()
    if weights.is_dir():
        for path in weights.iterdir():
            if path.name not in known and is_read_beside(path.name) and path.is_file():
                known[path.name] = ByteFile(path)
        names = list(known)
    else:
        names = [weights.name]
        known.setdefault(weights.name, ByteFile(weights))
    for name in names:
        (folder / name).symlink_to(known[name].pinned.absolute())
    return folder if weights.is_dir() else folder / weights.name, tuple(known.values())
