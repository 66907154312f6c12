"""Open thousands of corrupted files, and check that each is read or refused with a message.

python scripts/fuzz.py --inputs 200000 --state fuzz.jsonl   # continues an interrupted run
python scripts/fuzz.py --inputs 200000 --coverage           # guided by atheris, if it is installed

Valid files of each format are corrupted at random, opened and read completely, and their conversion
to every layout is planned; certificates and traces are read and compared. Only errors of
mae-convert may be raised; no input may take more than 10 seconds of CPU time or 256 MB of memory.
Each child process examines a few thousand inputs; a child process that is killed counts as a crash.
The script prints a summary; the exit status is 1 if an input failed.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np
from fuzz_proofs import examine_certificate, examine_trace
from fuzz_seeds import Seed, make_seeds

from mae_convert.checkpoint.inspect import inspect
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import MaeConvertError
from mae_convert.families.checkpoint_options import Flags
from mae_convert.families.mae.layouts import LAYOUTS
from mae_convert.formats import open_container

LONGEST = 10
MOST_MEMORY = 256 << 20
LONGEST_SENTENCE = 2000
SHARD = 2000
SUFFIXES = {"facebook": ".pth", "keras": ".weights.h5", "keras-hub": ".weights.h5"}
FLAGS = Flags(num_attention_heads=2, decoder_num_attention_heads=2)


@dataclass
class Tally:
    """The numbers of inputs by outcome, and the failures by kind."""

    container: str
    inputs: int = 0
    read: int = 0
    refused: int = 0
    crashes: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    overruns: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Add the numbers of another tally."""
        self.inputs += other.inputs
        self.read += other.read
        self.refused += other.refused
        self.crashes += other.crashes
        self.hangs += other.hangs
        self.overruns += other.overruns


class HangError(BaseException):
    """Raised if an input takes too long; not an `Exception`, so that no other code catches it."""


def examine(path: Path) -> None:
    """Open a checkpoint, read everything in it, and plan its conversions.

    Raises:
        MaeConvertError: the file is refused.
    """
    for tensor in open_container(path).tensors.values():
        for piece in tensor.pieces():
            piece.view(np.uint8).max()
    checkpoint = open_checkpoint(path, FLAGS)
    inspect(checkpoint)
    for name, layout in LAYOUTS.items():
        target = path.parent / f"out{SUFFIXES.get(name, '.safetensors')}"
        target = path.parent / "out" if layout.weights_name else target
        try:
            plan = plan_conversion(checkpoint, target, name)
        except MaeConvertError:
            continue
        for tensor in plan.tensors:
            for piece in tensor.pieces():
                piece.view(np.uint8).max()


EXAMINERS: Mapping[str, Callable[[Path], None]] = {
    "trace": examine_trace,
    "verification.json": examine_certificate,
    "verification.safetensors": examine_certificate,
}


def judge(path: Path, tally: Tally, name: str) -> None:
    """Examine a corrupted file, and count the outcome in `tally`.

    Args:
        path: the file, or the directory that contains it.
        tally: the counts of the outcomes, which are changed.
        name: the name of the input in descriptions of failures.
    """
    tally.inputs += 1
    signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST)
    try:
        EXAMINERS.get(tally.container, examine)(path)
        tally.read += 1
    except MaeConvertError as error:
        tally.refused += 1
        if _ran_out_of_memory(error):
            tally.overruns.append(f"{name}: {error}")
        if "\n" in str(error) or len(str(error)) > LONGEST_SENTENCE:
            tally.crashes.append(f"{name}: not a sentence: {str(error)[:200]!r}")
    except HangError:
        tally.hangs.append(name)
    except MemoryError:
        tally.overruns.append(name)
    except Exception as error:
        tally.crashes.append(f"{name}: {type(error).__name__}: {error}"[:300])
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _ran_out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def run_shard(seed: Seed, numbers: range, work: Path) -> Tally:
    """Open corrupted versions of a file, and return the counts of the outcomes.

    Each number in `numbers` determines one version. The versions are written into `work` one after
    another.
    """
    tally = Tally(seed.container)
    folder = work / "case"
    shutil.copytree(seed.folder, folder)
    for number in numbers:
        (folder / seed.name).write_bytes(seed.spoiled(number))
        judge(folder / seed.opened, tally, f"{seed.container} {number}")
    return tally


