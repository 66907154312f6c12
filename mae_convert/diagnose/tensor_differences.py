"""Describe how tensors differ; each description is tested on all values of the tensor."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.diagnose.hypotheses import Model, model_of
from mae_convert.diagnose.weight_hypotheses import self_edits
from mae_convert.formats.dtypes import DTYPES, rounded
from mae_convert.layouts.transforms import Shape
from mae_convert.text import non_finite_values
from mae_convert.verify.array_patterns import index_ranges
from mae_convert.verify.distance import relative_error

MOST_TENSORS = 64  # maximum number of compared tensors
MOST_SENTENCES = 8
FIRST = 8  # number of values that are the key of a tensor in an index
SAMPLE = 64  # number of values that are compared before all values are
FEW = 3  # maximum number of listed indices
CLOSE = 1e-6  # relative tolerance for rounding to float32


@dataclass(frozen=True)
class Cause:
    """The cause of a tensor's difference, in words that follow the tensor's name in a sentence.

    If the words mention another tensor, its name is stored separately, so that it can be shortened.
    """

    text: str
    """The words before the name of the other tensor; all words if no other tensor is mentioned."""

    other: str = ""
    """The canonical name of the other tensor; "" if no other tensor is mentioned."""

    rest: str = ""
    """The words after the name of the other tensor."""

    def __str__(self) -> str:
        return f"{self.text}{self.other}{self.rest}"

    def in_every_block(self, name: str) -> "Cause":
        """Return the cause in a form that is valid for several blocks.

        A cause can mention another tensor (`other`). If this tensor is in the same block as the
        differing tensor, the block's prefix is removed from its name.

        Args:
            name: the name of the differing tensor.
        """
        return replace(self, other=self.other.removeprefix(_block_prefix(name)))


def describe_tensor_differences(
    a: Checkpoint, b: Checkpoint, differing: Sequence[str]
) -> list[str]:
    """Return sentences that describe how tensors of B differ from the tensors of A.

    Args:
        a: the source.
        b: the target.
        differing: canonical names of differing tensors, the most likely cause first.
    """
    model, prints = model_of(a), Fingerprints(a)
    causes = {name: (_explain_one(model, prints, b, name),) for name in differing[:MOST_TENSORS]}
    described = list(grouped_causes(causes))[:MOST_SENTENCES]
    sentences = [cause_in_words(names, cause) for names, (cause,) in described]
    rest = len(differing) - sum(len(names) for names, _ in described)
    return sentences + ([f"{rest} more tensors differ"] if rest else [])


def grouped_causes(
    causes: Mapping[str, tuple[Cause, ...]],
) -> Iterator[tuple[list[str], tuple[Cause, ...]]]:
    """Yield groups of tensors with the same causes: their names, and the causes.

    A cause can mention another tensor of the same block. The causes of two tensors in different
    blocks are the same if the mentioned names differ only in the number of the block.
    """
    groups: dict[tuple[Cause, ...], list[str]] = {}
    for name, own in causes.items():
        groups.setdefault(tuple(cause.in_every_block(name) for cause in own), []).append(name)
    for shared, names in groups.items():
        yield names, causes[names[0]] if len(names) == 1 else shared


def cause_in_words(names: Sequence[str], cause: Cause) -> str:
    """Return a sentence about the cause of the difference of one or more tensors."""
    verb = str(cause).partition(" ")[0].rstrip(",")
    each = "each " if len(names) > 1 and verb in ("is", "has", "was", "differs") else ""
    return f"{grouped_names(names)}: {each}{cause}"


def _block_prefix(name: str) -> str:
    """Return the prefix of the block that contains a tensor, with a dot at its end.

    The result is "" if the tensor is not in a block.
    """
    stack, _, rest = name.partition(".blocks.")
    return f"{stack}.blocks.{rest.partition('.')[0]}." if rest else ""


def grouped_names(names: Sequence[str]) -> str:
    """Return names, separated by commas; names that differ only in the block index are merged.

    For example, the names of three blocks become ``encoder.blocks.{0-2}.norm1.weight``.
    """
    numbers: dict[tuple[str, str], list[int]] = {}
    for name in names:
        stack, _, rest = name.partition(".blocks.")
        number, _, part = rest.partition(".")
        numbers.setdefault((stack, part), []).extend([int(number)] if rest else [])
    merged = []
    for (stack, part), indices in numbers.items():
        which = index_ranges(np.array(sorted(indices)))
        which = f"{{{which}}}" if len(indices) > 1 else which
        merged.append(f"{stack}.blocks.{which}.{part}" if indices else stack)
    return ", ".join(merged)


class Fingerprints:
    """An index of a checkpoint's tensors by their first values, to find equal tensors."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    @cached_property
    def by_first(self) -> dict[tuple[Shape, bytes], list[str]]:
        """The names of the tensors by their shape and the bytes of their first values."""
        groups: dict[tuple[Shape, bytes], list[str]] = {}
        for name, tensor in self.checkpoint.tensors.items():
            groups.setdefault(self._key(tensor.load()), []).append(name)
        return groups

    def _key(self, array: np.ndarray) -> tuple[Shape, bytes]:
        return array.shape, array.flat[:FIRST].tobytes()

    def same_as(self, array: np.ndarray) -> list[str]:
        """Return the names of the tensors that are equal to an array."""
        names = self.by_first.get(self._key(array), [])
        return [n for n in names if np.array_equal(self.checkpoint.tensors[n].load(), array)]


