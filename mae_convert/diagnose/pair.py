"""Two sides that part, and what is found of why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mae_convert.diagnose.process import Laboratory, Subject
from mae_convert.verify.trace import Trace


@dataclass(frozen=True)
class Explanation:
    """What was found by running again.

    Attributes:
        causes: sentences; each was tested and holds.
        guilty: canonical tensors that were changed on the way from A to B, likeliest first.
        keys: the kinds of fault, for those who count.
    """

    causes: tuple[str, ...] = ()
    guilty: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two sides that part, and what both were run on.

    Attributes:
        a: the side that is changed.
        b: the side that is to be explained.
        inputs: ``pixel_values`` and ``noise``.
        mask_ratio: at which both were run.
        names: what the two are called in sentences.
        python: interpreter of an environment that has PyTorch.
        time_limit: seconds that an answer of the laboratory may take; see ``children.Clock``.
        laboratory: where hypotheses are tried.
    """

    a: Subject
    b: Subject
    inputs: Mapping[str, np.ndarray]
    mask_ratio: float
    names: tuple[str, str] = ("A", "B")
    python: str | None = None
    time_limit: float | None = None
    laboratory: type[Laboratory] = Laboratory

    def turned(self) -> "Pair":
        """Return the pair with its sides exchanged."""
        names = (self.names[1], self.names[0])
        return replace(self, a=self.b, b=self.a, names=names)

    def try_on(self, subject: Subject, given: Sequence[str] = ()) -> Laboratory:
        """Return a laboratory for one side, which is given tensors of the other."""
        other = self.b if subject is self.a else self.a
        return self.laboratory(
            subject, self.inputs, self.mask_ratio, other=other.checkpoint, given=given,
            python=self.python, time_limit=self.time_limit,
        )  # fmt: skip


def is_finite(trace: Trace, name: str, dtype: str = "float64") -> bool:
    """Return whether a result of a trace holds numbers only."""
    keys = (f"{dtype}/tap/{name}", f"{dtype}/{name}", name)
    found = [trace.arrays[key] for key in keys if key in trace.arrays]
    return all(bool(np.isfinite(array).all()) for array in found)