def limit_this_process() -> None:
    """Limit the time for each input, and the memory that this process may allocate from now on."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise HangError

    signal.signal(signal.SIGVTALRM, late)
    status = Path("/proc/self/status").read_text()
    used = int(status.split("VmData:")[1].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (used + MOST_MEMORY, resource.RLIM_INFINITY))


def child(container: str, numbers: range, coverage: bool) -> None:
    """Examine one shard, a range of inputs of one format, and print its `Tally` as JSON.

    Args:
        container: the format.
        numbers: the numbers of the inputs, which determine their mutations.
        coverage: whether atheris guides the mutations; see `fuzz_guided.py`.
    """
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        seeds = {seed.container: seed for seed in make_seeds(Path(name))}
        seed = seeds[container]
        # Examine the valid file, so that all modules are imported before memory is limited.
        with contextlib.suppress(MaeConvertError):
            EXAMINERS.get(container, examine)(seed.folder / seed.opened)
        if coverage:
            from fuzz_guided import run_guided

            run_guided(seed, len(numbers), numbers.start, Path(name), judge, Tally(container))
        limit_this_process()
        print(json.dumps(asdict(run_shard(seed, numbers, Path(name)))), flush=True)


def shards(containers: Sequence[str], inputs: int) -> Iterator[tuple[str, int, int]]:
    """Yield ranges (format, start, stop) of inputs, in turn for all formats.

    Args:
        containers: the formats.
        inputs: the number of inputs of all formats together.
    """
    each = -(-inputs // len(containers))
    for start in range(0, each, SHARD):
        for container in containers:
            yield container, start, min(start + SHARD, each)


def run(containers: Sequence[str], inputs: int, state: Path | None, coverage: bool) -> list[Tally]:
    """Run all shards (ranges of inputs) one by one, and return the results of each shard.

    Args:
        containers: the formats.
        inputs: the number of inputs of all formats together.
        state: the file of results. Shards whose results it contains are not run again; the results
            of the other shards are appended. None: all shards are run, and no file is written.
        coverage: whether atheris guides the mutations.
    """
    outcomes: dict[str, dict] = {}
    if state is not None and state.exists():
        outcomes = {line["shard"]: line["tally"] for line in map(json.loads, state.open())}
    for container, start, stop in shards(containers, inputs):
        name = f"{container} {start} {stop}{' guided' * coverage}"
        if name in outcomes:
            continue
        command = [sys.executable, __file__, "--shard", container, str(start), str(stop)]
        command += ["--coverage"] if coverage else []
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
        if ended.returncode == 0 and lines:
            outcomes[name] = json.loads(lines[-1])
        else:  # to find the input that caused the crash, run the shard again
            died = f"{name}: status {ended.returncode}: {ended.stderr[-300:]}"
            outcomes[name] = asdict(Tally(container, stop - start, crashes=[died]))
        if state is not None:
            with state.open("a") as stream:
                stream.write(json.dumps({"shard": name, "tally": outcomes[name]}) + "\n")
        if sys.stderr.isatty():
            total = sum(tally["inputs"] for tally in outcomes.values())
            print(f"\r{total} inputs", end="", file=sys.stderr, flush=True)
    return [Tally(**tally) for tally in outcomes.values()]


def summary(tallies: Sequence[Tally]) -> bool:
    """Print a line for each format and a total; return whether every input passed."""
    total, by_container = Tally("all"), {}
    for tally in tallies:
        by_container.setdefault(tally.container, Tally(tally.container)).add(tally)
        total.add(tally)
    print("| container | inputs | read | refused | crashes | hangs | memory overruns |")
    print("|---|---|---|---|---|---|---|")
    for t in (*by_container.values(), total):
        wrong = (len(t.crashes), len(t.hangs), len(t.overruns))
        print(
            "| " + " | ".join(map(str, (t.container, t.inputs, t.read, t.refused, *wrong))) + " |"
        )
    for kind, names in (("crash", total.crashes), ("hang", total.hangs), ("mem", total.overruns)):
        for name, count in Counter(names).most_common(20):
            print(f"{kind} ({count}): {name}")
    print(
        f"{total.inputs} inputs: {len(total.crashes)} crashes, {len(total.hangs)} hangs, "
        f"{len(total.overruns)} memory overruns"
    )
    return not (total.crashes or total.hangs or total.overruns)


def main() -> int:
    """Run all shards (ranges of inputs) in child processes; with --shard, run only one shard."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument(
        "--state",
        type=Path,
        help="file with the results of finished inputs; an interrupted run continues from it",
    )
    parser.add_argument("--coverage", action="store_true", help="let atheris guide the mutations")
    parser.add_argument("--only", nargs="*", default=[], metavar="CONTAINER")
    parser.add_argument("--shard", nargs=3, metavar=("CONTAINER", "START", "STOP"))
    given = parser.parse_args()
    if given.shard:
        os.nice(10)
        container, *ends = given.shard
        child(container, range(*map(int, ends)), given.coverage)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        containers = [seed.container for seed in make_seeds(Path(folder))]
    for name in given.only:
        if name not in containers:
            parser.error(f"unknown container {name!r}: choose from {', '.join(containers)}")
    chosen = [name for name in containers if not given.only or name in given.only]
    return 0 if summary(run(chosen, given.inputs, given.state, given.coverage)) else 1


if __name__ == "__main__":
    sys.exit(main())
