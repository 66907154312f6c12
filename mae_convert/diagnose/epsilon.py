"""Tell a layer norm's epsilon from what follows it, without knowing any weight.

What a norm and a linear layer make of a token x is f = M x̂ + c, where x̂ is x less its mean over the
root of variance plus epsilon. Another epsilon multiplies x̂ by a number s that follows from the
variance of that token alone, so that f' - s f = (1 - s) c. The vector c is the same for all tokens:
where the sides' difference gives the same c everywhere, it is explained.
"""

import math
from collections.abc import Mapping

import numpy as np

from mae_convert.verify.localise import BLOCK_TAP

CANDIDATES = (1e-12, 1e-6, 1e-5, 1e-8, 1e-7, 1e-4, 1e-3, 0.0)
PRECISION = 2.0**-50  # of a result in float64
AGREEMENT = 1e-3  # between tokens; the difference of the sides has few digits
TIED = 10.0  # times the smallest spread: two epsilons of which both are next to nothing


def epsilons_of(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], first: str, configured: float
) -> list[float]:
    """Return the epsilons that make B's result of A's, the one that does so best first.

    Args:
        a: results of the side whose epsilon is known.
        b: results of the other side.
        first: the first result that differs.
        configured: the epsilon of A.
    """
    before = _before(first, a)
    if before is None:
        return []
    variance = a[before].var(axis=-1, keepdims=True)
    spreads = {
        eps: _spread(variance, a[first], b[first], configured, eps)
        for eps in CANDIDATES
        if eps != configured
    }
    best = sorted(spreads, key=lambda eps: spreads[eps])
    return [eps for eps in best if spreads[eps] < min(AGREEMENT, TIED * spreads[best[0]])]


def _spread(
    variance: np.ndarray, f: np.ndarray, g: np.ndarray, configured: float, eps: float
) -> float:
    """Return how far apart the vectors c are that an epsilon gives for each token."""
    if not (variance + eps > 0).all():
        return math.inf
    scale = np.sqrt((variance + configured) / (variance + eps))
    change = np.abs(1 - scale)
    if not (change > 0).all():
        return math.inf
    noise = PRECISION * np.abs(f).max() / (change.min() * np.abs(f).mean())
    constant = (g - scale * f) / (1 - scale)
    vectors = constant.reshape(-1, constant.shape[-1])
    middle = np.median(vectors, axis=0)
    spread = np.abs(vectors - middle).max() / max(np.abs(middle).max(), np.abs(f).max())
    return max(float(spread), noise)


def _before(first: str, a: Mapping[str, np.ndarray]) -> str | None:
    """Return the result that is the input of the norm before another result."""
    if match := BLOCK_TAP.fullmatch(first):
        if match[3] not in ("q", "k", "v"):
            return None
        index = int(match[2])
        before = f"{match[1]}.blocks.{index - 1}.output" if index else f"{match[1]}.embedding"
    elif first in ("encoder.norm", "last_hidden_state", "decoder.norm"):
        stack = "decoder" if first.startswith("decoder") else "encoder"
        before = max(
            (n for n in a if n.startswith(f"{stack}.blocks.") and n.endswith(".output")),
            key=lambda name: int(name.split(".")[2]),
            default="",
        )
    else:
        return None
    return before if before in a and first in a else None
