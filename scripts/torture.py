"""Kill, interrupt, starve and race conversions, and look whether anything is lost or left behind.

python scripts/torture.py --moments 200                    # the embedded small checkpoint
python scripts/torture.py --moments 200 --checkpoint X.pth # your own, of any size

Each trial converts a checkpoint over an old output, a file and a directory in turn. Afterwards
there must be the old output whole or the new one whole, at most a hidden directory beside it, and a
second run must succeed and leave nothing else. Prints a table; exit status 1 if any trial went
wrong. Filling a disk and mounting one read-only needs root.
"""

import argparse
import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

DEMO = Path(__file__).resolve().parents[1] / "mae_convert" / "data" / "demo" / "checkpoint.pth"
STRAY = re.compile(r"\.mae-convert-[0-9a-f]{16}")
COMMAND = (sys.executable, "-m", "mae_convert", "convert")
TARGETS = {"file": ("out.weights.h5", "keras"), "directory": ("out", "transformers-tf")}

# Root may write everywhere, but for this.
WITHOUT_PRIVILEGES = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")

# Kills the process at the N-th thing that it does to files, as Python tells it (PEP 578).
STEP_BY_STEP = """
import os, signal, sys
left, begun = int(sys.argv.pop(1)), False
def hook(event, arguments):
    global left, begun
    begun = begun or (event == "os.mkdir" and ".mae-convert-" in str(arguments[0]))
    if begun and event.startswith(("os.", "open", "shutil.", "fcntl.", "ctypes.dlsym")):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
from mae_convert.__main__ import main
main()
"""

# Python itself, which begins the program, is not ours to interrupt.
SAYING_WHEN = """
import sys
from mae_convert.__main__ import main
print("it begins", file=sys.stderr, flush=True)
main()
"""


@dataclass(frozen=True)
class Stage:
    """A folder with two checkpoints and what each of them is converted to.

    Attributes:
        folder: where the target stands, and nothing else.
        target: its name.
        layout: what it is written as.
        old: the output that stands there before a trial.
        source: the checkpoint that is converted in a trial.
        whole: the digests of the old and the new output.
        duration: seconds of an undisturbed conversion.
    """

    folder: Path
    target: Path
    layout: str
    old: Path
    source: Path
    whole: dict[str, str]
    duration: float

    @property
    def size(self) -> int:
        """Bytes of the old output."""
        return sum(f.stat().st_size for f in [self.old, *self.old.rglob("*")] if f.is_file())

    def command(self, source: Path | None = None) -> list[str]:
        """Return the command of a conversion over what stands there."""
        where = (str(source or self.source), str(self.target), "--to", self.layout)
        return [*COMMAND, *where, "--overwrite"]

    def arguments(self) -> list[str]:
        """Return the arguments of that command alone."""
        return self.command()[len(COMMAND) - 1 :]

    def reset(self) -> None:
        """Let the old output stand there, and nothing else."""
        for path in self.folder.iterdir():
            remove(path)
        copy(self.old, self.target)

    def state(self) -> str:
        """Return "old", "new", or what else there is; strays beside it are told apart."""
        foreign = [p.name for p in self.folder.iterdir() if p != self.target]
        if unknown := [name for name in foreign if not STRAY.fullmatch(name)]:
            return f"there is {unknown[0]}"
        if not self.target.exists():
            return "nothing is there"
        found = digest(self.target)
        name = next((name for name, whole in self.whole.items() if whole == found), "a mixture")
        return f"{name} and a stray" if foreign else name


@dataclass
class Score:
    """What the trials of one kind came to."""

    name: str
    trials: int = 0
    states: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, state: str, allowed: tuple[str, ...]) -> None:
        """Count a trial; a state that is not allowed is wrong."""
        self.trials += 1
        self.states[state] += 1
        if state not in allowed:
            self.wrong.append(state)


WHOLE = ("old", "new", "old and a stray", "new and a stray")


