"""Views of a Keras model, which share its variables.

A view gives the encoder the attribute names of transformers, recomputes the activations of a block,
or has position embeddings for images of another size.
"""

from types import SimpleNamespace
from typing import Any

import keras
from keras import KerasTensor, ops

from mae_convert.families.position_embeddings import resampling_matrix
from mae_convert.models.model_outputs import EncoderOutput, output_of
from mae_convert.models.pretrained import requested_outputs
from reference_models.outputs import Taps, Tensor, ViTMAEModelOutput, recorded

Size = tuple[int, int]


def blocks_of(model: Any) -> list[Any]:
    """Return the blocks of the encoder, then the blocks of the decoder if there is one."""
    trunks = [model.encoder, *([model.decoder] if hasattr(model, "decoder") else [])]
    return [getattr(trunk, f"block_{n}") for trunk in trunks for n in range(trunk.depth)]


class RecomputedBlock:
    """A block whose activations are recomputed in the backward pass."""

    def __init__(self, block: Any) -> None:
        self.block = block

    def __call__(self, tokens: Tensor, taps: Taps | None = None) -> Tensor:
        """Return the output of the block for tokens (N, T, D); it has the same shape.

        Activations are recorded in `taps` unless it is None. They are then not recomputed.
        """
        compute = type(self.block).call
        if taps is not None:  # recorded activations must not be recomputed
            return compute(self.block, tokens, taps)

        def output(inputs: Tensor) -> Tensor:
            return compute(self.block, inputs)

        return keras.remat(output)(tokens)


def shared(layer: Any, **changes: Any) -> Any:
    """Return a copy of a layer that shares its variables, with some attributes replaced."""
    view = object.__new__(type(layer))
    view.__dict__.update({**layer.__dict__, **changes})
    return view


def resampled(positions: Any, grid: Size, new_grid: Size) -> Tensor:
    """Resample position embeddings (1, 1 + L, D) to another grid of patches.

    As in a conversion to another image size, the interpolation is bicubic in two dimensions, in
    float64 (on JAX only if enabled), and the result is rounded to the dtype of the embeddings. The
    function is differentiable.
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


class EncoderView:
    """A model's encoder, under the name ``model.vit`` that scripts for transformers use.

    The attributes of the Keras layer ``model.encoder``, such as ``trainable``, ``weights`` and
    ``embeddings``, can be read and set through this view. The blocks are ``encoder.layer[n]``.
    """

    def __init__(self, model: Any) -> None:
        self.__dict__["_model"] = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model.encoder, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._model.encoder, name, value)

    @property
    def config(self) -> Any:
        """The configuration of the model."""
        return self._model.config

    @property
    def encoder(self) -> SimpleNamespace:
        """A namespace whose attribute ``layer`` is the list of blocks."""
        return SimpleNamespace(layer=self._model.encoder._blocks())

    @property
    def layernorm(self) -> Any:
        """The final norm; None in a classifier that normalizes the mean of the patches."""
        return self._model.encoder.norm

    def get_input_embeddings(self) -> Any:
        """Return the layer that projects patches."""
        return self._model.get_input_embeddings()

    def __call__(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool = False,
        training: bool = False,
    ) -> Any:
        """Return the outputs of the encoder for images (N, C, H, W).

        Args:
            pixel_values: the images.
            noise: (N, L), a value for each of the L patches, for a model that masks patches; None
                for random noise.
            output_attentions: return the attention probabilities of each block. None for the value
                in ``config``.
            output_hidden_states: return the output of the embeddings and of each block. None for
                the value in ``config``.
            return_dict: False for a plain tuple. None for the value in ``config``.
            interpolate_pos_encoding: accept images of another size than the configured size.
            training: whether dropout is active.
        """
        owner = self._model
        requested = requested_outputs(
            owner.config, output_hidden_states, output_attentions, return_dict
        )
        taps = Taps.requested(requested.hidden_states, requested.attentions, False)
        if not isinstance(pixel_values, KerasTensor):
            pixel_values = ops.convert_to_tensor(pixel_values)
        if noise is not None:
            noise = ops.convert_to_tensor(noise)
        model, pixel_values = owner.for_inputs(
            pixel_values, noise, interpolate=interpolate_pos_encoding, training=training
        )
        pixel_values = model._cast(pixel_values)
        result: Any
        if hasattr(model, "encode_visible"):
            tokens, mask, ids_restore = model.encode_visible(pixel_values, noise, taps, training)
            result = ViTMAEModelOutput(tokens, mask, ids_restore, *recorded(taps))
        else:
            tokens = model.encoder(pixel_values, taps=taps, training=training)
            result = EncoderOutput(tokens, *recorded(taps)[:2])
        return output_of(result, as_tuple=requested.as_tuple)
