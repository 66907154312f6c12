"""Determine the shape of the patch grid from learned position embeddings.

The position embeddings of neighbouring patches are similar. The grid shape determines which patches
are neighbours, so the mean similarity of neighbours is largest with the correct grid shape.
"""

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.diagnose.infer.decision import SIGNIFICANT, Candidate, Decision

MOST_ELONGATED = 32
SAMPLES = 500
NAME = "encoder.position_embedding"


def has_grid(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint has a position embedding for each patch of an image."""
    return NAME in checkpoint.tensors and checkpoint.family.clips is None


def grid_decision(checkpoint: Checkpoint, *, seed: int = 0) -> Decision:
    """Return the decision on ``image_size``, height and width in pixels.

    With the best grid shape, the position embeddings of neighbouring patches are most similar. On
    bootstrap samples of the patches, the best shape is compared with every other shape, and the
    share of samples that confirm the best shape is computed. The confidence is the smallest of
    these shares, or 1.0 if no other shape is possible.
    """
    model = checkpoint.configuration.model
    table = checkpoint.tensors[NAME].load()[0, -model.num_patches :].astype(np.float64)
    centred = table - table.mean(0)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    similarity = (centred / np.maximum(norms, 1e-12)) @ (centred / np.maximum(norms, 1e-12)).T
    shapes = _shapes(model.num_patches)
    per_patch = np.stack([_neighbour_similarity(similarity, *shape) for shape in shapes])
    best = int(per_patch.mean(1).argmax())
    generator = np.random.Generator(np.random.Philox(seed))
    chosen = generator.integers(model.num_patches, size=(SAMPLES, model.num_patches))
    means = per_patch[:, chosen].mean(2)  # (shapes, samples)
    others = np.delete(means, best, axis=0)
    confidence = float((means[best] > others).mean(1).min()) if len(others) else 1.0
    height, width = model.patch_hw
    sizes = [(rows * height, columns * width) for rows, columns in shapes]
    order = np.argsort(-per_patch.mean(1))
    candidates = tuple(
        Candidate(sizes[i], structure=round(float(per_patch[i].mean()), 4)) for i in order
    )
    decided = confidence >= SIGNIFICANT
    reason = (
        (
            "on a grid of this shape, neighbouring patches have significantly more similar "
            "position embeddings than on a grid of any other shape"
        )
        if decided
        else "no grid shape fits the position embeddings significantly better than all other shapes"
    )
    return Decision(
        "image_size",
        sizes[best] if decided else None,
        confidence,
        "weights" if decided else "",
        reason,
        candidates,
    )


def _shapes(patches: int) -> list[tuple[int, int]]:
    """Return the possible (rows, columns) of a grid of `patches` patches."""
    pairs = [(rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0]
    return [pair for pair in pairs if max(pair) <= MOST_ELONGATED * min(pair)]


def _neighbour_similarity(similarity: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return each patch's mean similarity with its neighbours in a grid, (patches,)."""
    number = np.arange(rows * columns).reshape(rows, columns)
    total, count = np.zeros(rows * columns), np.zeros(rows * columns)
    pairs = [(number[:, :-1], number[:, 1:]), (number[:-1], number[1:])]
    for first, second in ((a.ravel(), b.ravel()) for a, b in pairs):
        for one, other in ((first, second), (second, first)):
            total[one] += similarity[one, other]
            count[one] += 1
    alike: np.ndarray = total / np.maximum(count, 1)
    return alike
