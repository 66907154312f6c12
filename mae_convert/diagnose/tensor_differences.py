"""Explanations of differing tensors: each is tested on the tensors, and said only if it holds."""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from mae_convert.canonical import Shape
from mae_convert.checkpoint import Checkpoint
from mae_convert.diagnose.hypotheses import Model, model_of
from mae_convert.diagnose.weight_hypotheses import happenings
from mae_convert.rounding import DTYPES, rounded
from mae_convert.verify.array_patterns import runs
from mae_convert.verify.distance import relative_error

MOST_TENSORS = 64  # that are looked at
MOST_SENTENCES = 8
FIRST = 8  # values by which a tensor is looked up
SAMPLE = 64  # values that are compared before all of them are
FEW = 3  # values, whose places are told
CLOSE = 1e-6  # relative: rounding of float32 on the way


def explain(a: Checkpoint, b: Checkpoint, differing: Sequence[str]) -> list[str]:
    """Return what happened to the tensors that differ, as far as it can be shown.

    Args:
        a: the source.
        b: the target.
        differing: canonical names, the likeliest culprit first.
    """
    model, prints = model_of(a), Fingerprints(a)
    names_by_cause: dict[str, list[str]] = {}
    for name in differing[:MOST_TENSORS]:
        cause = _in_every_block(name, _explain_one(model, prints, b, name))
        names_by_cause.setdefault(cause, []).append(name)
    said = [
        f"{joined(names)}: {cause.replace(BLOCK, name_block(names[0]) if len(names) == 1 else '')}"
        for cause, names in names_by_cause.items()
    ]
    told = sum(len(names) for names in list(names_by_cause.values())[:MOST_SENTENCES])
    left = len(differing) - told
    return said[:MOST_SENTENCES] + ([f"{left} more tensors differ"] if left else [])


BLOCK = "{block}"


def name_block(name: str) -> str:
    """Return the canonical prefix of the block that a tensor belongs to, with its point."""
    stack, _, rest = name.partition(".blocks.")
    return f"{stack}.blocks.{rest.partition('.')[0]}." if rest else ""


def _in_every_block(name: str, cause: str) -> str:
    """Return a cause that says the same of the same tensor in every block."""
    return cause.replace(name_block(name), BLOCK) if name_block(name) else cause


def joined(names: Sequence[str]) -> str:
    """Return names for a sentence; those that differ in the block's number only are one."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for name in names:
        stack, _, rest = name.partition(".blocks.")
        number, _, part = rest.partition(".")
        numbers.setdefault((stack, part), []).extend([int(number)] if rest else [])
    found = []
    for (stack, part), indices in numbers.items():
        which = runs(np.array(sorted(indices)))
        which = f"{{{which}}}" if len(indices) > 1 else which
        found.append(f"{stack}.blocks.{which}.{part}" if indices else stack)
    return ", ".join(found)


class Fingerprints:
    """The first values of every tensor of a checkpoint, each of which is read once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    @cached_property
    def by_first(self) -> dict[tuple[Shape, bytes], list[str]]:
        """Names by shape and the bytes of the first values."""
        found: dict[tuple[Shape, bytes], list[str]] = {}
        for name, tensor in self.checkpoint.tensors.items():
            found.setdefault(self._key(tensor.load()), []).append(name)
        return found

    def _key(self, array: np.ndarray) -> tuple[Shape, bytes]:
        return array.shape, array.flat[:FIRST].tobytes()

    def same_as(self, array: np.ndarray) -> list[str]:
        """Return the tensors that are equal to an array."""
        names = self.by_first.get(self._key(array), [])
        return [n for n in names if np.array_equal(self.checkpoint.tensors[n].load(), array)]


def _explain_one(model: Model, prints: Fingerprints, b: Checkpoint, name: str) -> str:
    a = prints.checkpoint
    if name not in a.tensors or name not in b.tensors:
        return "is missing in " + ("A" if name not in a.tensors else "B")
    x, y = a.tensors[name].load(), b.tensors[name].load()
    if x.shape != y.shape:
        return f"has shape {x.shape} in A and {y.shape} in B"
    if broken := _not_finite(x, y):
        return broken
    if not (x != y).any():
        return f"has dtype {x.dtype} in A and {y.dtype} in B"
    if others := [other for other in prints.same_as(y) if other != name]:
        return f"B holds A's {others[0]} here"
    found = [*_happened(model, name, x, y), *_measured(x, y)]
    return found[0]


