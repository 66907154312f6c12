"""Whether a block's output is the sum of its input, attention and MLP, from the results alone."""

from collections.abc import Iterator, Mapping

import numpy as np

from mae_convert.verify.array_patterns import near
from mae_convert.verify.localise import BLOCK_TAP, execution_order
from mae_convert.verify.trace import Trace

SUM = 1e-6  # how far from 1 the share of a part of a sum may be, by rounding


def sums(a: Trace, b: Trace) -> Iterator[str]:
    """Yield the first block of B whose output is not the sum of input, attention and MLP."""
    ours, theirs = (_residuals(trace.results("float64")) for trace in (a, b))
    for name, shares in theirs.items():
        if not _is_one(ours.get(name)) or _is_one(shares):
            continue
        if shares is None:
            yield f"{name} in B is no sum of its block's input, attention and MLP"
        else:
            yield (
                f"{name} in B is its block's input plus {shares[0]:.6g} times attention plus"
                f" {shares[1]:.6g} times the MLP"
            )
        return


def _is_one(shares: tuple[float, float] | None) -> bool:
    return shares is not None and np.allclose(shares, 1, rtol=0, atol=SUM)


def _residuals(results: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float] | None]:
    """Return for each block how often attention and MLP are in its output; None if it is no sum."""
    found: dict[str, tuple[float, float] | None] = {}
    for name in sorted(results, key=execution_order):
        match = BLOCK_TAP.fullmatch(name)
        if match is None or match[3] != "output":
            continue
        stack, index = match[1], int(match[2])
        before = f"{stack}.blocks.{index - 1}.output" if index else f"{stack}.embedding"
        parts = [results.get(f"{stack}.blocks.{index}.{part}") for part in ("attention", "mlp")]
        if before not in results or any(p is None or p.shape != results[name].shape for p in parts):
            continue
        away = (results[name] - results[before]).ravel()
        columns = np.stack([part.ravel() for part in parts if part is not None], axis=1)
        shares = np.linalg.lstsq(columns, away, rcond=None)[0]
        fits = near(columns @ shares, away)
        found[name] = (float(shares[0]), float(shares[1])) if fits else None
    return found
