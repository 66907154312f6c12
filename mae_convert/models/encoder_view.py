"""The encoder of a Keras model with the attribute names of transformers."""

from types import SimpleNamespace
from typing import Any

from keras import KerasTensor, ops

from mae_convert.models.model_outputs import EncoderOutput, output_of
from mae_convert.models.pretrained import requested_outputs
from reference_models.outputs import Taps, Tensor, ViTMAEModelOutput, recorded


class EncoderView:
    """A model's encoder: ``model.vit`` of scripts for transformers.

    Its attributes are those of the encoder's layer, such as ``trainable``, ``weights`` and
    ``embeddings``, and can be set. Blocks are ``encoder.layer[n]``.
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
        """The blocks, in a list ``layer``."""
        return SimpleNamespace(layer=self._model.encoder._blocks())

    @property
    def layernorm(self) -> Any:
        """The final norm; None in a classifier that normalizes the mean of the patches."""
        return self._model.encoder.norm

    def get_input_embeddings(self) -> Any:
        """Return the projection of patches."""
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
            pixel_values: (N, C, H, W).
            noise: (N, L), for a model that masks patches.
            output_attentions: return the attention probabilities of each block.
            output_hidden_states: return the output of the embeddings and of each block.
            return_dict: False for a plain tuple.
            interpolate_pos_encoding: accept images of another size.
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