def _explain_one(model: Model, prints: Fingerprints, b: Checkpoint, name: str) -> Cause:
    a = prints.checkpoint
    if name not in a.tensors or name not in b.tensors:
        return Cause("is missing in " + ("A" if name not in a.tensors else "B"))
    x, y = a.tensors[name].load(), b.tensors[name].load()
    if x.shape != y.shape:
        return Cause(f"has shape {x.shape} in A and {y.shape} in B")
    if broken := _not_finite(x, y):
        return Cause(broken)
    if not (x != y).any():
        return Cause(f"has dtype {x.dtype} in A and {y.dtype} in B")
    if others := [other for other in prints.same_as(y) if other != name]:
        return Cause("B holds A's ", others[0], " here")
    differences = [*exact_change(model, name, x, y), *measured_difference(x, y)]
    return Cause(differences[0])


def _not_finite(x: np.ndarray, y: np.ndarray) -> str:
    """Return a phrase about the NaN or infinite values of a tensor in A and B; "" without any."""
    descriptions = (not_finite_values(array, f" in {side}") for side, array in (("A", x), ("B", y)))
    return " and ".join(filter(None, descriptions))


def not_finite_values(array: np.ndarray, where: str = "") -> str:
    """Return a phrase about the NaN or infinite values of an array; "" if all values are finite.

    Args:
        array: the array.
        where: text after the noun "values", such as " in A".
    """
    broken = ~np.isfinite(array.astype(np.float64))
    if not broken.any():
        return ""
    first = tuple(map(int, np.argwhere(broken)[0]))
    values = non_finite_values(int(broken.sum()), where)
    return f"has {values} (the first at index {first})"


def exact_change(model: Model, name: str, x: np.ndarray, y: np.ndarray) -> Iterator[str]:
    """Yield the description of a change that exactly turns A's tensor into B's, if one is known.

    The change may include rounding. At most one description is yielded.

    Args:
        model: the model of the tensors.
        name: the canonical name of the tensor.
        x: A's tensor.
        y: B's tensor.
    """
    for self_edit in self_edits(model, name):
        try:
            changed = self_edit.on(name).apply([x])
        except (ValueError, IndexError):  # the change does not apply to this shape
            continue
        # A change without effect on this tensor is not an explanation.
        if not _sample_is_close(changed, y) or np.array_equal(changed, x):
            continue
        if np.array_equal(changed, y):
            yield self_edit.description
            return
        for dtype in ("float16", "bfloat16", "float32"):
            if np.array_equal(rounded(changed, DTYPES[dtype]).astype(y.dtype), y):
                yield f"{self_edit.description} and rounded to {dtype}"
                return
    for dtype in ("float16", "bfloat16"):
        if np.array_equal(rounded(y, DTYPES[dtype]).astype(x.dtype), x):
            yield f"is rounded to {dtype} in A, but not in B"
            return


