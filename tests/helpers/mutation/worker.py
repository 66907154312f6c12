"""Run many jobs in one child process, each with a fault in the code if the list names one.

python worker.py FRAMEWORK LIST.json: the list contains pairs of a job's file and a fault or null.
The error of a failed job is written beside its trace, as TRACE.error.
"""

import json
import os
import sys
from pathlib import Path


def main(framework: str, listed: Path) -> None:
    sys.path[:0] = [str(Path(__file__).resolve().parents[3]), str(Path(__file__).parents[1])]
    os.environ["KERAS_BACKEND"] = framework
    if framework == "torch":
        import torch

        from mutation.code_pytorch import fault

        # A forked process has imported PyTorch, which reads the variable when it is imported.
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    else:
        from mutation.code_keras import fault
    from mae_convert.runtime.job import Job
    from mae_convert.runtime.worker import run

    for path, name in json.loads(listed.read_text()):
        try:
            with fault(name):
                run(Path(path))
        except Exception as error:
            output = Job.load(Path(path)).output
            Path(f"{output}.error").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
