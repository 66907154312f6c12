"""Describe the difference between two traces without weights and without running a model.

Results are float64 arrays: (N, T, D) for tokens, (N, K) for classes, or images (N, C, H, W).
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from mae_convert.diagnose import weight_edits
from mae_convert.runtime.trace import Trace
from mae_convert.text import non_finite_values
from mae_convert.verify.array_patterns import (
    differing,
    dropout_probability,
    factor,
    index_ranges,
    near,
    permutation_between,
    same_by_position,
    same_vector,
)
from mae_convert.verify.judge import UNIT_ROUNDOFF, rounding_errors
from mae_convert.verify.localise import (
    BLOCK_TAP,
    class_tokens,
    execution_order,
    patch_positions,
    removed_tokens,
)

RANDOM = 1e-2  # a relative difference from float64 that rounding to float32 cannot explain
# Axes that may be permuted. Channels are tested first, because a few tokens can match by chance.
ORDERED_AXES = {
    (3, False): {2: "channels", 1: "tokens"},
    (2, False): {1: "classes"},
    (4, True): {1: "channels", 2: "rows", 3: "columns"},
}
AXES = {
    2: ("images", "classes"),
    3: ("images", "tokens", "channels"),
    4: ("images", "channels", "rows", "columns"),
}
EPSILON = "layer_norm_eps"
EPSILONS = (1e-12, 1e-6, 1e-5, 1e-8, 1e-7, 1e-4, 1e-3, 0.0)
# Limits for the vectors c that follow from an epsilon for each token; see ``_fitting_epsilons``.
PRECISION = 2.0**-50  # relative precision of a float64 result
AGREEMENT = 1e-3  # relative tolerance between tokens; only a few digits of c are exact
TIED = 10.0  # epsilons are equally good up to this multiple of the smallest spread
SUM_TOLERANCE = 1e-6  # tolerance of the factors of attention and MLP in a block's output


def describe_trace_differences(a: Trace, b: Trace, first: str | None) -> list[str]:
    """Return sentences about the first result that differs.

    Args:
        a: the trace of the source.
        b: the trace of the target.
        first: the name of the first result that differs in float64; None if no result differs.
    """
    if sentences := list(_not_finite(a, b)):
        return sentences
    at_first = [] if first is None else _differences_at(a, b, first)
    return [*at_first, *_describe_block_sums(a, b), *_randomness(a, b), *_roundings(a, b, first)]


def _not_finite(a: Trace, b: Trace) -> Iterator[str]:
    """For each side and dtype, yield a sentence about the first result that is not finite."""
    for side, trace in (("A", a), ("B", b)):
        for dtype in trace.description["dtypes"]:
            results = trace.results(dtype)
            for name in sorted(results, key=execution_order):
                bad = ~np.isfinite(results[name].astype(np.float64))
                if bad.any():
                    index = tuple(map(int, np.argwhere(bad)[0]))
                    yield (
                        f"{name} of {side}'s {dtype} run has"
                        f" {non_finite_values(int(bad.sum()))}, the first at index {index}"
                    )
                    break


def _differences_at(a: Trace, b: Trace, first: str) -> Iterator[str]:
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
        yield from _additional_token(first, x, y)
        return
    yield from _describe_result(a, b, first)


def _additional_token(first: str, x: np.ndarray, y: np.ndarray) -> Iterator[str]:
    """Yield a sentence if the result ``first`` has one more token on one side."""
    if x.ndim != 3 or x.shape[0] != y.shape[0] or x.shape[2] != y.shape[2]:
        return
    for fewer, more, side in ((x, y, "B"), (y, x, "A")):
        if more.shape[1] == fewer.shape[1] + 1:
            for index in range(more.shape[1]):
                if near(np.delete(more, index, axis=1), fewer):
                    yield f"{first} has one more token in {side}, at index {index}"
                    return


def _masking(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> Iterator[str]:
    mask, other = a["mask"], b["mask"]
    visible, others = int((mask[0] == 0).sum()), int((other[0] == 0).sum())
    if np.array_equal(other, 1 - mask):
        yield "B's mask is A's mask with kept and removed patches exchanged"
    elif visible != others:
        yield f"A keeps {visible} of {mask.shape[1]} patches and B keeps {others}"
    restore, other_restore = a["ids_restore"], b["ids_restore"]
    if np.array_equal(restore, other_restore) or restore.shape != other_restore.shape:
        return
    if np.array_equal(other_restore, np.argsort(restore, axis=1)):
        yield "B's ids_restore is ids_shuffle instead of its inverse"
    elif np.array_equal(other_restore, restore.shape[1] - 1 - restore):
        yield "B sorts the noise in descending order, so it keeps the patches that A removes"
    elif len(shift := np.unique((other_restore - restore) % restore.shape[1])) == 1:
        yield (
            f"B's ids_restore is A's ids_restore plus {int(shift[0])}, modulo the number of patches"
        )


def _randomness(a: Trace, b: Trace) -> Iterator[str]:
    """Yield a sentence if the runs of one side differ by more than rounding errors."""
    dtypes = [set(trace.description["dtypes"]) for trace in (a, b)]
    if not all("float32" in names for names in dtypes):
        return
    errors = {side: rounding_errors(trace, "float32") for side, trace in (("A", a), ("B", b))}
    for side, other in (("A", "B"), ("B", "A")):
        names = sorted(errors[side], key=execution_order)
        name = next((n for n in names if errors[side][n] > RANDOM), None)
        if name is not None and errors[other].get(name, 1.0) < RANDOM:
            yield (
                f"{side}'s two runs differ by {errors[side][name]:.1e} at {name}, more than"
                " rounding can explain: its results are random, as when dropout is active"
            )


def _roundings(a: Trace, b: Trace, first: str | None) -> Iterator[str]:
    """Yield a sentence about each side whose rounding error in float32 is too large.

    Rounding errors are compared only if no result differs in float64, that is, if ``first`` is
    None.
    """
    if first is not None or "float32" not in set(a.description["dtypes"]) & set(
        b.description["dtypes"]
    ):
        return
    errors = {side: rounding_errors(trace, "float32") for side, trace in (("A", a), ("B", b))}
    for side, other in (("A", "B"), ("B", "A")):
        own, peer = errors[side], errors[other]
        large = [n for n in own if own[n] > 8 * max(peer.get(n, 0), 16 * UNIT_ROUNDOFF["float32"])]
        if large:
            name = min(large, key=execution_order)
            units = {kind: own[name] / UNIT_ROUNDOFF[kind] for kind in ("bfloat16", "float16")}
            yield (
                f"{side}'s rounding error at {name} (relative to its own float64 run) is"
                f" {own[name] / UNIT_ROUNDOFF['float32']:.0f} times the unit roundoff of float32,"
                f" {units['float16']:.2g} times the unit roundoff of TF32 and float16, and"
                f" {units['bfloat16']:.2g} times the unit roundoff of bfloat16; at earlier results,"
                f" {side}'s rounding error is as small as {other}'s rounding error"
            )


def _describe_result(a: Trace, b: Trace, first: str) -> Iterator[str]:
    """Yield sentences about how B's result `first` is related to A's; both have the same shape."""
    ours = a.results("float64")
    x, y = ours[first], b.results("float64")[first]
    yield from _other_step(ours, first, y)
    if x.ndim >= 2:
        yield from _relations(a, first, x, y)
        yield from _epsilons(a, b, first)
        yield from _differing_parts(a, first, x, y)


def _other_step(ours: Mapping[str, np.ndarray], first: str, y: np.ndarray) -> Iterator[str]:
    """Yield a sentence if B's result is equal to another result of A."""
    for name, x in ours.items():
        if name != first and x.shape == y.shape and near(x, y):
            yield f"{first} in B is equal to {name} in A"
            return


