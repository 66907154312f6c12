"""How one result follows from another, and where the two differ, from the results alone.

Results are float64 arrays: (N, T, D) of images, tokens and channels, (N, K) of classes, or pictures
(N, C, H, W).
"""

from collections.abc import Iterator, Mapping

import numpy as np

from mae_convert.diagnose import orders
from mae_convert.diagnose.epsilon import epsilons_of
from mae_convert.verify.array_patterns import (
    differing,
    dropped,
    factor,
    near,
    order_of,
    runs,
    same_by_place,
    same_vector,
)
from mae_convert.verify.localise import BLOCK_TAP, kept_places
from mae_convert.verify.trace import Trace

EPSILON = "layer_norm_eps"


def forms(a: Trace, b: Trace, first: str) -> Iterator[str]:
    """Yield how B's result follows from A's, and where they differ; both have one shape."""
    ours = a.results("float64")
    x, y = ours[first], b.results("float64")[first]
    yield from _renamed(ours, first, y)
    if x.ndim >= 2:
        yield from _relations(a, first, x, y)
        yield from _epsilons(a, b, first)
        yield from _places(a, first, x, y)


def _renamed(ours: Mapping[str, np.ndarray], first: str, y: np.ndarray) -> Iterator[str]:
    """Yield that B has here what A has at another step."""
    for name, x in ours.items():
        if name != first and x.shape == y.shape and near(x, y):
            yield f"{first} in B is what {name} is in A"
            return


def _relations(a: Trace, first: str, x: np.ndarray, y: np.ndarray) -> Iterator[str]:
    """Yield by what operation the one result is the other."""
    if (ratio := factor(x, y)) is not None:
        yield f"{first} in B is {ratio:.6g} times what it is in A"
        return
    if (share := dropped(x, y)) is not None:
        yield (
            f"{first} in B is that of A with {(y == 0).mean():.0%} of the values set to zero and"
            f" the others divided by {1 - share:.3g}: dropout of {share:.3g} is left on"
        )
        return
    names = AXES.get((x.ndim, first == "reconstruction"), {})
    for axis, what in names.items():
        if (order := order_of(x, y, axis)) is not None:
            known = _known(a, first, order) if what == "channels" else _few(order)
            yield f"{first} in B has the {what} of A in another order: {known}"
            return


# Axes whose parts may be in another order: channels first, because few tokens may be mistaken.
AXES = {
    (3, False): {2: "channels", 1: "tokens"},
    (2, False): {1: "classes"},
    (4, True): {1: "channels", 2: "rows", 3: "columns"},
}


def _known(a: Trace, first: str, order: np.ndarray) -> str:
    """Return the name of an order of channels, or its beginning."""
    config = a.description["config"]
    match = BLOCK_TAP.fullmatch(first)
    known: dict[str, np.ndarray] = {}
    if match and match[3] in ("q", "k", "v"):
        prefix = "decoder_" if match[1] == "decoder" else ""
        width, heads = (config[f"{prefix}{n}"] for n in ("hidden_size", "num_attention_heads"))
        known = orders.of_heads(width, heads)
    elif first == "logits" and a.description["task"] == "pretrain":
        patch = config["patch_size"]
        height, width = (patch, patch) if isinstance(patch, int) else patch
        known = orders.of_pixels(height, width, config["num_channels"])
    named = next((what for what, known_ in known.items() if np.array_equal(known_, order)), None)
    return named or _few(order)


def _few(order: np.ndarray) -> str:
    return ", ".join(map(str, order[:8])) + (" ..." if len(order) > 8 else "")


def _epsilons(a: Trace, b: Trace, first: str) -> Iterator[str]:
    config = a.description["config"]
    configured = config[EPSILON]
    if first.startswith("decoder.") and config.get(f"decoder_{EPSILON}") is not None:
        configured = config[f"decoder_{EPSILON}"]
    found = epsilons_of(a.results("float64"), b.results("float64"), first, configured)
    if found:
        yield (
            f"{first} in B follows from A's by a layer norm epsilon of"
            f" {' or '.join(f'{eps:g}' for eps in found)} in place of {configured:g}"
        )


PLACES = {
    2: ("pictures", "classes"),
    3: ("pictures", "tokens", "channels"),
    4: ("pictures", "channels", "rows", "columns"),
}


def _places(a: Trace, first: str, x: np.ndarray, y: np.ndarray) -> Iterator[str]:
    """Yield in which pictures, tokens and channels the difference is."""
    difference = y - x
    inner = difference[:, 1:] if first == "encoder.embedding" else difference
    if x.ndim == 3 and same_vector(inner):
        yield f"{first} differs by the same vector at every token, as a bias makes it"
    elif first in ("encoder.embedding", "decoder.embedding"):
        places = kept_places(a, first, inner.shape[1])
        if places is not None and same_by_place(inner, places):
            yield f"{first} differs by vectors that depend on the place only, as positions make it"
    for axis, what in enumerate(PLACES.get(x.ndim, ())):
        where = differing(x, y, axis)
        if 0 < len(where) < x.shape[axis]:
            said = f"{what} {runs(where)} of {x.shape[axis]}"
            if what == "tokens" and len(where) == 1 and where[0] == 0:
                said = "the class token"
            yield f"{first} differs in {said} only"
    if x.ndim == 3 and "mask" in a.arrays and x.shape[1] == a.arrays["mask"].shape[1] + 1:
        yield from _removed(a.arrays["mask"], first, difference)


def _removed(mask: np.ndarray, first: str, difference: np.ndarray) -> Iterator[str]:
    away = np.abs(difference).max(axis=-1) > 1e-9 * np.abs(difference).max()
    removed = np.concatenate([np.zeros((len(mask), 1)), mask], axis=1) > 0
    if not away[~removed].any():
        yield f"{first} differs at removed patches only"
    elif not away[removed].any():
        yield f"{first} differs at kept patches and the class token only"
