"""Candidate runs in this process, without a child process for each fault."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from mae_convert.diagnose.candidate_process import CandidateProcess
from mae_convert.diagnose.candidate_run import CandidateRun
from mae_convert.runtime.trace import Side


class InProcess(CandidateProcess):
    """Runs candidates without a child process."""

    def _start(self, description: Mapping[str, Any], side: Side, opened: ExitStack) -> None:
        self._run = CandidateRun.from_description(description)

    def _send(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return self._run.answer(request)
