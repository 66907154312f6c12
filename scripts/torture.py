"""Kill and interrupt conversions, fill the disk, run conversions in parallel; check the files.

python scripts/torture.py --moments 200                    # the small checkpoint in mae-convert
python scripts/torture.py --moments 200 --checkpoint X.pth # a checkpoint of any size

Each trial converts a checkpoint over an existing output and disturbs the conversion. All trials are
run with a file as the output, and again with a directory. Afterwards the old or the new output must
be complete, with at most a hidden directory beside it, and a second run must succeed and leave no
other files. The script prints a table; the exit status is 1 if a trial failed. Trials with a full
disk or a read-only file system need root.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from torture_stage import TARGETS, stages
from torture_trials import TRIALS, Trial

DEMO = Path(__file__).resolve().parents[1] / "mae_convert" / "data" / "demo" / "checkpoint.pth"


def row(target: str, trial_run: Trial, states: Sequence[str]) -> str:
    """Return a line of the table of results, followed by lines for the first five failures.

    Args:
        target: the kind of output: "file" or "directory".
        trial_run: the kind of trial.
        states: the states of the output after the trials.
    """
    count = Counter(states)
    counts = [
        count[which] + count[f"{which}, beside a hidden directory"] for which in ("old", "new")
    ]
    strays = sum(count[f"{which}, beside a hidden directory"] for which in ("old", "new"))
    wrong = [state for state in states if state not in trial_run.allowed]
    cells = (target, trial_run.name, len(states), *counts, strays, len(wrong))
    return "\n    ".join(["| " + " | ".join(map(str, cells)) + " |", *wrong[:5]])


def main() -> int:
    """Run all trials and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--moments", type=int, default=200, help="number of kills and of interrupts for each target"
    )
    parser.add_argument("--checkpoint", type=Path, default=DEMO)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=TRIALS, default=list(TRIALS))
    parser.add_argument(
        "--target", choices=TARGETS, action="append", help="kind of output (default: both)"
    )
    parser.add_argument(
        "--work", type=Path, help="existing directory for the temporary files of the trials"
    )
    given = parser.parse_args()
    if not given.checkpoint.is_file():
        parser.error(f"{given.checkpoint} is not a file")
    if given.work and not given.work.is_dir():
        parser.error(f"{given.work} is not a directory")
    # Processes in the background of a shell ignore Ctrl-C, and so would their children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    wrong = False
    print("| target | disturbance | trials | old | new | left a hidden directory | wrong |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=given.work) as work:
        for stage in stages(given.checkpoint.resolve(), Path(work), given.target or TARGETS):
            for trial_run in (TRIALS[name] for name in given.only):
                if trial_run.needs_root and os.geteuid() != 0:
                    print(f"| {stage.folder.name} | {trial_run.name}: needs root | 0 | | | | |")
                    continue
                times = max(2, round(given.moments * trial_run.share))
                states = list(trial_run.run(stage, times, random.Random(given.seed)))
                print(row(stage.folder.name, trial_run, states), flush=True)
                wrong |= not set(states) <= set(trial_run.allowed)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
