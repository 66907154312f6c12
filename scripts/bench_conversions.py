"""Compare the time of full-size conversions with `cp` and with the classes of transformers."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench_measure import Run, median, ratio, run

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = (sys.executable, "-m", "mae_convert")
PEER = Path(__file__).with_name("bench_peer.py")
HEADS = {"base": 12, "large": 16, "huge": 16}
TINY = ROOT / "mae_convert/data/demo/checkpoint.pth"

# A conversion whose progress is timed: reading, hashing and writing, then flushing and comparing.
PHASES = """
import json, sys, time
from pathlib import Path
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.families.checkpoint_options import Flags
from mae_convert.convert.execute import execute_all
from mae_convert.convert.plan import plan_conversion
source, target, layout = sys.argv[1:]
class Clock:
    def begin(self, total):
        self.finished, self.moments = 0, [time.perf_counter()]
    def advance(self, count):
        self.finished += count
        if self.finished >= written and len(self.moments) < 2:
            self.moments.append(time.perf_counter())
plan = plan_conversion(open_checkpoint(Path(source), Flags()), Path(target), layout)
written = Path(source).stat().st_size + sum(tensor.nbytes for tensor in plan.tensors)
clock = Clock()
execute_all([plan], progress=clock)
begun, filled, ended = *clock.moments, time.perf_counter()
print(json.dumps([filled - begun, ended - filled]))
"""


@dataclass(frozen=True)
class Work:
    """A checkpoint to convert, and a folder for outputs on the same disk."""

    size: str
    """"base", "large" or "huge"."""

    checkpoint: Path
    """The checkpoint file, in the original layout."""

    folder: Path
    """The folder for outputs, which is empty before and after each run."""

    def copied(self) -> Run:
        """Copy the checkpoint, wait until it is on the disk, and return the measured run."""
        return self._run(["sh", "-c", 'cp "$0" "$1" && sync -f "$1"', self.checkpoint, self.target])

    def converted(self, layout: str) -> Run:
        """Convert the checkpoint with mae-convert and return the measured run."""
        return self._run([*PROGRAM, "convert", self.checkpoint, self.target, "--to", layout])

    def phases(self, layout: str) -> list[float]:
        """Convert the checkpoint to `layout`; return the seconds of both phases of the conversion.

        In the first phase the source is read and hashed and the output is written; in the second
        phase the output is flushed to the disk, read again and compared with the source.
        """
        measured = self._run([sys.executable, "-c", PHASES, self.checkpoint, self.target, layout])
        return json.loads(measured.output)

    @property
    def target(self) -> Path:
        """The path of the output."""
        return self.folder / "out"

    def _run(self, command: list[str | Path]) -> Run:
        measured = run(command)
        remove(self.target)
        return measured


def remove(path: Path) -> None:
    """Remove a file or a directory, and wait until the caches are written to the disk."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    os.sync()
    time.sleep(0.5)


def checkpoint(size: str, folder: Path) -> Path:
    """Return a checkpoint file of a model size.

    For the official sizes "base", "large" and "huge", a file with random weights is created in
    `folder` if it does not exist. For "tiny" it is the small checkpoint in the package mae_convert.
    """
    if size == "tiny":
        return TINY
    path = folder / f"{size}.pth"
    if not path.exists():
        command = [sys.executable, "full_size.py", f"visualize_vit_{size}", str(path)]
        subprocess.run(command, check=True, cwd=ROOT / "tests" / "helpers")
    with path.open("rb") as file:  # so that the file is cached in memory already in the first run
        while file.read(1 << 24):
            pass
    return path


def heads(size: str) -> list[str]:
    """Return the options for the numbers of heads; none for "tiny", whose file stores them."""
    if size == "tiny":
        return []
    return ["--num-heads", str(HEADS[size]), "--decoder-num-heads", "16"]


def converted(size: str, folder: Path, layout: str, *options: str) -> Path:
    """Return a directory with a checkpoint in another layout; create it if it does not exist.

    Args:
        size: the size of the model, as for `checkpoint`.
        folder: the folder for the directory and for the file of the checkpoint.
        layout: the layout of the directory.
        options: further options of ``mae-convert convert``.
    """
    directory = folder / f"{size}_{layout}"
    if not directory.exists():
        convert = [*PROGRAM, "convert", checkpoint(size, folder), directory, "--to", layout]
        subprocess.run([*convert, *heads(size), *options], check=True, capture_output=True)
    return directory


def rows(sizes: list[str], folder: Path, pairs: int, peer: Path | None) -> Iterator[dict]:
    """Yield a row of the table for each size and target layout.

    Args:
        sizes: the sizes of the ViT.
        folder: the directory for checkpoints and outputs.
        pairs: how often ``cp`` and the conversion by mae-convert are measured.
        peer: the Python interpreter with transformers; None to omit the comparison with it.
    """
    for size in sizes:
        with_files = Work(size, checkpoint(size, folder), folder / "work")
        with_files.folder.mkdir(exist_ok=True)
        for layout in ("transformers", "transformers-tf"):
            yield _row(with_files, layout, pairs, peer)


def _row(work: Work, layout: str, pairs: int, peer: Path | None) -> dict[str, object]:
    copies, ours, phases = [], [], []
    for _ in range(pairs):
        copies.append(work.copied())
        ours.append(work.converted(layout))
        phases.append(work.phases(layout))
    copying, converting = [[measured.seconds for measured in runs] for runs in (copies, ours)]
    writing = [write for write, _ in phases]
    each_phase = [median(seconds) for seconds in zip(*phases, strict=True)]
    row: dict[str, object] = {
        "ViT": work.size,
        "to": layout,
        "MB": round(work.checkpoint.stat().st_size / 1e6),
        "`cp`, s": f"{median(copying):.2f}",
        "convert, s": f"{median(converting):.2f}",
        "ratio": f"{ratio(converting, copying):.2f}",
        "write + (flush and compare), s": " + ".join(f"{seconds:.2f}" for seconds in each_phase),
        "write, ratio": f"{ratio(writing, copying):.2f}",
        "memory, MB": round(max(measured.anonymous for measured in ours) / 1e6),
    }
    return row | (_against(work, layout, peer) if peer else {})


def _against(work: Work, layout: str, peer: Path) -> dict[str, object]:
    """Convert with mae-convert, then with transformers; return columns that compare their times.

    Args:
        work: the checkpoint to convert.
        layout: the layout of the target, "transformers" or "transformers-tf".
        peer: the Python interpreter of an environment with transformers.
    """
    source = work.checkpoint
    if layout == "transformers-tf":
        # The TensorFlow classes read a directory that the PyTorch classes wrote.
        source = work.folder / "theirs"
        run([peer, PEER, "transformers", work.checkpoint, source, str(HEADS[work.size])])
    measured = work.converted(layout)
    theirs = run(
        [peer, PEER, layout, source, work.target, str(HEADS[work.size])], TF_USE_LEGACY_KERAS="1"
    )
    for path in (work.target, work.folder / "theirs"):
        remove(path)
    return {
        "transformers, s": f"{theirs.seconds:.1f}",
        "times as fast": f"{theirs.seconds / measured.seconds:.1f}",
        "their memory, MB": round(theirs.anonymous / 1e6),
    }
