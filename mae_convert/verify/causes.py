"""Explanations of differing tensors: each is tested on the tensors, and said only if it holds."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from mae_convert.checkpoint import Checkpoint
from mae_convert.verify.distance import relative_error

MOST = 8  # explanations; beyond that they repeat themselves block by block

Test = Callable[[np.ndarray, np.ndarray], bool]


def explain(a: Checkpoint, b: Checkpoint, differing: Sequence[str]) -> list[str]:
    """Return what happened to the tensors that differ, as far as it can be shown.

    Args:
        a: the source.
        b: the target.
        differing: canonical names, the likeliest culprit first.
    """
    return [f"{name}: {what}" for name in differing[:MOST] for what in _explain_one(a, b, name)]


def _explain_one(a: Checkpoint, b: Checkpoint, name: str) -> Iterator[str]:
    if name not in a.tensors or name not in b.tensors:
        yield "is missing in " + ("A" if name not in a.tensors else "B")
        return
    x, y = a.tensors[name].load(), b.tensors[name].load()
    if broken := int((~np.isfinite(y.astype(np.float64))).sum()):
        yield f"holds {broken} values in B that are NaN or infinite"
    elif x.shape != y.shape:
        yield f"has shape {x.shape} in A and {y.shape} in B"
    elif other := _other_name(a, b, name, y):
        yield f"B holds A's {other} here"
    else:
        found = [what for what, test in TESTS.items() if _holds(test, x, y)]
        yield found[0] if found else _size_of(x, y)


def _other_name(a: Checkpoint, b: Checkpoint, name: str, y: np.ndarray) -> str | None:
    """Return the tensor of A that B holds under this name: swapped, shifted, copied."""
    for other, tensor in a.tensors.items():
        if other != name and tensor.shape == y.shape and tensor.dtype == b.tensors[name].dtype:
            z = tensor.load()
            if z.flat[0] == y.flat[0] and np.array_equal(z, y):
                return other
    return None


def _holds(test: Test, x: np.ndarray, y: np.ndarray) -> bool:
    try:
        return bool(test(x, y))
    except (ValueError, IndexError):  # the hypothesis does not apply to this shape
        return False


def _permuted_rows(x: np.ndarray, y: np.ndarray) -> bool:
    order_x, order_y = (np.lexsort(z.reshape(len(z), -1).T[:8]) for z in (x, y))
    return len(x) > 1 and np.array_equal(x[order_x], y[order_y])


def _fewer_bits(dtype: str) -> Test:
    import ml_dtypes

    kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    return lambda x, y: np.array_equal(x.astype(kind).astype(y.dtype), y)


def _constant_added(x: np.ndarray, y: np.ndarray) -> bool:
    away = y.astype(np.float64) - x.astype(np.float64)
    return x.size > 1 and away.std() <= 1e-6 * abs(away.mean())


def _scaled(x: np.ndarray, y: np.ndarray) -> bool:
    factor = np.vdot(x, y) / np.vdot(x, x)
    return x.size > 1 and relative_error(y, x * factor) < 1e-6


TESTS: Mapping[str, Test] = {
    "is transposed": lambda x, y: x.ndim == 2 and np.array_equal(x.T, y),
    "is zero in B": lambda x, y: not y.any() and bool(x.any()),
    "has its channels reversed (RGB and BGR)": lambda x, y: (
        x.ndim == 4 and np.array_equal(x[:, ::-1], y)
    ),
    "has height and width of the patch swapped": lambda x, y: (
        x.ndim == 4 and np.array_equal(x.swapaxes(2, 3), y)
    ),
    "is shifted by the class token's place": lambda x, y: (
        x.ndim == 3 and x.shape[1] > 2 and np.array_equal(np.roll(x, 1, axis=1)[:, 2:], y[:, 2:])
    ),
    "has its rows in another order (heads, channels or pixels)": _permuted_rows,
    "is rounded to float16": _fewer_bits("float16"),
    "is rounded to bfloat16": _fewer_bits("bfloat16"),
    "has a constant added": _constant_added,
    "is multiplied by a constant": _scaled,
}


def _size_of(x: np.ndarray, y: np.ndarray) -> str:
    count = int((x != y).sum())
    if count == 0:
        return f"has dtype {x.dtype} in A and {y.dtype} in B"
    where = f" (at index {tuple(map(int, np.argwhere(x != y)[0]))})" if count == 1 else ""
    return f"{count} of {x.size} values differ{where}, relative L2 {relative_error(y, x):.1e}"