def _not_finite(x: np.ndarray, y: np.ndarray) -> str:
    """Return where a tensor holds what is no number."""
    said = []
    for side, array in (("A", x), ("B", y)):
        broken = ~np.isfinite(array.astype(np.float64))
        if broken.any():
            first = tuple(map(int, np.argwhere(broken)[0]))
            said.append(
                f"holds {broken.sum()} values in {side} that are NaN or infinite (the first at"
                f" index {first})"
            )
    return " and ".join(said)


def _happened(model: Model, name: str, x: np.ndarray, y: np.ndarray) -> Iterator[str]:
    """Yield what makes the one tensor the other, bit for bit, perhaps with rounding after it."""
    for happening in happenings(model, name):
        try:
            made = happening.of(name).apply([x])
        except (ValueError, IndexError):  # it does not apply to this shape
            continue
        # What leaves the tensor as it is explains nothing; what rounds it does.
        if not _alike(made, y) or np.array_equal(made, x):
            continue
        if np.array_equal(made, y):
            yield happening.what
            return
        for dtype in ("float16", "bfloat16", "float32"):
            if np.array_equal(rounded(made, DTYPES[dtype]).astype(y.dtype), y):
                yield f"{happening.what} and rounded to {dtype}"
                return
    for dtype in ("float16", "bfloat16"):
        if np.array_equal(rounded(y, DTYPES[dtype]).astype(x.dtype), x):
            yield f"is rounded to {dtype} in A, and is not in B"
            return


def _alike(made: np.ndarray, y: np.ndarray) -> bool:
    """Return whether some values are the same but for the rounding of narrow types."""
    places = np.linspace(0, y.size - 1, min(SAMPLE, y.size)).astype(np.int64)
    some, others = (z.ravel()[places].astype(np.float64) for z in (made, y))
    return bool(np.allclose(some, others, rtol=2.0**-7, atol=1e-6 * np.abs(others).max()))


def _measured(x: np.ndarray, y: np.ndarray) -> Iterator[str]:
    """Yield how the one differs from the other, where nothing makes them the same."""
    exact_x, exact_y = x.astype(np.float64), y.astype(np.float64)
    away, places = exact_y - exact_x, np.argwhere(x != y)
    where = ", ".join(str(tuple(map(int, place))) for place in places[:FEW])
    size = f"relative L2 {relative_error(y, x):.1e}"
    if len(places) <= FEW:
        yield f"{len(places)} of {x.size} values differ (at index {where}), {size}"
    if x.size > FEW and away.std() <= CLOSE * abs(away.mean()):
        yield f"has the constant {away.mean():.3g} added"
    if x.size > FEW and exact_x.any():
        factor = np.vdot(exact_x, exact_y) / np.vdot(exact_x, exact_x)
        if relative_error(exact_y, exact_x * factor) < CLOSE:
            yield f"is multiplied by {factor:.6g}"
    yield from _reordered(x, y)
    yield from _partly(x, y, size)
    yield f"{len(places)} of {x.size} values differ, {size}"


def _reordered(x: np.ndarray, y: np.ndarray) -> Iterator[str]:
    for axis, what in ((0, "rows"), (x.ndim - 1, "columns")):
        if x.shape[axis] > 1 and _same_parts(x, y, axis):
            yield f"has its {what} in another order"


def _same_parts(x: np.ndarray, y: np.ndarray, axis: int) -> bool:
    """Return whether both have the same rows or columns, in whatever order."""
    parts = [np.moveaxis(z, axis, 0).reshape(z.shape[axis], -1) for z in (x, y)]
    in_order = [part[np.lexsort(part.T[:8])] for part in parts]
    return np.array_equal(in_order[0], in_order[1])


def _partly(x: np.ndarray, y: np.ndarray, size: str) -> Iterator[str]:
    """Yield that only some rows or columns differ, or that the rest was never loaded."""
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    equal = flat_x == flat_y
    split = int(np.argmin(equal))
    if split and not flat_y[split:].any():
        yield f"is zero from value {split} of {x.size} on"
    for axis, what in ((0, "rows"), (x.ndim - 1, "columns")):
        others = tuple(i for i in range(x.ndim) if i != axis)
        differ = np.flatnonzero((x != y).any(axis=others))
        if len(differ) < x.shape[axis] and x.ndim > 1 and x.shape[axis] > 1:
            yield f"differs in {what} {runs(differ)} of {x.shape[axis]} only, {size}"
