"""The faults that `torture.py` injects into a conversion.

Each trial yields the state of the output after the fault: "old", "new" or a description of an
error.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torture_stage import Stage, remove, run, start

# Without these capabilities, root cannot write to directories without write permission either.
WITHOUT_PRIVILEGES = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")

# Kills the process at its N-th file operation, as reported by Python's audit events (PEP 578).
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

# The start of Python itself is not interrupted.
SAYING_WHEN = """
import sys
from mae_convert.__main__ import main
print("it begins", file=sys.stderr, flush=True)
main()
"""


def and_again(stage: Stage, state: str) -> str:
    """Run the conversion again; return `state`, the state of the output after the first run.

    The second run must succeed and remove the hidden directory that the first run may have left. If
    it does not, a description of the failure is appended to `state`.
    """
    status, printed = run(stage.command())
    if status or stage.state() != "new":
        return f"{state}, then status {status}, {stage.state()}: {printed[-200:]}"
    return state


def killed(stage: Stage, moments: int, chance: random.Random) -> Iterator[str]:
    """Kill the conversion at random moments.

    The state of the output is yielded after each of `moments` trials.
    """
    for _ in range(moments):
        stage.reset()
        with start(stage.command()) as child:
            time.sleep(chance.uniform(0, stage.duration * 1.05))
            child.kill()
        yield and_again(stage, stage.state())


def killed_at_each_step(stage: Stage, *_: object) -> Iterator[str]:
    """Kill the conversion at each of its file operations in turn.

    The state of the output is yielded after each kill.
    """
    status, step = -signal.SIGKILL, 0
    while status:
        step += 1
        stage.reset()
        status, _ = run([sys.executable, "-c", STEP_BY_STEP, str(step), *stage.arguments()])
        yield and_again(stage, stage.state())


def interrupted(stage: Stage, moments: int, chance: random.Random) -> Iterator[str]:
    """Send SIGINT (Ctrl-C) at random moments.

    The conversion must leave the old output and return status 130, or write the new output and
    return 0. It must print at most one line and leave no hidden directory. The state of the output,
    or a description of what went wrong, is yielded after each of `moments` trials.
    """
    for _ in range(moments):
        stage.reset()
        with start([sys.executable, "-c", SAYING_WHEN, *stage.arguments()]) as child:
            child.stderr.readline()
            time.sleep(chance.uniform(0, stage.duration))
            child.send_signal(signal.SIGINT)
            _, stderr = child.communicate(timeout=600)
        state = stage.state()
        expected = {130: "old", 0: "new"}.get(child.returncode)
        good = state == expected and len(stderr.strip().splitlines()) <= 1
        yield state if good else f"status {child.returncode}, {state}, printed {stderr[-300:]}"


@contextlib.contextmanager
def held(stage: Stage, source: Path | None = None) -> Iterator[subprocess.Popen]:
    """Context manager for a conversion that is paused at its first write.

    The process of the conversion is paused while the ``with`` block runs.

    Args:
        stage: the set-up of the trial.
        source: the checkpoint to convert; None for the checkpoint of `stage`.
    """
    child = start(stage.command(source))
    while child.poll() is None and all(p == stage.target for p in stage.folder.iterdir()):
        time.sleep(0.0005)
    child.send_signal(signal.SIGSTOP)
    yield child
    child.send_signal(signal.SIGCONT)


def refused(stage: Stage, child: subprocess.Popen, words: str) -> str:
    """Return the state of the output after a conversion that must be refused with a message.

    The exit status must be 2, and standard error must be one line that matches the pattern `words`.
    Otherwise the result is a description of what the conversion did instead.
    """
    _, stderr = child.communicate(timeout=600)
    if child.returncode == 2 and len(stderr.strip().splitlines()) == 1 and re.search(words, stderr):
        return stage.state()
    return f"status {child.returncode}, {stage.state()}: {stderr[-300:]}"


def on_a_full_disk(stage: Stage, moments: int, chance: random.Random) -> Iterator[str]:
    """Convert to a disk that is too small, or that is filled while the output is written.

    These two trials alternate. The state of the output is yielded after each of `moments` trials.
    The random numbers of `chance` determine the space that is left.
    """
    for number in range(moments):
        too_small = number % 2
        free = int(stage.size * (chance.uniform(0.01, 0.95) if too_small else 1.2))
        with mounted(stage.folder, f"size={stage.size + free + 200_000}"):
            stage.reset()
            filler = stage.folder / "filler"
            with held(stage) as child:
                if not too_small:
                    fill(filler, chance.uniform(0.3, 1))
            child.wait()
            filler.unlink(missing_ok=True)
            yield refused(stage, child, "no space left|are free")


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Context manager that mounts a small in-memory file system on a folder.

    Args:
        folder: the folder.
        options: the mount options of tmpfs, such as "size=90%".
    """
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(path: Path, share: float) -> None:
    """Fill a share of the free space of a disk."""
    free = os.statvfs(path.parent)
    with contextlib.suppress(OSError):
        path.write_bytes(bytes(int(free.f_bavail * free.f_frsize * share)))