def remove(path: Path) -> None:
    """Remove a file or a directory."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def copy(source: Path, target: Path) -> None:
    """Copy a file or a directory."""
    shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)


def digest(path: Path) -> str:
    """Return a digest of a file, or of the names and contents in a directory."""
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.relative_to(path)} {content}\n".encode())
    return total.hexdigest()


def stages(checkpoint: Path, work: Path) -> Iterator[Stage]:
    """Prepare a file and a directory as targets; the old output comes of other weights."""
    other = work / "other.pth"
    disturbed(checkpoint, other)
    for kind, (name, layout) in TARGETS.items():
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
    """Write a checkpoint that differs in one number."""
    from mae_convert.containers import LazyTensor, open_container, write_file

    opened = open_container(checkpoint)
    tensors = list(opened.tensors.values())
    first = tensors[0].load().copy()
    first.flat[0] += 1
    tensors[0] = LazyTensor.from_array(tensors[0].name, first)
    write_file(other, "pth", tensors, config=opened.config)


def start(command: list[str]) -> subprocess.Popen:
    """Start a command."""
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def run(command: list[str]) -> tuple[int, str]:
    """Run a command; return its status and what it said on standard error."""
    with start(command) as child:
        said = child.communicate(timeout=600)[1]
    return child.returncode, said


def and_again(stage: Stage, state: str) -> str:
    """Run again undisturbed: it must succeed and sweep what was left; else say what is wrong."""
    status, said = run(stage.command())
    if status or stage.state() != "new":
        return f"{state}, then status {status}, {stage.state()}: {said[-200:]}"
    return state


def killed(stage: Stage, moments: int, chance: random.Random) -> Score:
    """Kill at random moments."""
    score = Score("killed at a random moment")
    for _ in range(moments):
        stage.reset()
        with start(stage.command()) as child:
            time.sleep(chance.uniform(0, stage.duration * 1.05))
            child.kill()
        score.add(and_again(stage, stage.state()), WHOLE)
    return score


def killed_at_each_step(stage: Stage, *_: object) -> Score:
    """Kill at everything that is done to files, one after the other, until none is left."""
    score = Score("killed at each step")
    for step in range(1, 10_000):
        stage.reset()
        status, _ = run([sys.executable, "-c", STEP_BY_STEP, str(step), *stage.arguments()])
        state = stage.state()
        if status == 0:
            break
        score.add(and_again(stage, state), WHOLE)
    return score


def interrupted(stage: Stage, moments: int, chance: random.Random) -> Score:
    """Press Ctrl-C at random moments: status 130, one line, and nothing left behind."""
    score = Score("Ctrl-C at a random moment")
    for _ in range(moments):
        stage.reset()
        with start([sys.executable, "-c", SAYING_WHEN, *stage.arguments()]) as child:
            child.stderr.readline()
            time.sleep(chance.uniform(0, stage.duration))
            child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=600)
        expected = {130: "old", 0: "new"}.get(child.returncode)
        state, lines = stage.state(), said.strip().splitlines()
        if state != expected or len(lines) > 1:
            state = f"status {child.returncode}, {state}, said {lines[-1:]}"
        score.add(state, ("old", "new"))
    return score


@contextlib.contextmanager
def held(stage: Stage, source: Path | None = None) -> Iterator[subprocess.Popen]:
    """Start a conversion and hold it where it begins to write; it goes on after the body."""
    child = start(stage.command(source))
    while child.poll() is None and all(p == stage.target for p in stage.folder.iterdir()):
        time.sleep(0.0005)
    child.send_signal(signal.SIGSTOP)
    yield child
    child.send_signal(signal.SIGCONT)


def refused(stage: Stage, child: subprocess.Popen, words: str) -> str:
    """Return the state of a conversion that must end with status 2 and these words in one line."""
    _, said = child.communicate(timeout=600)
    lines = said.strip().splitlines()
    if child.returncode == 2 and len(lines) == 1 and re.search(words, said):
        return stage.state()
    return f"status {child.returncode}, {stage.state()}: {said[-300:]}"


def on_a_full_disk(stage: Stage, moments: int, chance: random.Random) -> Score:
    """Let the disk be too small from the beginning, or fill it while the output is written."""
    score = Score("disk full")
    for number in range(max(4, moments // 10)):
        too_small = number % 2
        free = int(stage.size * chance.uniform(0.01, 0.95)) if too_small else int(stage.size * 1.2)
        with mounted(stage.folder, f"size={stage.size + free + 200_000}"):
            stage.reset()
            filler = stage.folder / ".mae-convert-filler"
            with held(stage) as child:
                if not too_small:
                    fill(filler, chance.uniform(0.3, 1))
            _, said = child.communicate(timeout=600)
            filler.unlink(missing_ok=True)
            lines = said.strip().splitlines()
            good = child.returncode == 2 and len(lines) == 1
            good = good and re.search("no space left|MB are free", said)
            score.add(stage.state() if good else f"status {child.returncode}: {said}", ("old",))
    return score


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount a small file system in memory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(path: Path, share: float) -> None:
    """Fill a share of what is free on a disk."""
    free = os.statvfs(path.parent)
    with contextlib.suppress(OSError):
        path.write_bytes(bytes(int(free.f_bavail * free.f_frsize * share)))


def beyond_a_size(stage: Stage, moments: int, chance: random.Random) -> Score:
    """Let no file grow beyond a size."""
    score = Score("file size limited")
    for _ in range(max(2, moments // 20)):
        stage.reset()
        largest = int(stage.size * chance.uniform(0.05, 0.9)) // 1024
        child = start(["bash", "-c", f'ulimit -f {largest}; exec "$@"', "x", *stage.command()])
        score.add(refused(stage, child, "larger than is allowed"), ("old",))
    return score


def read_only(stage: Stage, *_: object) -> Score:
    """Convert into what may not be written to: a read-only mount, and a directory."""
    score = Score("read-only")
    with mounted(stage.folder, "size=90%"):
        stage.reset()
        subprocess.run(["mount", "-o", "remount,ro", stage.folder], check=True)
        score.add(refused(stage, start(stage.command()), "read-only"), ("old",))
    stage.reset()
    stage.folder.chmod(0o555)
    child = start([*WITHOUT_PRIVILEGES, *stage.command()])
    score.add(refused(stage, child, "permission"), ("old",))
    stage.folder.chmod(0o755)
    return score


def shrinking(stage: Stage, moments: int, chance: random.Random) -> Score:
    """Let the source shrink, or be written to, while it is read."""
    score = Score("source changed meanwhile")
    size = stage.source.stat().st_size
    for number in range(max(4, moments // 10)):
        stage.reset()
        source = stage.folder.parent / "changing.pth"
        shutil.copyfile(stage.source, source)
        with held(stage, source) as child, source.open("r+b") as stream:
            place = int(size * chance.uniform(0.1, 0.9))
            if number % 2:
                stream.truncate(place)
            else:
                stream.seek(place)
                stream.write(b"\xff" * 64)
        score.add(refused(stage, child, "changed while it was read"), ("old",))
        source.unlink()
    return score


def racing(stage: Stage, moments: int, _: random.Random) -> Score:
    """Start two runs at one target: one wins, the other says so, or they come one by one."""
    score = Score("two runs at one target")
    for number in range(max(4, moments // 10)):
        stage.reset()
        command = stage.command()
        if number % 2:  # nothing is there, and nothing may be replaced
            remove(stage.target)
            command.remove("--overwrite")
        children = [start(command) for _ in range(2)]
        said = [child.communicate(timeout=600)[1].strip() for child in children]
        statuses = sorted(child.returncode for child in children)
        told = [text for text in said if re.search("exists already|in the meantime", text)]
        state = stage.state()
        if statuses not in ([0, 0], [0, 2]) or len(told) != statuses.count(2):
            state = f"statuses {statuses}, {state}: {said}"
        score.add(state, ("new",))
    return score


NEEDS_ROOT = (on_a_full_disk, read_only)
TRIALS: tuple[Callable[..., Score], ...] = (
    *(killed, killed_at_each_step, interrupted, on_a_full_disk, beyond_a_size, read_only),
    *(shrinking, racing),
)


def row(stage: Stage, score: Score) -> str:
    """Return a line of the table."""
    whole = [
        sum(count for state, count in score.states.items() if state.split(" and ")[0] == which)
        for which in ("old", "new")
    ]
    strays = sum(count for state, count in score.states.items() if state.endswith("and a stray"))
    cells = (stage.folder.name, score.name, score.trials, *whole, strays, len(score.wrong))
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> int:
    """Run all trials and print what they came to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=200, help="kills, and interrupts, of each")
    parser.add_argument("--checkpoint", type=Path, default=DEMO)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], metavar="TRIAL", help="names of functions")
    parser.add_argument("--work", type=Path, help="where to make the files")
    given = parser.parse_args()
    chosen = [trial for trial in TRIALS if not given.only or trial.__name__ in given.only]
    wrong = 0
    print("| target | what is done to it | trials | old | new | left a stray | wrong |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=given.work) as work:
        for stage in stages(given.checkpoint.resolve(), Path(work)):
            for trial in chosen:
                if trial in NEEDS_ROOT and os.geteuid() != 0:
                    print(f"| {stage.folder.name} | {trial.__name__}: needs root | 0 | | | | |")
                    continue
                score = trial(stage, given.moments, random.Random(given.seed))
                wrong += len(score.wrong)
                print(row(stage, score), flush=True)
                for state in score.wrong[:5]:
                    print(f"    {state}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
