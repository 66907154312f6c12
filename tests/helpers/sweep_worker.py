"""Jobs of a sweep in tests whose processes die once or always, or hang."""

import os
import signal
from pathlib import Path

from mae_convert.sweep.run_job import run_job


def dies_once(job, threads):
    """Be killed, as for lack of memory, unless an earlier run of the job has created its file."""
    mark = Path(f"{job.target}.begun")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return run_job(job, threads)


def dies(job, threads):
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(job, threads):
    """Write the process id, and wait to be ended."""
    import time

    Path(f"{job.target}.pid").write_text(str(os.getpid()))
    time.sleep(600)