def beyond_a_size(stage: Stage, moments: int, chance: random.Random) -> Iterator[str]:
    """Limit the size of each file that the conversion may write to less than its output.

    The state of the output is yielded after each of `moments` trials.
    """
    for _ in range(moments):
        stage.reset()
        largest = int(stage.size * chance.uniform(0.05, 0.9)) // 1024
        child = start(["bash", "-c", f'ulimit -f {largest}; exec "$@"', "x", *stage.command()])
        yield refused(stage, child, "exceed the allowed file size")


def read_only(stage: Stage, *_: object) -> Iterator[str]:
    """Convert to a read-only mount, and to a directory without write permission.

    The state of the output is yielded after each of the two conversions.
    """
    with mounted(stage.folder, "size=90%"):
        stage.reset()
        subprocess.run(["mount", "-o", "remount,ro", stage.folder], check=True)
        yield refused(stage, start(stage.command()), "read-only")
    stage.reset()
    stage.folder.chmod(0o555)
    yield refused(stage, start([*WITHOUT_PRIVILEGES, *stage.command()]), "permission")
    stage.folder.chmod(0o755)


def shrinking(stage: Stage, moments: int, chance: random.Random) -> Iterator[str]:
    """Truncate or overwrite the source while it is read.

    The state of the output is yielded after each of `moments` trials.
    """
    size = stage.source.stat().st_size
    for number in range(moments):
        stage.reset()
        source = stage.folder.parent / "changing.pth"
        shutil.copyfile(stage.source, source)
        with held(stage, source) as child, source.open("r+b") as stream:
            length = int(size * chance.uniform(0.1, 0.9))
            if number % 2:
                stream.truncate(length)
            else:
                stream.seek(length)
                stream.write(b"\xff" * 64)
        yield refused(stage, child, "changed while it was being read")


def racing(stage: Stage, moments: int, *_: object) -> Iterator[str]:
    """Start two runs that write to the same target at the same time.

    One run must succeed; the other must succeed or report the conflict. The state of the output is
    yielded after each of `moments` trials.
    """
    for number in range(moments):
        stage.reset()
        command = stage.command()
        if number % 2:  # the target does not exist, and --overwrite is not passed
            remove(stage.target)
            command.remove("--overwrite")
        children = [start(command) for _ in range(2)]
        stderr = [child.communicate(timeout=600)[1].strip() for child in children]
        statuses = sorted(child.returncode for child in children)
        report = [text for text in stderr if re.search("already exists|in the meantime", text)]
        good = statuses in ([0, 0], [0, 2]) and len(report) == statuses.count(2)
        yield stage.state() if good else f"statuses {statuses}, {stage.state()}: {stderr}"


@dataclass(frozen=True)
class Trial:
    """A kind of fault that is injected into conversions many times."""

    name: str
    """The name of the fault in the table of results."""

    run: Callable[[Stage, int, random.Random], Iterator[str]]
    """Runs the given number of trials and yields the resulting states."""

    allowed: tuple[str, ...]
    """The states that `run` may yield; all other states are failures."""

    share: float = 0.1
    """The number of trials, relative to the number of random kills."""

    needs_root: bool = False
    """Whether the trial mounts file systems."""


WHOLE = ("old", "new", "old, beside a hidden directory", "new, beside a hidden directory")
TRIALS = {
    "kill": Trial("SIGKILL at a random moment", killed, WHOLE, share=1),
    "steps": Trial("SIGKILL at each step in turn", killed_at_each_step, WHOLE),
    "interrupt": Trial("Ctrl-C at a random moment", interrupted, ("old", "new"), share=1),
    "full": Trial("disk full", on_a_full_disk, ("old",), needs_root=True),
    "limit": Trial("file size limited", beyond_a_size, ("old",)),
    "read-only": Trial("read-only", read_only, ("old",), needs_root=True),
    "change": Trial("source shrinks or changes", shrinking, ("old",)),
    "race": Trial("two runs that write to one target", racing, ("new",)),
}
