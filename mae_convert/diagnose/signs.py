"""What two traces show of a fault, when there are no weights to try anything on."""

from collections.abc import Iterator, Mapping

import numpy as np

from mae_convert.diagnose.forms import forms
from mae_convert.diagnose.sums import sums
from mae_convert.verify.array_patterns import near
from mae_convert.verify.judge import UNIT_ROUNDOFF, own_errors
from mae_convert.verify.localise import execution_order
from mae_convert.verify.trace import Trace

RANDOM = 1e-2  # an own error in float32 that no rounding makes


def signs(a: Trace, b: Trace, first: str | None) -> list[str]:
    """Return what the traces show at the first result that differs, in sentences.

    Args:
        a: the trace of the source.
        b: the trace of the target.
        first: the first result at which they differ in float64, or None.
    """
    found = list(_broken(a, b))
    if found:
        return found
    if first is not None:
        found += _at(a, b, first)
    return [*found, *sums(a, b), *_randomness(a, b), *_roundings(a, b, first)]


def _broken(a: Trace, b: Trace) -> Iterator[str]:
    """Yield the first result of each side and run that is not finite, and where it is not."""
    for side, trace in (("A", a), ("B", b)):
        for dtype in trace.description["dtypes"]:
            results = trace.results(dtype)
            for name in sorted(results, key=execution_order):
                bad = ~np.isfinite(results[name].astype(np.float64))
                if bad.any():
                    index = tuple(map(int, np.argwhere(bad)[0]))
                    yield (
                        f"{name} of {side}'s {dtype} run holds {bad.sum()} values that are NaN or"
                        f" infinite, the first at index {index}"
                    )
                    break


def _at(a: Trace, b: Trace, first: str) -> Iterator[str]:
    if first in ("mask", "ids_restore"):
        yield from _masking(a.arrays, b.arrays)
        return
    ours, theirs = a.results("float64"), b.results("float64")
    for side, results in (("A", ours), ("B", theirs)):
        if first not in results:
            yield f"{first} is missing in {side}"
            return
    x, y = ours[first], theirs[first]
    if x.shape != y.shape:
        yield f"{first} has shape {x.shape} in A and {y.shape} in B"
        yield from _counted(first, x, y)
        return
    yield from forms(a, b, first)


def _counted(first: str, x: np.ndarray, y: np.ndarray) -> Iterator[str]:
    """Yield that one side has the other's tokens and one more."""
    if x.ndim != 3 or x.shape[0] != y.shape[0] or x.shape[2] != y.shape[2]:
        return
    for fewer, more, side in ((x, y, "B"), (y, x, "A")):
        if more.shape[1] == fewer.shape[1] + 1:
            for place in range(more.shape[1]):
                if near(np.delete(more, place, axis=1), fewer):
                    yield f"{first} has one token more in {side}, at place {place}"
                    return


def _masking(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> Iterator[str]:
    mask, other = a["mask"], b["mask"]
    kept, others = int((mask[0] == 0).sum()), int((other[0] == 0).sum())
    if np.array_equal(other, 1 - mask):
        yield "B's mask is A's with kept and removed exchanged"
    elif kept != others:
        yield f"A keeps {kept} of {mask.shape[1]} patches and B keeps {others}"
    restore, its = a["ids_restore"], b["ids_restore"]
    if np.array_equal(restore, its) or restore.shape != its.shape:
        return
    if np.array_equal(its, np.argsort(restore, axis=1)):
        yield "B's ids_restore is the shuffle itself and not the way back from it"
    elif np.array_equal(its, restore.shape[1] - 1 - restore):
        yield "B sorts the noise in descending order, so that it keeps what A removes"
    elif len(shift := np.unique((its - restore) % restore.shape[1])) == 1:
        yield f"B's ids_restore is A's plus {int(shift[0])}, modulo the number of patches"


def _randomness(a: Trace, b: Trace) -> Iterator[str]:
    """Yield that a side's runs differ by what no rounding makes."""
    dtypes = [set(trace.description["dtypes"]) for trace in (a, b)]
    if not all("float32" in found for found in dtypes):
        return
    errors = {side: own_errors(trace, "float32") for side, trace in (("A", a), ("B", b))}
    for side, other in (("A", "B"), ("B", "A")):
        names = sorted(errors[side], key=execution_order)
        name = next((n for n in names if errors[side][n] > RANDOM), None)
        if name is not None and errors[other].get(name, 1.0) < RANDOM:
            yield (
                f"{side}'s two runs differ by {errors[side][name]:.1e} at {name}, which no rounding"
                " makes: it gives another result each time, as with dropout left on"
            )


def _roundings(a: Trace, b: Trace, first: str | None) -> Iterator[str]:
    """Yield how large the own error of an imprecise side is, in units of narrower types."""
    if first is not None or "float32" not in set(a.description["dtypes"]) & set(
        b.description["dtypes"]
    ):
        return
    errors = {side: own_errors(trace, "float32") for side, trace in (("A", a), ("B", b))}
    for side, other in (("A", "B"), ("B", "A")):
        own, its = errors[side], errors[other]
        large = [n for n in own if own[n] > 8 * max(its.get(n, 0), 16 * UNIT_ROUNDOFF["float32"])]
        if large:
            name = min(large, key=execution_order)
            units = {kind: own[name] / UNIT_ROUNDOFF[kind] for kind in ("bfloat16", "float16")}
            yield (
                f"{side}'s own error at {name} is {own[name] / UNIT_ROUNDOFF['float32']:.0f} units"
                f" of float32, {units['float16']:.2g} of TF32 and float16 and"
                f" {units['bfloat16']:.2g} of bfloat16; before it, it is as small as {other}'s"
            )
