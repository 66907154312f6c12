"""The child process in which hypotheses are tried: one model, run again and again with a change.

It is started as ``python laboratory.py JOB.json`` like the worker of a trace, reads a request a
line from standard input and answers each by a line on standard output.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

WORKER = Path(__file__).resolve().parents[1] / "worker.py"


def serve(job_path: Path) -> None:
    """Answer requests until there are no more."""
    from mae_convert.verify.explain.trial import Trial

    # What a library prints is not to come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    trial = Trial.of(json.loads(job_path.read_text()))
    for line in sys.stdin:
        print(json.dumps(trial.answer(json.loads(line))), file=answers, flush=True)


def main() -> int:
    """Serve the job named on the command line."""
    spec = importlib.util.spec_from_file_location("worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    for package in ("mae_convert", "reference_models"):
        worker.expose(package)
    serve(Path(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
