"""The overhead of a sweep and the speed-up by workers: bench_sweep.py CHECKPOINT.

The same jobs are run alternately by calling the function in a loop, by one worker, and by two.
`benchmark.py --only sweep` does this with small checkpoints, every tenth of which is also verified.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench_conversions import ROOT
from bench_measure import by_turns, median, ratio, table

from mae_convert.formats import LazyTensor, open_container, write_file
from mae_convert.sweep.memory import available_cores, memory_needed_by
from mae_convert.sweep.plan_fields import Job
from mae_convert.sweep.process_pool import limits, run_local
from mae_convert.sweep.result import Row
from mae_convert.sweep.run_job import run_job

SMALL = ROOT / "tests/data/golden/pretrain_tiny/checkpoint.pth"
HEADS = {"num_heads": 4, "decoder_num_heads": 3}
VERIFIED = {"verify": True, "framework_a": "torch", "framework_b": "torch"}


def main() -> None:
    """Measure jobs that convert one checkpoint, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--verify", action="store_true", help="verify each conversion too")
    parser.add_argument("--num-heads", type=int)
    args = parser.parse_args()
    fields: dict[str, Any] = {"to": "transformers-tf", "verify": args.verify}
    if args.num_heads:
        fields["num_heads"] = args.num_heads
    source = str(args.checkpoint.resolve())
    print(table(list(measured([(source, fields)] * args.jobs, args.rounds))))


def rows(folder: Path, count: int, rounds: int) -> Iterator[dict[str, object]]:
    """Yield a row for each method: `count` small checkpoints, every tenth of them verified."""
    folder.mkdir(exist_ok=True)
    tensors = open_container(SMALL).tensors
    jobs: list[tuple[str, dict[str, Any]]] = []
    for number in range(count):
        path = folder / f"{number}.pth"
        values = tensors["cls_token"].load() + np.float32(number / count)
        changed = LazyTensor("cls_token", values.shape, values.dtype, lambda values=values: values)
        write_file(path, "pth", {**tensors, "cls_token": changed}.values())
        verified = {} if number % 10 else VERIFIED
        jobs.append((str(path), {"to": "transformers", **HEADS, **verified}))
    yield from measured(jobs, rounds)


def measured(jobs: Sequence[tuple[str, dict[str, Any]]], rounds: int) -> Iterator[dict]:
    """Yield a row for each method; `jobs` are sources and fields."""
    cores = available_cores()
    ways: dict[str, Callable[[Sequence[Job]], list[Row]]] = {
        "a loop": lambda these: [run_job(job, cores) for job in these],
        "1 worker": lambda these: list(run_local(these, limits(1))),
        "2 workers": lambda these: list(run_local(these, limits(2))),
    }
    results = by_turns({name: partial(_run, way, jobs) for name, way in ways.items()}, rounds)
    needed = max(memory_needed_by(Job(source, None, fields)) for source, fields in jobs)
    loop = [seconds for seconds, _ in results["a loop"]]
    for name, these in results.items():
        yield {
            "method": name,
            "jobs": len(jobs),
            "s": f"{median(seconds for seconds, _ in these):.1f}",
            "of the loop": f"{ratio((seconds for seconds, _ in these), loop):.2f}",
            "memory of a job, GB": f"{max(peak for _, peak in these) / 1e9:.2f}",
            "estimated, GB": f"{needed / 1e9:.2f}",
        }


def _run(
    way: Callable[[Sequence[Job]], list[Row]], jobs: Sequence[tuple[str, dict[str, Any]]]
) -> tuple[float, int]:
    """Return the seconds of all jobs, and the peak memory of one with its child processes."""
    with tempfile.TemporaryDirectory() as folder:
        these = [Job(s, str(Path(folder) / f"{n}"), fields) for n, (s, fields) in enumerate(jobs)]
        start = time.perf_counter()
        made = way(these)
        seconds = time.perf_counter() - start
    if failed := [row.error or row.cause for row in made if not row.is_good]:
        raise SystemExit(f"{len(failed)} jobs failed, the first one with: {failed[0]}")
    return seconds, max(row.peak_memory or 0 for row in made)


if __name__ == "__main__":
    main()
