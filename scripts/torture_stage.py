"""The set-up of a trial of `torture.py`: an old output, and a conversion that replaces it."""

import hashlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mae_convert.formats import LazyTensor, open_container, write_file

STRAY = re.compile(r"\.mae-convert-[0-9a-f]{16}")
COMMAND = (sys.executable, "-m", "mae_convert", "convert")
TARGETS = {"file": ("out.weights.h5", "keras"), "directory": ("out", "transformers-tf")}


@dataclass(frozen=True)
class Stage:
    """The checkpoint and the target of a trial, and the outputs that are allowed afterwards."""

    folder: Path
    """The directory of the target, which contains nothing else."""

    target: Path
    """The file or directory that the conversion writes, and that contains the old output before."""

    layout: str
    """The layout of the target."""

    old: Path
    """The output that exists before a trial."""

    source: Path
    """The checkpoint that is converted in a trial."""

    whole: dict[str, str]
    """The digests of the old and the new output, with the keys "old" and "new"."""

    duration: float
    """The time of an undisturbed conversion, in seconds."""

    @property
    def size(self) -> int:
        """Size of the old output in bytes."""
        return sum(f.stat().st_size for f in [self.old, *self.old.rglob("*")] if f.is_file())

    def command(self, source: Path | None = None) -> list[str]:
        """Return the command of a conversion that replaces the existing output.

        Args:
            source: the checkpoint to convert; None for the checkpoint of the trial.
        """
        where = (str(source or self.source), str(self.target), "--to", self.layout)
        return [*COMMAND, *where, "--overwrite"]

    def arguments(self) -> list[str]:
        """Return the command-line arguments of ``mae-convert`` for the conversion."""
        return self.command()[len(COMMAND) - 1 :]

    def reset(self) -> None:
        """Restore the old output, and remove everything else."""
        for path in self.folder.iterdir():
            remove(path)
        copy(self.old, self.target)

    def state(self) -> str:
        """Return the state of the output: "old", "new", or a description of another state.

        If a hidden directory is beside the output, ", beside a hidden directory" is appended.
        """
        foreign = [p.name for p in self.folder.iterdir() if p != self.target]
        if unknown := [name for name in foreign if not STRAY.fullmatch(name)]:
            return f"there is {unknown[0]}"
        if not self.target.exists():
            return "no output exists"
        state_digest = digest(self.target)
        name = next(
            (name for name, whole in self.whole.items() if whole == state_digest), "a mixture"
        )
        return f"{name}, beside a hidden directory" if foreign else name


def remove(path: Path) -> None:
    """Remove a file or a directory."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def copy(source: Path, target: Path) -> None:
    """Copy a file or a directory."""
    shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)


def digest(path: Path) -> str:
    """Return a digest of a file, or of the names and contents of the files in a directory."""
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.relative_to(path)} {content}\n".encode())
    return total.hexdigest()


def stages(checkpoint: Path, work: Path, kinds: Iterable[str]) -> Iterator[Stage]:
    """Yield a `Stage` for each kind of target.

    The old output is converted from other weights than the new output, so the two differ.
    """
    other = work / "other.pth"
    disturbed(checkpoint, other)
    for kind in kinds:
        name, layout = TARGETS[kind]
        outputs = {}
        for which, source in (("old", other), ("new", checkpoint)):
            outputs[which] = work / f"{which}-{name}"
            started = time.monotonic()
            where = (str(source), str(outputs[which]), "--to", layout)
            subprocess.run([*COMMAND, *where], check=True, stdout=subprocess.DEVNULL)
            duration = time.monotonic() - started
        whole = {which: digest(path) for which, path in outputs.items()}
        folder = work / kind
        folder.mkdir()
        remove(outputs["new"])
        yield Stage(folder, folder / name, layout, outputs["old"], checkpoint, whole, duration)
        remove(outputs["old"])


def disturbed(checkpoint: Path, other: Path) -> None:
    """Write a copy of `checkpoint`, with one value changed, to the file `other`."""
    opened = open_container(checkpoint)
    tensors = list(opened.tensors.values())
    first = tensors[0].load().copy()
    first.flat[0] += 1
    tensors[0] = LazyTensor.from_array(tensors[0].name, first)
    write_file(other, "pth", tensors, config=opened.config)


def start(command: list[str]) -> subprocess.Popen:
    """Start a command, and return its process."""
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def run(command: list[str]) -> tuple[int, str]:
    """Run a command; return its status and its standard error."""
    with start(command) as child:
        stderr = child.communicate(timeout=600)[1]
    return child.returncode, stderr