def _relations(a: Trace, first: str, x: np.ndarray, y: np.ndarray) -> Iterator[str]:
    """Yield a sentence if a known operation turns A's result into B's result.

    Args:
        a: the trace of A.
        first: the name of the result.
        x: the result of A.
        y: the result of B.
    """
    if (ratio := factor(x, y)) is not None:
        yield f"{first} in B is {ratio:.6g} times {first} in A"
        return
    if (share := dropout_probability(x, y)) is not None:
        yield (
            f"{first} in B is equal to {first} in A with {(y == 0).mean():.0%} of the values set to"
            f" zero and the others divided by {1 - share:.3g}: dropout of {share:.3g} is active"
        )
        return
    axes = ORDERED_AXES.get((x.ndim, first == "reconstruction"), {})
    for axis, what in axes.items():
        if (order := permutation_between(x, y, axis)) is not None:
            text = _order_name(a, first, order) if what == "channels" else _beginning(order)
            yield f"{first} in B has the {what} of A in another order: {text}"
            return


def _order_name(a: Trace, first: str, order: np.ndarray) -> str:
    """Return the name of a known order of channels, or the first indices of an unknown order.

    Args:
        a: the trace of A.
        first: the name of the result whose channels are in another order in B.
        order: the index in A's result of each channel of B's result.
    """
    config = a.description["config"]
    match = BLOCK_TAP.fullmatch(first)
    orders: dict[str, np.ndarray] = {}
    if match and match[3] in ("q", "k", "v"):
        prefix = "decoder_" if match[1] == "decoder" else ""
        width, heads = (config[f"{prefix}{n}"] for n in ("hidden_size", "num_attention_heads"))
        orders = weight_edits.head_orders(width, heads)
    elif first == "logits" and a.description["task"] == "pretrain":
        patch = config["patch_size"]
        height, width = (patch, patch) if isinstance(patch, int) else patch
        orders = weight_edits.pixel_orders(height, width, config["num_channels"])
    names = (name for name, indices in orders.items() if np.array_equal(indices, order))
    return next(names, None) or _beginning(order)


