"""What is computed otherwise than the reference model does: where, and in what precision.

An alternative has a kind, a place, and a value. The modules ``layers``, ``attention``, ``ends``,
``masking`` and ``losses`` look up what they do by kind and place.
"""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

Alternative = tuple[str, str, Any]  # kind, pattern of places, value
TF32_BITS = 13  # bits of float32 that TF32 has not


class Arithmetic:
    """What is computed otherwise, and where; later alternatives come before earlier ones."""

    def __init__(self, alternatives: Sequence[Alternative] = ()) -> None:
        self.alternatives = tuple(reversed(alternatives))

    def at(self, kind: str, place: str) -> Any:
        """Return the alternative of a kind at a place, or None for the reference's own."""
        return next(
            (v for k, pattern, v in self.alternatives if k == kind and fnmatchcase(place, pattern)),
            None,
        )

    def touches(self, place: str) -> bool:
        """Return whether anything is otherwise at a place or in a part of it."""
        parts = [place, *(f"{place}.{part}" for part in ("norm1", "attention", "norm2", "mlp"))]
        return any(fnmatchcase(part, p) for _, p, _ in self.alternatives for part in parts)


def _to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda x: x.to(dtype).to(x.dtype)


def _tf32(x: Tensor, rounding: bool) -> Tensor:
    bits = x.float().contiguous().view(torch.int32)
    if rounding:
        bits = bits + (1 << (TF32_BITS - 1))
    return (bits & -(1 << TF32_BITS)).view(torch.float32).to(x.dtype)


LOWER: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "float32": _to(torch.float32),
    "float16": _to(torch.float16),
    "bfloat16": _to(torch.bfloat16),
    "TF32": lambda x: _tf32(x, rounding=True),
    "TF32, cut": lambda x: _tf32(x, rounding=False),
}


def as_float32(number: float) -> float:
    """Return the float32 that is nearest to a number."""
    return float(torch.tensor(number, dtype=torch.float32))
