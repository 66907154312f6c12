"""Measure a sweep's overhead and its speed-up from a second worker: bench_sweep.py CHECKPOINT.

Each round runs the same plan in three ways, each in a new process: by calling `run_job` for each
job in a loop, by ``mae-convert sweep`` with one worker, and with two workers. `benchmark.py --only
sweep` runs the same measurement with small checkpoints, and also verifies every tenth conversion.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench_conversions import PROGRAM, ROOT
from bench_measure import Run, by_turns, median, ratio, run, table

from mae_convert.formats import LazyTensor, open_container, write_file

SMALL = ROOT / "tests/data/golden/pretrain_tiny/checkpoint.pth"
HEADS = {"num_heads": 4, "decoder_num_heads": 3}
VERIFIED = {"verify": True, "framework_a": "torch", "framework_b": "torch"}
LOOP = """
import sys
from mae_convert.sweep.jobs_from_plan import read_plan
from mae_convert.sweep.run_job import run_job
rows = [run_job(job) for job in read_plan(sys.argv[1:], {})]
sys.exit("\\n".join(str(row.error or row.cause) for row in rows if not row.is_good) or 0)
"""


def main() -> None:
    """Time jobs that convert one checkpoint, and print a table of the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--verify", action="store_true", help="verify each conversion too")
    parser.add_argument("--num-heads", type=int)
    args = parser.parse_args()
    entry = {"source": str(args.checkpoint.resolve()), "to": "transformers-tf"}
    entry |= {"verify": args.verify}
    if args.num_heads:
        entry["num_heads"] = args.num_heads
    with tempfile.TemporaryDirectory() as folder:
        print(table(list(measured([entry] * args.jobs, Path(folder), args.rounds))))


def rows(folder: Path, count: int, rounds: int) -> Iterator[dict[str, object]]:
    """Yield a row of the table for each way to convert small checkpoints.

    Args:
        folder: the folder for checkpoints and outputs.
        count: the number of checkpoints; every tenth conversion is verified.
        rounds: how often each way is measured.
    """
    folder.mkdir(exist_ok=True)
    tensors = open_container(SMALL).tensors
    entries: list[dict[str, Any]] = []
    for number in range(count):
        path = folder / f"{number}.pth"
        values = tensors["cls_token"].load() + np.float32(number / count)
        changed = LazyTensor("cls_token", values.shape, values.dtype, lambda values=values: values)
        write_file(path, "pth", {**tensors, "cls_token": changed}.values(), overwrite=True)
        verified = {} if number % 10 else VERIFIED
        entries.append({"source": str(path), "to": "transformers", **HEADS, **verified})
    yield from measured(entries, folder, rounds)


def measured(
    entries: Sequence[dict[str, Any]], folder: Path, rounds: int
) -> Iterator[dict[str, object]]:
    """Yield a row of the table for each way to run jobs: a loop, one worker, and two workers.

    Args:
        entries: the jobs of the plan, without targets.
        folder: the folder for the plan and the outputs.
        rounds: how often each way is measured.
    """
    work = folder / "work"
    plan = [{**entry, "target": str(work / str(n))} for n, entry in enumerate(entries)]
    sweep = [*PROGRAM, "sweep", work / "plan.yaml", "--workers"]
    commands = {
        "a loop": [sys.executable, "-c", LOOP, work / "plan.yaml"],
        "1 worker": [*sweep, "1"],
        "2 workers": [*sweep, "2"],
    }
    ways = {name: partial(_run, command, work, plan) for name, command in commands.items()}
    runs = by_turns(ways, rounds)
    loop = [each.seconds for each in runs["a loop"]]
    for name, these in runs.items():
        yield {
            "method": name,
            "jobs": len(plan),
            "s": f"{median(each.seconds for each in these):.1f}",
            "time / time of the loop": f"{ratio((each.seconds for each in these), loop):.2f}",
            "memory, GB": f"{max(each.anonymous for each in these) / 1e9:.2f}",
        }


def _run(command: list[str | Path], work: Path, plan: list[dict[str, Any]]) -> Run:
    """Run a command, and return its time and memory.

    Before the run, `plan` is written as JSON (which is valid YAML) into the directory `work`, which
    is created anew.
    """
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    (work / "plan.yaml").write_text(json.dumps(plan))
    return run(command)


if __name__ == "__main__":
    main()
