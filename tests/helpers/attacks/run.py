"""Open each file of the corpus and record the effects: python -m attacks.run, in tests/."""

import contextlib
import importlib
import os
import shutil
import sys
import tempfile
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mae_convert
from attacks import ATTACKS, Attack
from attacks.corpus import GOLDEN, MODEL
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import MaeConvertError
from mae_convert.files.strict_json import check_document
from mae_convert.formats import open_container

LARGEST = 64_000_000
LONGEST = 3.0
FORBIDDEN = (
    "import", "exec", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
    "subprocess.Popen", "pickle.find_class", "marshal.loads", "marshal.load", "socket.", "ctypes.",
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "shutil.", "webbrowser.open", "urllib.Request", "mmap.",
)  # fmt: skip

# These files may be opened: they are read so that no message contains their secrets.
CREDENTIALS = tuple(
    str(Path(name).expanduser()) for name in ("~/.cache/huggingface/token", "~/.aws/credentials")
)


class _Watch:
    """Records Python's audit events (PEP 578) while it is active."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple) -> None:
        if self.folder is None:
            return
        opened = str(arguments[0]) if event == "open" else self.folder
        elsewhere = not opened.startswith(self.folder) and opened not in CREDENTIALS
        if elsewhere or event.startswith(FORBIDDEN):
            self.seen.append(f"{event} {arguments[:1]!r:.200}")

    @contextlib.contextmanager
    def of(self, folder: Path) -> Iterator[list[str]]:
        self.folder, self.seen = str(folder), []
        try:
            yield self.seen
        finally:
            self.folder = None


WATCH = _Watch()


@dataclass(frozen=True)
class Outcome:
    """The outcome of an attack.

    Attributes:
        message: the message with which the file was refused, or None.
        expected: the weights that must be read, or None if the file must be refused.
        weights: the weights that were read, or None.
        error: another exception that was raised, or None.
        memory: the peak of the allocated memory in bytes.
        seconds: the duration.
        events: audit events that a reader of a file must not cause.
    """

    message: str | None
    error: str | None
    memory: int
    seconds: float
    events: tuple[str, ...]
    expected: dict[str, list[float]] | None = None
    weights: dict[str, list[float]] | None = None

    def complaint(self) -> str | None:
        """Return a description of what is wrong with the outcome, or None."""
        if self.error:
            return f"raised {self.error}"
        if self.expected is not None:
            if self.weights != self.expected:
                return f"was not read unchanged, but as {self.weights} ({self.message})"
            return f"did {self.events[0]}" if self.events else None
        if self.message is None:
            return "was not refused"
        if "\n" in self.message or len(self.message) > 900:
            return f"was refused with more than a sentence: {self.message[:300]!r}"
        if self.memory > LARGEST or self.seconds > LONGEST:
            return f"took {self.memory / 1e6:.0f} MB and {self.seconds:.1f} s"
        return f"did {self.events[0]}" if self.events else None


def outcome(attack: Attack, folder: Path, *, timed: bool = False) -> Outcome:
    """Create a malicious file, open it, read all of it and plan its conversions.

    Either the memory or the time is measured, because measuring memory takes ten times as long.
    """
    path = attack.build(folder)
    message = error = weights = None
    if not timed:
        tracemalloc.start()
    started = time.process_time()
    with WATCH.of(folder) as events, contextlib.chdir(folder):
        try:
            read_everything(path, as_model=attack.container in MODELS)
            if attack.weights is not None:
                tensors = open_container(path).tensors
                weights = {name: tensor.load().tolist() for name, tensor in tensors.items()}
        except MaeConvertError as caught:
            message = str(caught)
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"[:300]
    seconds = time.process_time() - started if timed else 0.0
    memory = 0 if timed else tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    marks = ["a flag was set"] if (folder / "PWNED").exists() else []
    events = (*marks, *events)
    return Outcome(message, error, memory, seconds, events, attack.weights, weights)


MODELS = ("names", "config.json", "preprocessor_config.json", "conversion.json")


def read_everything(path: Path, *, as_model: bool) -> None:
    """Open a file and read all its tensors; with `as_model`, also plan its conversions."""
    if not as_model:
        for tensor in open_container(path).tensors.values():
            for _ in tensor.pieces():
                pass
        return
    source = open_checkpoint(path)
    for tensor in plan_conversion(source, path.with_name("out.weights.h5"), "keras").tensors:
        for _ in tensor.pieces():
            pass


def warm_up() -> None:
    """Import all modules that reading valid files imports."""
    read_everything(MODEL, as_model=True)
    for pattern in ("*/*.pth", "*/*.safetensors", "*/*.h5", "*/*.npz"):
        for path in sorted(GOLDEN.glob(pattern))[:1]:
            read_everything(path, as_model=False)
    importlib.import_module("mae_convert.formats.keras_archive")  # of which none is there
    for schema in (Path(mae_convert.__file__).parent / "data" / "schemas").glob("*.json"):
        with contextlib.suppress(MaeConvertError):
            check_document(None, schema.stem, "a document", "")
    with contextlib.suppress(MaeConvertError):  # a misfit, for which names are compared
        open_checkpoint(sorted(GOLDEN.glob("*/golden.npz"))[0])


def main() -> int:
    """Print a line for each file format, and each wrong outcome; return 1 if there is one."""
    warm_up()
    counts: dict[str, int] = defaultdict(int)
    refused: dict[str, int] = defaultdict(int)
    read: dict[str, int] = defaultdict(int)
    memory: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    for attack in ATTACKS:
        complaints = []
        for timed in (False, True):
            folder = Path(tempfile.mkdtemp())
            result = outcome(attack, folder, timed=timed)
            shutil.rmtree(folder)
            complaints += [result.complaint()] if result.complaint() else []
            memory[attack.container] = max(memory[attack.container], result.memory)
            seconds[attack.container] = max(seconds[attack.container], result.seconds)
        if complaints:
            print(f"{attack} {complaints[0]}")
        counts[attack.container] += 1
        counter = refused if attack.weights is None else read
        counter[attack.container] += not complaints
    print("| container | files | refused in a sentence | read unharmed | most memory | longest |")
    print("|---|---|---|---|---|---|")
    for name, count in counts.items():
        cells = (name, count, refused[name], read[name], f"{memory[name] / 1e6:.1f} MB")
        print("| " + " | ".join(map(str, cells)) + f" | {seconds[name]:.2f} s |")
    totals = [sum(counter.values()) for counter in (counts, refused, read)]
    print("{} files, {} refused, {} read unharmed; nothing was run".format(*totals))
    return int(totals[0] != totals[1] + totals[2])


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.exit(main())
