"""Determine from the weights how many heads an attention layer was trained with.

Attention logits are sums over the channels of one head: ``q_h · k_h``. The gradient of a query
channel therefore depends on the key channels of the same head and on no others, and after training
the entries of the matrix product ``W_q W_kᵀ`` (width x width) are larger if both channels belong to
the same head.

The test is an exact permutation test. The initialization does not depend on the channel index, and
training treats the channels of a head equally. So if a layer has h heads, permuting the channels
within each head and permuting the heads gives weights of the same probability. A number of heads is
rejected if such permutations destroy a structure in the weights.

If a model has few layers and each layer has few heads, there are so few such permutations that the
test does not reject twice the true number of heads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SMALLEST_HEAD = 4
"""Width of the narrowest head that is tested."""
PERMUTATIONS = 100
MOST_LAYERS = 6
REJECTED_FROM = 5.0
"""The smallest value in `HeadStructure.deviations` for which a number of heads is rejected.

The weights that serve to reject the other numbers of heads were also used to choose the best
number, so the threshold is far above the usual 2 or 3 standard deviations."""

SMALLEST_SCORE = 20.0
"""Minimum log-likelihood ratio for a significant structure; random weights have at most 5."""

Layer = Callable[[], tuple[np.ndarray, np.ndarray]]
"""A function that returns the query and key weights (width, width); rows are output channels."""


@dataclass(frozen=True)
class HeadStructure:
    """The result of `head_structure`: how well each number of heads fits the attention layers."""

    scores: dict[int, float]
    """The log-likelihood ratio of each number of heads, summed over layers.

    The ratio compares two hypotheses about the entries of ``W_q W_kᵀ``: either the entries within
    heads and the entries between heads have different means, or all entries have the same mean. The
    number of heads with the largest ratio fits best.
    """

    deviations: dict[int, float]
    """How clearly each number of heads is rejected in favour of the best number of heads.

    The weights are permuted at random in ways that have no effect on their distribution if a number
    of heads is right. The value for this number is the score of the best number on the actual
    weights, minus its mean score on the permuted weights, in standard deviations of the scores on
    the permuted weights. It is 0 for the best number.
    """

    @property
    def best(self) -> int:
        """The number of heads with the largest score."""
        return max(self.scores, key=self.scores.__getitem__)

    @property
    def margin(self) -> float:
        """The smallest value in `deviations` for a number of heads other than `best`.

        It is 0.0 if `best` is the only number of heads.
        """
        return min((d for h, d in self.deviations.items() if h != self.best), default=0.0)

    @property
    def decided(self) -> bool:
        """Whether the best score is large enough, and every other number of heads is rejected."""
        return self.scores[self.best] >= SMALLEST_SCORE and self.margin >= REJECTED_FROM


def possible_heads(width: int) -> list[int]:
    """Return the numbers that divide a width into heads of at least `SMALLEST_HEAD` channels."""
    return [h for h in range(1, width + 1) if width % h == 0 and width // h >= SMALLEST_HEAD]


def head_structure(layers: Sequence[Layer], *, seed: int = 0) -> HeadStructure:
    """Return how well each possible number of heads fits some attention layers of the same width.

    Args:
        layers: for each layer, a function that returns its query and key weights; at most
            `MOST_LAYERS` evenly spaced layers are used.
        seed: the seed of the random permutations of the weights with which numbers of heads are
            rejected.
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
    """Return log |entry| of a matrix, less the means of rows and columns, with mean square 1.

    Logarithms and subtracted means limit the influence of single large channels. The diagonal
    couples each channel with itself and contains no information about heads; it is set to 0 and
    left out of the means.

    Args:
        product: the matrix ``W_q W_kᵀ`` of an attention layer (width, width).
    """
    size = len(product)
    absolute = np.abs(product.astype(np.float64))
    floor = max(absolute.max() * 1e-12, np.finfo(np.float64).tiny)
    logs = np.log(np.maximum(absolute, floor))
    np.fill_diagonal(logs, 0.0)
    for _ in range(3):  # without the diagonal, the means of rows and columns need several passes
        logs -= logs.sum(1, keepdims=True) / (size - 1)
        np.fill_diagonal(logs, 0.0)
        logs -= logs.sum(0, keepdims=True) / (size - 1)
        np.fill_diagonal(logs, 0.0)
    spread = np.sqrt(np.square(logs).sum() / (size * (size - 1)))
    return (logs / spread if spread else logs).astype(np.float32)


def _within(matrix: np.ndarray, order: np.ndarray, heads: int) -> float:
    """Return the sum of the entries whose row and column belong to the same head.

    ``order`` lists the channels of the first head, then the channels of the second head, and so
    on.
    """
    groups = order.reshape(heads, -1)
    return float(matrix[groups[:, :, None], groups[:, None, :]].sum(dtype=np.float64))


def _score(matrix: np.ndarray, heads: int, order: np.ndarray | None = None) -> float:
    """Return the log-likelihood ratio of two hypotheses about the entries of a matrix.

    The first hypothesis is that the entries within heads and the entries between heads have
    different means, the second that all entries have the same mean. The ratio has a negative sign
    if the mean of the entries within heads is smaller than the mean of the entries between heads.

    Args:
        matrix: (D, D), entries for pairs of channels, with sum 0 and mean square 1 outside the
            diagonal.
        heads: the number of heads.
        order: the channels, head by head; None for the order of the matrix.
    """
    size, channels = len(matrix), len(matrix) // heads
    if heads == 1:  # there are no entries between heads
        return 0.0
    inside, outside = size * (channels - 1), size * (size - channels)
    # The sum of all entries is 0, so the sum of the entries between heads is -within.
    within = _within(matrix, np.arange(size) if order is None else order, heads)
    difference = within / inside + within / outside
    # The mean square of the entries outside the diagonal is 1.
    ratio = inside * outside / (inside + outside) * difference**2 / 2
    return float(np.copysign(ratio, difference))


def _deviation(
    matrices: Sequence[np.ndarray], heads: int, best: int, generator: np.random.Generator
) -> float:
    """Return by how much the score for `best` heads exceeds its mean on permuted weights.

    The weights are permuted as if there were `heads` heads; see `_permutation`. The result is a
    number of standard deviations of the scores on permuted weights; it is 0.0 if these scores are
    equal.

    Args:
        matrices: for each layer, the matrix of `_score`.
        heads: the number of heads for which the weights are permuted.
        best: the number of heads with the largest score.
        generator: the generator of the random permutations.
    """
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
    """Return a random permutation of the heads and of the channels within each head."""
    channels = generator.permuted(np.arange(width).reshape(heads, -1), axis=1)
    return generator.permutation(channels).reshape(-1)
