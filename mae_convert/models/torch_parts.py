"""Encoder and decoder of a PyTorch model as modules with the attribute names of transformers.

They share parameters and modules with the model: changes apply to the model.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mae_convert.models.model_outputs import EncoderOutput
from mae_convert.models.pretrained import requested_outputs
from mae_convert.models.torch_outputs import output_of
from reference_models.outputs import Taps, ViTMAEModelOutput, recorded

DECODER, HEAD = ("decoder_", "mask_token"), ("head", "fc_norm")


def decoder_of(model: nn.Module) -> nn.Module:
    """Return the decoder of a pre-training model, to freeze or count its parameters.

    The decoder shares its parameters with the model; it cannot be called.
    """
    part = nn.Module()
    add_part(part, model, lambda name: name.startswith(DECODER))
    return part


def add_part(part: nn.Module, model: nn.Module, has_name: Callable[[str], bool]) -> None:
    """Register in `part` the parameters and modules of `model` that have an accepted name.

    Args:
        part: the module to which parameters and modules are added.
        model: the model.
        has_name: returns whether a name is accepted.
    """
    for name, parameter in model.named_parameters(recurse=False):
        if has_name(name):
            part.register_parameter(name, parameter)
    for name, module in model.named_children():
        if has_name(name):
            part.add_module(name, module)


def part_of(**named: nn.Module | nn.Parameter | None) -> nn.Module:
    """Return a module that has the arguments as attributes; it cannot be called."""
    part = nn.Module()
    for name, value in named.items():
        setattr(part, name, value)
    return part


class EncoderPart(nn.Module):
    """The encoder of a model, under the name ``model.vit`` that scripts for transformers use.

    The blocks are ``encoder.layer[n]``, as in transformers 4, and ``layers[n]``, as in version 5.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        add_part(self, model, lambda name: not name.startswith((*DECODER, *HEAD)))
        self.__dict__["_model"] = model  # not registered as a submodule
        self.training = model.training

    @property
    def config(self) -> Any:
        """The configuration of the model."""
        return self._model.config

    @property
    def layers(self) -> Any:
        """The blocks."""
        return self.blocks

    @property
    def encoder(self) -> nn.Module:
        """A module whose attribute ``layer`` contains the blocks."""
        return part_of(layer=self.blocks)

    @property
    def embeddings(self) -> nn.Module:
        """The class token, the position embeddings and the projection of patches."""
        return part_of(
            cls_token=self.cls_token,
            position_embeddings=self.pos_embed,
            patch_embeddings=part_of(projection=self.patch_embed.proj),
        )

    @property
    def layernorm(self) -> Any:
        """The final norm; None in a classifier that normalizes the mean of the patches."""
        return getattr(self, "norm", None)

    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool = False,
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
        """
        requested = requested_outputs(
            self.config, output_hidden_states, output_attentions, return_dict
        )
        taps = Taps.requested(requested.hidden_states, requested.attentions, False)
        model, pixel_values = self._model.for_size(pixel_values, interpolate_pos_encoding)
        result: Any
        if hasattr(model, "encode_visible"):
            tokens, mask, ids_restore = model.encode_visible(pixel_values, noise, taps)
            result = ViTMAEModelOutput(tokens, mask, ids_restore, *recorded(taps))
        else:
            tokens = model.encode(model.dropout(model.embed(pixel_values)), taps)
            tokens = tokens if self.layernorm is None else self.layernorm(tokens)
            result = EncoderOutput(tokens, *recorded(taps)[:2])
        return output_of(result, as_tuple=requested.as_tuple)
