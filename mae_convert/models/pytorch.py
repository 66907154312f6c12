"""The PyTorch classes under the names that transformers gives them.

Parameters are named as the original has them, and so is the state dict.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mae_convert.in_memory.torch_model import check_same
from mae_convert.models.configuration import ReferenceConfig, adopted, plain
from mae_convert.models.outputs import output_of
from mae_convert.models.pretrained import (
    Asked,
    PretrainedModel,
    asked_for,
    check_size,
    problem_type,
)
from mae_convert.verify.torch_runs import WithoutValues
from reference_models import pytorch as reference
from reference_models.pytorch.patches import patchify, unpatchify

Size = tuple[int, int]


class TorchModel(PretrainedModel, nn.Module):
    """What the three models have in common."""

    layout = "transformers"

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__(adopted(config))

    @classmethod
    def framework(cls) -> str:
        """Return "torch"."""
        return "torch"

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What its parameters are kept in."""
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Return the number of its parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def get_input_embeddings(self) -> nn.Module:
        """Return the projection of patches."""
        projection: nn.Module = self.patch_embed
        return projection

    @property
    def vit(self) -> nn.Module:
        """Embeddings, blocks and norm of the encoder, to be frozen, counted or given a rate."""
        return part_of(self, lambda name: not name.startswith((*DECODER, *HEAD)))

    @property
    def base_model(self) -> nn.Module:
        """As ``vit``; of an encoder, itself."""
        return self if self.task == "encoder" else self.vit

    def gradient_checkpointing_enable(self, _: Any = None) -> None:
        """Compute the inside of each block anew for its gradient instead of keeping it."""
        for block in blocks_of(self):
            block.forward = partial(_anew, type(block).forward, block)

    def gradient_checkpointing_disable(self) -> None:
        """Keep the inside of each block for its gradient again."""
        for block in blocks_of(self):
            block.__dict__.pop("forward", None)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether the inside of blocks is computed anew."""
        return any("forward" in block.__dict__ for block in blocks_of(self))

    def _computed(
        self, pixel_values: Tensor | None, *more: Any, asked: Asked, interpolate: bool | None
    ) -> Any:
        """Return what the reference model computes, if need be for pictures of another size."""
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        size = (pixel_values.shape[-2], pixel_values.shape[-1])
        check_size(size, self.config, interpolate)
        model = self if size == self.config.image_hw else self._at(size)
        kind = next(base for base in type(self).__mro__ if base.__module__.startswith(REFERENCE))
        return kind.forward(model, pixel_values, *more, **asked.flags)  # type: ignore[attr-defined]

    def _holding(self, state_dict: Mapping[str, Tensor]) -> Any:
        """Return a model like this one with other weights, which are not copied.

        Raises:
            LayoutError: names or shapes are not those of the model's own.
        """
        given, own = (
            {name: tuple(value.shape) for name, value in state.items()}
            for state in (state_dict, self.state_dict())
        )
        check_same(given, own)
        with WithoutValues():
            model = type(self)(self.config)
        model.load_state_dict(state_dict, strict=True, assign=True)
        return model

    def _at(self, size: Size) -> Any:
        """Return the model for pictures of another size; all is shared but position embeddings."""
        config = plain(self.config, image_size=tuple(size))
        positions = {
            name: resampled(value, self.config.grid_hw, config.grid_hw)
            for name, value in self._parameters.items()
            if name in POSITIONS and value is not None
        }
        view = object.__new__(type(self))
        parameters = {**self._parameters, **positions}
        view.__dict__.update({**self.__dict__, "config": config, "_parameters": parameters})
        return view


def part_of(model: nn.Module, wanted: Callable[[str], bool]) -> nn.Module:
    """Return a module with the parameters and modules of a model whose names are wanted.

    They are the model's own: what is done to them is done to the model. It cannot be called.
    """
    part = nn.Module()
    for name, parameter in model.named_parameters(recurse=False):
        if wanted(name):
            part.register_parameter(name, parameter)
    for name, module in model.named_children():
        if wanted(name):
            part.add_module(name, module)
    return part


REFERENCE = "reference_models."
DECODER, HEAD = ("decoder_", "mask_token"), ("head", "fc_norm")
POSITIONS = ("pos_embed", "decoder_pos_embed")


def blocks_of(model: nn.Module) -> list[Any]:
    """Return the transformer blocks of encoder and decoder."""
    return [module for module in model.modules() if type(module).__name__ == "Block"]


def _anew(forward: Any, block: Any, *inputs: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(block, *inputs)
    return checkpoint(forward, block, *inputs, use_reentrant=False)


def resampled(positions: Tensor, grid: Size, new_grid: Size) -> Tensor:
    """Return position embeddings (1, 1 + L, D) for another grid, as ``--image-size`` makes them.

    Bicubic in two dimensions, in float64 and then rounded; gradients flow through.
    """
    wide = torch.float32 if positions.device.type == "mps" else torch.float64
    patches = positions[:, 1:].to(wide).unflatten(1, grid).permute(0, 3, 1, 2)  # (1, D, h, w)
    new = F.interpolate(patches, size=new_grid, mode="bicubic", align_corners=False)
    tokens = new.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :1], tokens], dim=1)


class MaskedTorchModel(TorchModel):
    """A model that leaves patches out."""

    def forward(
        self,
        pixel_values: Tensor | None = None,
        noise: Tensor | None = None,
        head_mask: None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> Any:
        """Return what the reference model does; in place of taps it has transformers' arguments."""
        asked = asked_for(
            self.config, output_hidden_states, output_attentions, return_dict, head_mask
        )
        result = self._computed(
            pixel_values, noise, asked=asked, interpolate=interpolate_pos_encoding
        )
        return output_of(result, as_tuple=asked.as_tuple)


