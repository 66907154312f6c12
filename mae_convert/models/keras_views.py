"""Modified views of a Keras model: recomputed blocks, or images of another size."""

from typing import Any

import keras
from keras import ops

from mae_convert.families.position_embeddings import resampling_matrix
from reference_models.outputs import Taps, Tensor

Size = tuple[int, int]


def blocks_of(model: Any) -> list[Any]:
    """Return the transformer blocks of encoder and decoder."""
    trunks = [model.encoder, *([model.decoder] if hasattr(model, "decoder") else [])]
    return [getattr(trunk, f"block_{n}") for trunk in trunks for n in range(trunk.depth)]


class RecomputedBlock:
    """A block whose activations are recomputed in the backward pass."""

    def __init__(self, block: Any) -> None:
        self.block = block

    def __call__(self, tokens: Tensor, taps: Taps | None = None) -> Tensor:
        """Map tokens (N, T, D) to (N, T, D)."""
        compute = type(self.block).call
        if taps is not None:  # recorded activations must not be recomputed
            return compute(self.block, tokens, taps)

        def output(inputs: Tensor) -> Tensor:
            return compute(self.block, inputs)

        return keras.remat(output)(tokens)


def shared(layer: Any, **changes: Any) -> Any:
    """Return a layer that shares all variables of another, with some attributes replaced."""
    view = object.__new__(type(layer))
    view.__dict__.update({**layer.__dict__, **changes})
    return view


def resampled(positions: Any, grid: Size, new_grid: Size) -> Tensor:
    """Return position embeddings (1, 1 + L, D) for another grid, as a conversion computes them.

    The interpolation is bicubic in two dimensions, in float64 (on JAX only if enabled), and the
    result is rounded; it is differentiable.
    """
    table = ops.convert_to_tensor(positions)
    rows, columns = (
        ops.convert_to_tensor(resampling_matrix(old, new), dtype="float64")
        for old, new in zip(grid, new_grid, strict=True)
    )
    patches = ops.reshape(ops.cast(table[0, 1:], "float64"), (*grid, -1))  # (h, w, D)
    new = ops.einsum("yr,xc,rcd->yxd", rows, columns, patches)
    tokens = ops.cast(ops.reshape(new, (new_grid[0] * new_grid[1], -1)), table.dtype)
    return ops.concatenate([table[:, :1], tokens[None]], axis=1)