def _sample_is_close(changed: np.ndarray, y: np.ndarray) -> bool:
    """Return whether sampled values of two arrays are equal up to rounding to bfloat16.

    The result is False if the shapes differ.
    """
    if changed.shape != y.shape:  # the change applies only to other models
        return False
    samples = np.linspace(0, y.size - 1, min(SAMPLE, y.size)).astype(np.int64)
    some, others = (z.ravel()[samples].astype(np.float64) for z in (changed, y))
    return bool(np.allclose(some, others, rtol=2.0**-7, atol=1e-6 * np.abs(others).max()))


def measured_difference(x: np.ndarray, y: np.ndarray) -> Iterator[str]:
    """Yield descriptions, with measured values, of a difference that no known change explains."""
    exact_x, exact_y = x.astype(np.float64), y.astype(np.float64)
    difference, indices = exact_y - exact_x, np.argwhere(x != y)
    where = ", ".join(str(tuple(map(int, index))) for index in indices[:FEW])
    size = f"relative L2 {relative_error(y, x):.1e}"
    if len(indices) <= FEW:
        yield f"{len(indices)} of {x.size} values differ (at index {where}), {size}"
    if x.size > FEW and difference.std() <= CLOSE * abs(difference.mean()):
        yield f"has the constant {difference.mean():.3g} added"
    if x.size > FEW and exact_x.any():
        factor = np.vdot(exact_x, exact_y) / np.vdot(exact_x, exact_x)
        if relative_error(exact_y, exact_x * factor) < CLOSE:
            yield f"is multiplied by {factor:.6g}"
    yield from _reordered(x, y)
    yield from _partly(x, y, size)
    yield f"{len(indices)} of {x.size} values differ, {size}"


def _reordered(x: np.ndarray, y: np.ndarray) -> Iterator[str]:
    for axis, what in ((0, "rows"), (x.ndim - 1, "columns")):
        if x.shape[axis] > 1 and _same_parts(x, y, axis):
            yield f"has its {what} in another order"


def _same_parts(x: np.ndarray, y: np.ndarray, axis: int) -> bool:
    """Return whether both arrays have the same slices along an axis, in any order."""
    parts = [np.moveaxis(z, axis, 0).reshape(z.shape[axis], -1) for z in (x, y)]
    in_order = [part[np.lexsort(part.T[:8])] for part in parts]
    return np.array_equal(in_order[0], in_order[1])


def _partly(x: np.ndarray, y: np.ndarray, size: str) -> Iterator[str]:
    """Yield a description if only some rows or columns differ, or if ``y`` ends with zeros.

    Args:
        x: A's tensor.
        y: B's tensor.
        size: a phrase about the size of the difference.
    """
    yield from zero_from(x, y)
    for axis, what in ((0, "rows"), (x.ndim - 1, "columns")):
        others = tuple(i for i in range(x.ndim) if i != axis)
        differ = np.flatnonzero((x != y).any(axis=others))
        if len(differ) < x.shape[axis] and x.ndim > 1 and x.shape[axis] > 1:
            yield f"differs in {what} {index_ranges(differ)} of {x.shape[axis]} only, {size}"


def zero_from(x: np.ndarray, y: np.ndarray) -> Iterator[str]:
    """Yield a description if B's tensor ``y`` begins like A's tensor ``x`` and ends with zeros."""
    first = int(np.argmin(x.reshape(-1) == y.reshape(-1)))
    if first and not y.reshape(-1)[first:].any():
        yield f"is zero from element {first} of {x.size} on"