def _beginning(order: np.ndarray) -> str:
    return ", ".join(map(str, order[:8])) + (" ..." if len(order) > 8 else "")


def _epsilons(a: Trace, b: Trace, first: str) -> Iterator[str]:
    config = a.description["config"]
    configured = config[EPSILON]
    if first.startswith("decoder.") and config.get(f"decoder_{EPSILON}") is not None:
        configured = config[f"decoder_{EPSILON}"]
    fitting = _fitting_epsilons(a.results("float64"), b.results("float64"), first, configured)
    if fitting:
        yield (
            f"{first} in B is equal to {first} in A if A uses a layer norm epsilon of"
            f" {' or '.join(f'{eps:g}' for eps in fitting)} instead of {configured:g}"
        )


def _differing_parts(a: Trace, first: str, x: np.ndarray, y: np.ndarray) -> Iterator[str]:
    """Yield sentences about the images, tokens and channels in which a result differs.

    Args:
        a: the trace of A.
        first: the name of the result.
        x: the result of A.
        y: the result of B.
    """
    difference = y - x
    inner = difference
    if first == "encoder.embedding":
        inner = difference[:, class_tokens(a, difference) :]
    if x.ndim == 3 and same_vector(inner):
        yield f"{first} differs by the same vector at every token, as if a bias were different"
    elif first in ("encoder.embedding", "decoder.embedding"):
        positions = patch_positions(a, first, inner.shape[1])
        if positions is not None and same_by_position(inner, positions):
            yield f"{first} differs by vectors that depend on the position only"
    for axis, what in enumerate(AXES.get(x.ndim, ())):
        where = differing(x, y, axis)
        if 0 < len(where) < x.shape[axis]:
            part = f"{what} {index_ranges(where)} of {x.shape[axis]}"
            if what == "tokens" and len(where) == 1 and where[0] == 0:
                part = "the class token"
            yield f"{first} differs in {part} only"
    decoder = first.startswith("decoder.") and first != "decoder.norm"
    if x.ndim == 3 and "mask" in a.arrays and (decoder or x.shape[1] > a.arrays["mask"].shape[1]):
        yield from _at_removed_patches(a, first, difference)


def _at_removed_patches(a: Trace, first: str, difference: np.ndarray) -> Iterator[str]:
    differs = np.abs(difference).max(axis=-1) > 1e-9 * np.abs(difference).max()
    removed = removed_tokens(a, a.arrays["mask"], difference.shape[1])
    if not differs[~removed].any():
        yield f"{first} differs at removed patches only"
    elif not differs[removed].any():
        yield f"{first} differs at visible patches and the class token only"


def _describe_block_sums(a: Trace, b: Trace) -> Iterator[str]:
    """Yield a sentence about the first block of B whose output is not input + attention + MLP.

    Blocks for which this does not hold in A either are skipped.
    """
    ours, theirs = (_residual_factors(trace.results("float64")) for trace in (a, b))
    for name, shares in theirs.items():
        if not _are_one(ours.get(name)) or _are_one(shares):
            continue
        if shares is None:
            yield (
                f"{name} in B is not the sum of the block's input and multiples of the outputs of"
                " the block's attention and MLP"
            )
        else:
            yield (
                f"{name} in B is the block's input plus {shares[0]:.6g} times attention plus"
                f" {shares[1]:.6g} times the MLP"
            )
        return


