"""A laboratory in this process, so that no child has to be started for each fault."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from mae_convert.diagnose.candidate_process import Laboratory
from mae_convert.diagnose.candidate_run import Trial
from mae_convert.verify.trace import Side


class Bench(Laboratory):
    """Does what a laboratory does, without a child."""

    def _begin(self, described: Mapping[str, Any], side: Side, opened: ExitStack) -> None:
        self._trial = Trial.of(described)

    def _exchange(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return self._trial.answer(request)
