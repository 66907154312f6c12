"""Jobs of a sweep in tests whose processes die once or always, or hang."""

import os
import signal
from dataclasses import replace
from pathlib import Path

from mae_convert.sweep.run_job import run_job


def dies_once(job, threads, server):
    """Be killed, as for lack of memory, unless an earlier run of the job has created its file."""
    mark = Path(f"{job.target}.begun")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return run_job(job, threads, server)


def dies(job, threads, server):
    os.kill(os.getpid(), signal.SIGKILL)


def forks(job, threads, server):
    """Return a row whose cause has the exit status of each forked runner."""
    forked, fork = [], server.fork

    def recorded(*arguments, **streams):
        forked.append(fork(*arguments, **streams))
        return forked[-1]

    server.fork = recorded
    row = run_job(job, threads, server)
    return replace(row, cause=str([child and child.returncode for child in forked]))


def hangs(job, threads, server):
    """Write the process id, and wait to be ended."""
    import time

    Path(f"{job.target}.pid").write_text(str(os.getpid()))
    time.sleep(600)