def _are_one(shares: tuple[float, float] | None) -> bool:
    return shares is not None and np.allclose(shares, 1, rtol=0, atol=SUM_TOLERANCE)


def _residual_factors(results: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float] | None]:
    """Return the factors of attention and MLP in each block output, by the output's name.

    The factors are None if the block output is not the sum of the block's input and multiples of
    attention and MLP.
    """
    factors: dict[str, tuple[float, float] | None] = {}
    for name in sorted(results, key=execution_order):
        match = BLOCK_TAP.fullmatch(name)
        if match is None or match[3] != "output":
            continue
        stack, index = match[1], int(match[2])
        before = f"{stack}.blocks.{index - 1}.output" if index else f"{stack}.embedding"
        parts = [results.get(f"{stack}.blocks.{index}.{part}") for part in ("attention", "mlp")]
        if before not in results or any(p is None or p.shape != results[name].shape for p in parts):
            continue
        added = (results[name] - results[before]).ravel()
        columns = np.stack([part.ravel() for part in parts if part is not None], axis=1)
        shares = np.linalg.lstsq(columns, added, rcond=None)[0]
        fits = near(columns @ shares, added)
        factors[name] = (float(shares[0]), float(shares[1])) if fits else None
    return factors


def _fitting_epsilons(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], first: str, configured: float
) -> list[float]:
    """Return the layer norm epsilons that explain B's result, the best epsilon first.

    The weights are not needed. A norm and a linear layer turn a token x into f = M x̂ + c, where x̂
    is x minus its mean, divided by the square root of its variance plus epsilon. Another epsilon
    multiplies x̂ by a number s that depends only on the variance of the token, so that B's result is
    f' = s M x̂ + c, and f' - s f = (1 - s) c. The vector c is the same for all tokens: an epsilon
    that results in the same c for all tokens explains B's result.

    Args:
        a: the results of A, whose epsilon is known.
        b: the results of B.
        first: the first result that differs.
        configured: the epsilon of A.
    """
    before = _before(first, a)
    if before is None:
        return []
    f, g = a[first], b[first]
    if not (f.ndim == a[before].ndim == 3 and f.shape == g.shape):
        return []
    # There may be no class token after the norm and no mask tokens before the norm; both results
    # end with the same visible patches.
    variance = a[before][:, a[before].shape[1] - f.shape[1] :].var(axis=-1, keepdims=True)
    spreads = {
        eps: _spread(variance, f, g, configured, eps) for eps in EPSILONS if eps != configured
    }
    best = sorted(spreads, key=lambda eps: spreads[eps])
    return [eps for eps in best if spreads[eps] < min(AGREEMENT, TIED * spreads[best[0]])]


def _spread(
    variance: np.ndarray, f: np.ndarray, g: np.ndarray, configured: float, eps: float
) -> float:
    """Return how much the vector c differs between tokens if B's epsilon is `eps`.

    See `_fitting_epsilons` for the definition of c. The result is the largest difference from the
    median over tokens, divided by the largest absolute value of the median and `f`. It is at least
    an estimate of the rounding error of c, and infinity if c cannot be computed.

    Args:
        variance: the variance of each token before the norm.
        f: A's result of the norm, or of the linear layer after it.
        g: B's result of the norm, or of the linear layer after it.
        configured: the epsilon of A.
        eps: the epsilon to test.
    """
    if not (variance + eps > 0).all():
        return math.inf
    scale = np.sqrt((variance + configured) / (variance + eps))
    change = np.abs(1 - scale)
    if not (change > 0).all():
        return math.inf
    noise = PRECISION * np.abs(f).max() / (change.min() * np.abs(f).mean())
    constant = (g - scale * f) / (1 - scale)
    vectors = constant.reshape(-1, constant.shape[-1])
    median = np.median(vectors, axis=0)
    spread = np.abs(vectors - median).max() / max(np.abs(median).max(), np.abs(f).max())
    return max(float(spread), noise)


def _before(first: str, a: Mapping[str, np.ndarray]) -> str | None:
    """Return the name of the activation to which the model applies a layer norm to get a result.

    Args:
        first: the name of the result.
        a: the float64 results of one side, by name.

    Returns:
        The name; None if the result is neither the output of a layer norm nor the queries, keys
        or values that are computed from it, or if `a` does not contain both this activation and
        the result.
    """
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
