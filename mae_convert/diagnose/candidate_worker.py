"""The child process of candidate runs: it runs one model with different hypotheses applied.

It is started as ``python candidate_worker.py JOB.json``. It reads one request per line from
standard input and writes one response per line to standard output.
"""

import importlib.util
import json
import os
import queue
import sys
import threading
from pathlib import Path
from types import ModuleType

WORKER = Path(__file__).resolve().parents[1] / "runtime" / "worker.py"


def serve(job_path: Path, worker: ModuleType) -> None:
    """Answer the requests on standard input; exit the process when standard input is closed.

    This function does not return.

    Args:
        job_path: the JSON file that describes the model to run.
        worker: the module with the functions that all child processes need.
    """
    worker.be_killed_with_parent()
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    worker.note_stage(job_path, "importing torch")
    from mae_convert.diagnose.candidate_run import CandidateRun

    # Output of libraries must not be mixed with the responses.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker.note_stage(job_path, "loading the weights")
    run = CandidateRun.from_description(json.loads(job_path.read_text()))
    while True:
        worker.note_stage(job_path, "waiting for a request")
        request = json.loads(requests.get())
        worker.note_stage(job_path, "running a changed model")
        print(json.dumps(run.answer(request)), file=answers, flush=True)


def _read(requests: "queue.SimpleQueue[str]") -> None:
    """Put the lines of standard input into a queue; exit the process when standard input ends.

    Standard input also ends when the parent process ends.
    """
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


def main() -> int:
    """Answer requests about the model in the job file that the command line specifies."""
    spec = importlib.util.spec_from_file_location("worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    for package in ("mae_convert", "reference_models"):
        worker.expose(package)
    serve(Path(sys.argv[1]), worker)
    return 0


if __name__ == "__main__":
    sys.exit(main())