class ViTMAEModel(MaskedTorchModel, reference.ViTMAEModel):  # type: ignore[misc]
    """The encoder, for scripts that use ``transformers.ViTMAEModel``."""

    task = "encoder"


class ViTMAEForPreTraining(MaskedTorchModel, reference.ViTMAEForPreTraining):  # type: ignore[misc]
    """Encoder and decoder, for scripts that use ``transformers.ViTMAEForPreTraining``."""

    task = "pretrain"

    @property
    def decoder(self) -> nn.Module:
        """The parameters and modules of the decoder, as those of the encoder in ``vit``."""
        return part_of(self, lambda name: name.startswith(DECODER))

    def patchify(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """Cut images (N, C, H, W) into patches (N, L, P); of any size where it is interpolated."""
        size = tuple(pixel_values.shape[-2:]) if interpolate_pos_encoding else self.config.image_hw
        return patchify(pixel_values, plain(self.config, image_size=size))

    def unpatchify(self, patches: Tensor, original_image_size: Size | None = None) -> Tensor:
        """Put patches (N, L, P) together to images (N, C, H, W) of a size."""
        size = tuple(original_image_size or self.config.image_hw)
        return unpatchify(patches, plain(self.config, image_size=size))

    def forward_loss(  # type: ignore[override]  # as in transformers
        self,
        pixel_values: Tensor,
        pred: Tensor,
        mask: Tensor,
        interpolate_pos_encoding: bool = False,
        norm_pix_loss: bool | None = None,
    ) -> Tensor:
        """Return the mean squared error over the removed patches; see the reference model."""
        size = (pixel_values.shape[-2], pixel_values.shape[-1])
        if interpolate_pos_encoding and size != self.config.image_hw:
            loss: Tensor = self._at(size).forward_loss(pixel_values, pred, mask, norm_pix_loss)
            return loss
        return super().forward_loss(pixel_values, pred, mask, norm_pix_loss)


class ViTForImageClassification(TorchModel, reference.ViTForImageClassification):
    """The classifier, for scripts that use ``transformers.ViTForImageClassification``."""

    task = "classify"

    def forward(  # type: ignore[override]  # in place of taps it has transformers' arguments
        self,
        pixel_values: Tensor | None = None,
        head_mask: None = None,
        labels: Tensor | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
    ) -> Any:
        """Classify images; the loss is what the labels and ``config.problem_type`` ask for."""
        asked = asked_for(
            self.config, output_hidden_states, output_attentions, return_dict, head_mask
        )
        result = self._computed(pixel_values, asked=asked, interpolate=interpolate_pos_encoding)
        if labels is not None:
            result = result._replace(loss=self._loss(result.logits, labels))
        return output_of(result, as_tuple=asked.as_tuple)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of logits (N, K) as transformers chooses it, a scalar."""
        whole = not labels.is_floating_point()
        kind = problem_type(self.config, whole_numbers=whole)
        if kind == "regression":
            return F.mse_loss(logits.flatten(), labels.to(logits.dtype).flatten())
        if kind == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return F.cross_entropy(logits, labels)
