"""Faults in weights: damaged, exchanged or partly loaded tensors."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class WeightFault:
    """A fault in canonical tensors.

    Attributes:
        name: the change and the tensor.
        change: returns the faulty tensors.
        changed_tensors: the tensors that it changes.
        blind: whether the change cancels out, so that no intermediate activation shows it.
    """

    name: str
    change: Callable[[Tensors], Tensors]
    changed_tensors: tuple[str, ...]
    blind: bool = False


def at_random(array: np.ndarray) -> np.random.Generator:
    return np.random.default_rng(abs(int(1e6 * float(array.flat[0]))))


def with_one(change: Callable[[np.ndarray, int], None]) -> Callable[[np.ndarray], np.ndarray]:
    def changed(array):
        array = array.copy()
        change(array.reshape(-1), int(at_random(array).integers(array.size)))
        return array

    return changed


def next_value(flat, index):
    flat[index] = np.nextafter(flat[index], np.float32(9))


def not_a_number(flat, index):
    flat[index] = np.nan


def infinite(flat, index):
    flat[index] = -np.inf


def flipped_bit(flat, index):
    flat.view(np.uint32)[index] ^= np.uint32(1 << 22)


def row_turned(array):
    array = array.copy()
    rows = array.reshape(-1, array.shape[-1])
    rows[len(rows) // 2] *= -1
    return array


def noisy(array):
    return array + 1e-4 * at_random(array).standard_normal(array.shape)


def shuffled(array):
    axis = 0 if array.shape[0] > 1 else array.ndim - 1
    return at_random(array).permutation(array, axis=axis)


def half_loaded(array):
    array = array.copy()
    array.reshape(-1)[array.size // 2 :] = 0
    return array


EVERY_TENSOR: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "zeroed": np.zeros_like,
    "turned": lambda a: -a,
    "scaled by 1.001": lambda a: a * np.float32(1.001),
    "plus 0.01": lambda a: a + np.float32(0.01),
    "noisy": noisy,
    "in float16": lambda a: a.astype(np.float16),
    "in bfloat16": lambda a: a.astype(ml_dtypes.bfloat16),
    "one value in the last place": with_one(next_value),
    "one bit flipped": with_one(flipped_bit),
    "one NaN": with_one(not_a_number),
    "one infinity": with_one(infinite),
    "half loaded": half_loaded,
    "clipped": lambda a: np.clip(a, -a.std(), a.std()),
    "rolled by one": lambda a: np.roll(a, 1, axis=0 if a.shape[0] > 1 else -1),
    "reversed": lambda a: a[::-1] if a.shape[0] > 1 else a[..., ::-1],
    "shuffled": shuffled,
    "never loaded": lambda a: at_random(a).standard_normal(a.shape) * 0.02,
}
MATRICES = {
    "transposed": lambda a: a.T.reshape(a.shape),
    "one row turned": row_turned,
    "columns reversed": lambda a: a[:, ::-1],
    "columns rolled by one": lambda a: np.roll(a, 1, axis=1),
}
POSITIONS = {
    "one place later": lambda a: np.roll(a, 1, axis=1),
    "grid transposed": lambda a: np.concatenate(
        [a[:, :1], a[:, 1:].reshape(1, 4, 4, -1).swapaxes(1, 2).reshape(1, 16, -1)], axis=1
    ),
    "halves exchanged": lambda a: np.roll(a, a.shape[2] // 2, axis=2),
    "none for the class token": lambda a: np.concatenate([a[:, :1] * 0 + 1, a[:, 1:]], axis=1),
}
KERNELS = {
    "BGR": lambda a: a[:, ::-1],
    "height and width": lambda a: a.swapaxes(2, 3),
    "channels last": lambda a: a.transpose(0, 2, 3, 1).reshape(a.shape),
}
PREDICTIONS = {
    "channels first": lambda a: np.moveaxis(a.reshape(8, 8, 3, -1), 2, 0).reshape(a.shape),
    "BGR": lambda a: a.reshape(64, 3, -1)[:, ::-1].reshape(a.shape),
}


def heads_rotated(array: np.ndarray, heads: int) -> np.ndarray:
    return np.roll(array.reshape(heads, -1, *array.shape[1:]), 1, axis=0).reshape(array.shape)


def heads_inside_out(array: np.ndarray, heads: int) -> np.ndarray:
    return array.reshape(heads, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)


def edits_of(name: str, array: np.ndarray) -> Iterator[tuple[str, Callable]]:
    """Yield the edits that apply to a tensor, by name."""
    yield from EVERY_TENSOR.items()
    if array.ndim == 2:
        yield from MATRICES.items()
    if name.endswith("position_embedding"):
        yield from POSITIONS.items()
    if name == "encoder.patch_embedding.weight":
        yield from KERNELS.items()
    if name.startswith("decoder.prediction"):
        yield from PREDICTIONS.items()
    heads = 2 if name.startswith("decoder") else 3
    if ".attention." in name and ".output" not in name:
        yield "heads rotated", lambda a: heads_rotated(a, heads)
        yield "heads inside out", lambda a: heads_inside_out(a, heads)
    if name.endswith("attention.output.weight"):
        yield "heads rotated", lambda a: heads_rotated(a.T, heads).T
        yield "heads inside out", lambda a: heads_inside_out(a.T, heads).T


def alone(name: str, edit: Callable) -> Callable[[Tensors], Tensors]:
    def change(tensors):
        array = tensors[name]
        with np.errstate(over="ignore"):
            edited = np.ascontiguousarray(edit(array.copy()), dtype=array.dtype)
        return {**tensors, name: edited}

    return change


def exchanged(first: str, second: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, first: tensors[second], second: tensors[first]}


def single_faults(tensors: Tensors) -> Iterator[WeightFault]:
    """Yield each edit of each tensor that changes its values."""
    for name, array in tensors.items():
        for what, edit in edits_of(name, array):
            change = alone(name, edit)
            if not np.array_equal(change(tensors)[name], array):
                yield WeightFault(f"{name}: {what}", change, (name,))


def exchanges(tensors: Tensors) -> Iterator[WeightFault]:
    """Yield each exchange of two related tensors of the same shape."""
    names = list(tensors)
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            if tensors[first].shape != tensors[second].shape or not related(first, second):
                continue
            change = exchanged(first, second)
            yield WeightFault(f"{first} and {second} exchanged", change, (first, second))


def related(first: str, second: str) -> bool:
    """Return whether two tensors are in one block, are the same in two blocks, or in no block."""
    if (".blocks." in first) != (".blocks." in second):
        return False
    if ".blocks." not in first:
        return True
    (stack, _, rest), (other, _, others) = (n.partition(".blocks.") for n in (first, second))
    (number, _, part), (index, _, its) = (r.partition(".") for r in (rest, others))
    return stack == other and (number == index or part == its)


def class_token_and_its_position(tensors: Tensors) -> Tensors:
    token, positions = tensors["encoder.cls_token"], tensors["encoder.position_embedding"]
    moved = np.concatenate([token, positions[:, 1:]], axis=1)
    return {
        **tensors,
        "encoder.cls_token": positions[:, :1],
        "encoder.position_embedding": moved,
    }


def constant_between_sums(tensors: Tensors) -> Tensors:
    up, down = ("decoder.mask_token", "decoder.embed.bias"), ("decoder.position_embedding",)
    changed = {name: tensors[name] + np.float32(1) for name in up}
    return {**tensors, **changed, **{name: tensors[name] - np.float32(1) for name in down}}


def mlp_units_in_another_order(tensors: Tensors) -> Tensors:
    block = "encoder.blocks.1.mlp"
    order = np.random.default_rng(5).permutation(len(tensors[f"{block}.fc1.bias"]))
    return {
        **tensors,
        f"{block}.fc1.weight": tensors[f"{block}.fc1.weight"][order],
        f"{block}.fc1.bias": tensors[f"{block}.fc1.bias"][order],
        f"{block}.fc2.weight": tensors[f"{block}.fc2.weight"][:, order],
    }


def scaled_against_each_other(first: str, second: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, first: tensors[first] * 2, second: tensors[second] / 2}


def compensating(tensors: Tensors) -> Iterator[WeightFault]:
    """Yield faults that cancel out, in the tensors or in the result."""
    pair = ("encoder.cls_token", "encoder.position_embedding")
    yield WeightFault(
        "class token and its position", class_token_and_its_position, pair, blind=True
    )
    if "decoder.mask_token" in tensors:
        three = ("decoder.mask_token", "decoder.embed.bias", "decoder.position_embedding")
        yield WeightFault("a constant between sums", constant_between_sums, three)
    block = "encoder.blocks.1"
    yield WeightFault(
        "MLP units in another order", mlp_units_in_another_order,
        (f"{block}.mlp.fc1.weight", f"{block}.mlp.fc1.bias", f"{block}.mlp.fc2.weight"),
        blind=True,
    )  # fmt: skip
    q, k = (f"{block}.attention.{part}.weight" for part in "qk")
    yield WeightFault("q doubled, k halved", scaled_against_each_other(q, k), (q, k))
    v, output = f"{block}.attention.v.weight", f"{block}.attention.output.weight"
    yield WeightFault("v doubled, output halved", scaled_against_each_other(v, output), (v, output))
