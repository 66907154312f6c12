"""How many heads an attention layer was trained with, from its weights alone.

Attention logits are sums over the channels of one head: ``q_h · k_h``. The gradient of a query
channel therefore depends on the key channels of the same head and on no others, and after training
the entries of the matrix product ``W_q W_kᵀ`` (width x width) are larger where both channels belong
to one head.

The test is exact. Weights are initialised independently of the channel's number, and training
treats the channels of a head alike. So if a layer has h heads, its weights are as likely with the
channels of each head in any other order, and with the heads in any other order. A number of heads
is rejected if such permutations destroy a structure that the weights have.

Few layers with few heads have few such orders, and then twice the true number is not rejected.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SMALLEST_HEAD = 4
"""Width of the narrowest head that is tested."""
PERMUTATIONS = 100
MOST_LAYERS = 6
REJECTED_FROM = 5.0
"""Standard deviations from the mean of the permutations at which a number of heads is rejected.

The best number is chosen from the same weights, so this is far above the usual 2 or 3."""

SMALLEST_SCORE = 20.0
"""Minimum log-likelihood ratio for a significant structure; random weights have at most 5."""

Layer = Callable[[], tuple[np.ndarray, np.ndarray]]
"""Reads the weights of query and key, (width, width), whose rows are the channels of the heads."""


@dataclass(frozen=True)
class HeadStructure:
    """What the weights of a stack of attention layers show about the number of heads."""

    scores: dict[int, float]
    """Number of heads → how much larger entries within a head are, as a log-likelihood ratio summed
    over layers; the largest is the best."""

    deviations: dict[int, float]
    """Number of heads → by how many standard deviations the weights differ from permuted ones, if
    this were the number of heads. 0 for the best number itself."""

    @property
    def best(self) -> int:
        """The number of heads with the largest score."""
        return max(self.scores, key=self.scores.__getitem__)

    @property
    def margin(self) -> float:
        """The deviation of the number of heads that is nearest to being possible."""
        return min((d for h, d in self.deviations.items() if h != self.best), default=0.0)

    @property
    def decided(self) -> bool:
        """Whether every number of heads but the best one is rejected."""
        return self.scores[self.best] >= SMALLEST_SCORE and self.margin >= REJECTED_FROM


def possible_heads(width: int) -> list[int]:
    """Return the numbers of heads that a width can be divided into."""
    return [h for h in range(1, width + 1) if width % h == 0 and width // h >= SMALLEST_HEAD]


def head_structure(layers: Sequence[Layer], *, seed: int = 0) -> HeadStructure:
    """Test every possible number of heads of attention layers of one width.

    Args:
        layers: how to read the weights of each; at most `MOST_LAYERS`, evenly spread, are used.
        seed: of the permutations.
    """
    chosen = np.linspace(0, len(layers) - 1, min(len(layers), MOST_LAYERS)).round().astype(int)
    magnitudes = [
        matrix
        for index in chosen
        for query, key in [layers[index]()]
        for matrix in [_log_magnitudes(query @ key.T)]
    ]
    width = len(magnitudes[0])
    scores = {
        heads: sum(_score(matrix, heads) for matrix in magnitudes)
        for heads in possible_heads(width)
    }
    best = max(scores, key=scores.__getitem__)
    generator = np.random.Generator(np.random.Philox(seed))
    deviations = {
        heads: 0.0 if heads == best else _deviation(magnitudes, heads, best, generator)
        for heads in sorted(scores)
    }
    return HeadStructure({heads: scores[heads] for heads in sorted(scores)}, deviations)


def _log_magnitudes(product: np.ndarray) -> np.ndarray:
    """Return log |entry| without the means of rows and columns; the diagonal is 0.

    Logarithms and the removed means keep single large channels from deciding. An entry of the
    diagonal couples a channel with itself, which any number of heads does.
    """
    size = len(product)
    absolute = np.abs(product.astype(np.float64))
    floor = max(absolute.max() * 1e-12, np.finfo(np.float64).tiny)
    logs = np.log(np.maximum(absolute, floor))
    np.fill_diagonal(logs, 0.0)
    for _ in range(3):  # rows and columns share the missing diagonal: repeat until both are 0
        logs -= logs.sum(1, keepdims=True) / (size - 1)
        np.fill_diagonal(logs, 0.0)
        logs -= logs.sum(0, keepdims=True) / (size - 1)
        np.fill_diagonal(logs, 0.0)
    spread = np.sqrt(np.square(logs).sum() / (size * (size - 1)))
    return (logs / spread if spread else logs).astype(np.float32)


def _within(matrix: np.ndarray, order: np.ndarray, heads: int) -> float:
    """Return the sum of the entries whose row and column belong to one head, channels in order."""
    groups = order.reshape(heads, -1)
    return float(matrix[groups[:, :, None], groups[:, None, :]].sum(dtype=np.float64))


def _score(matrix: np.ndarray, heads: int, order: np.ndarray | None = None) -> float:
    """Return the log-likelihood ratio of a difference of means within and between heads."""
    size, channels = len(matrix), len(matrix) // heads
    if heads == 1:  # nothing is outside of one head
        return 0.0
    inside, outside = size * (channels - 1), size * (size - channels)
    # All entries sum to 0, so that those between heads sum to -within.
    within = _within(matrix, np.arange(size) if order is None else order, heads)
    difference = within / inside + within / outside
    # The matrix has a mean square of 1 outside of the diagonal.
    ratio = inside * outside / (inside + outside) * difference**2 / 2
    return float(np.copysign(ratio, difference))


def _deviation(
    matrices: Sequence[np.ndarray], heads: int, best: int, generator: np.random.Generator
) -> float:
    """Return how unusual the score of ``best`` heads would be if there were ``heads`` heads."""
    observed = sum(_score(matrix, best) for matrix in matrices)
    permuted = np.array(
        [
            sum(
                _score(matrix, best, _permutation(len(matrix), heads, generator))
                for matrix in matrices
            )
            for _ in range(PERMUTATIONS)
        ]
    )
    spread = float(permuted.std(ddof=1))
    return float((observed - permuted.mean()) / spread) if spread else 0.0


def _permutation(width: int, heads: int, generator: np.random.Generator) -> np.ndarray:
    """Return the channels with the heads in another order, and each head's channels too."""
    channels = generator.permuted(np.arange(width).reshape(heads, -1), axis=1)
    return generator.permutation(channels).reshape(-1)
