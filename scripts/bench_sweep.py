"""Measure the overhead of a sweep and the speed-up by workers: bench_sweep.py CHECKPOINT.

The same jobs are run in turn by calling the function in a loop, by one worker, and by two; the
shortest time of each is printed. Memory is the peak of all processes of a job together.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mae_convert.sweep.memory import available_cores, memory_needed_by
from mae_convert.sweep.plan_fields import Job
from mae_convert.sweep.process_pool import limits, run_local
from mae_convert.sweep.result import Row
from mae_convert.sweep.run_job import run_job


def main() -> None:
    """Measure, and print a line for each method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--verify", action="store_true", help="verify each conversion too")
    parser.add_argument("--num-heads", type=int)
    args = parser.parse_args()
    cores = available_cores()
    ways: dict[str, Callable[[Sequence[Job]], list[Row]]] = {
        "a loop": lambda jobs: [run_job(job, cores) for job in jobs],
        "1 worker": lambda jobs: list(run_local(jobs, limits(1))),
        "2 workers": lambda jobs: list(run_local(jobs, limits(2))),
    }
    best: dict[str, float] = {}
    peak, needed = 0, 0
    for _ in range(args.rounds):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                jobs = jobs_of(args, Path(folder))
                start = time.perf_counter()
                rows = way(jobs)
                seconds = time.perf_counter() - start
            assert all(row.is_good for row in rows), [row.error or row.cause for row in rows]
            print(f"  {name}: {seconds:.1f} s", flush=True)
            best[name] = min(seconds, best.get(name, seconds))
            peak, needed = (
                max(peak, *(row.peak_memory or 0 for row in rows)),
                memory_needed_by(jobs[0]),
            )
    loop = best["a loop"]
    for name, seconds in best.items():
        print(f"{name:<10}{seconds:8.1f} s for {args.jobs} jobs{seconds / loop - 1:+8.1%}")
    print(f"memory of a job: {peak / 1e9:.2f} GB, estimated {needed / 1e9:.2f} GB")


def jobs_of(args: argparse.Namespace, folder: Path) -> list[Job]:
    """Return jobs that differ in their targets."""
    fields = {"to": "transformers-tf", "verify": args.verify}
    if args.num_heads:
        fields["num_heads"] = args.num_heads
    source = str(args.checkpoint.resolve())
    return [Job(source, str(folder / f"{n}"), fields) for n in range(args.jobs)]


if __name__ == "__main__":
    main()
