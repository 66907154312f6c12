"""The PyTorch classes with the names of transformers' classes.

Parameters, and therefore the entries of a state dict, are named as in facebookresearch/mae.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor, nn

from mae_convert.families.checkpoint_options import name_of_dtype
from mae_convert.formats.dtypes import DTYPES
from mae_convert.models.checkpointing import (
    disable_checkpointing,
    enable_checkpointing,
    is_checkpointing,
)
from mae_convert.models.loading_arguments import WITHOUT_EFFECT, dtype_of
from mae_convert.models.pretrained import (
    PretrainedModel,
    RequestedOutputs,
    problem_type,
    requested_outputs,
    usable_size,
)
from mae_convert.models.state_names import with_original_names
from mae_convert.models.torch_outputs import output_of
from mae_convert.models.torch_parts import EncoderPart, decoder_of
from mae_convert.models.transformers_config import ReferenceConfig, as_config, plain
from mae_convert.runtime.torch_model import check_same
from mae_convert.runtime.torch_runs import WithoutValues
from mae_convert.text import listed
from reference_models import pytorch as reference
from reference_models.pytorch.patches import patchify, unpatchify

try:
    from transformers.modeling_utils import PreTrainedModel
except ImportError:
    PreTrainedModel = nn.Module

Size = tuple[int, int]


class TransformersBase(PreTrainedModel):
    """The last base class of each model, a ``PreTrainedModel`` if transformers is installed.

    ``transformers.Trainer`` calls ``save_pretrained`` only for a ``PreTrainedModel``; for other
    models it writes only the state dict, without a configuration. The constructor of
    ``PreTrainedModel`` is not called; the methods that the trainer calls are defined in the other
    base classes.
    """

    generation_config: Any = None

    def __init__(self) -> None:
        nn.Module.__init__(self)


class TorchModel(PretrainedModel, nn.Module):
    """Common base class of the encoder, the pre-training model and the classifier."""

    layout = "transformers"
    supports_gradient_checkpointing = True
    _no_split_modules = ("Block",)
    _keys_to_ignore_on_save = None

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__(as_config(config))
        if getattr(self.config, "gradient_checkpointing", False):
            self.gradient_checkpointing_enable()

    @classmethod
    def runs_on(cls) -> str:
        """Return "torch"."""
        return "torch"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Any:
        """Return a model with the weights of a checkpoint: see `PretrainedModel.from_pretrained`.

        A subclass may have layers that the checkpoint does not have; they keep the initialization
        of the subclass, and a warning is issued.
        """
        kind = next(base for base in cls.__mro__ if base.__module__ == __name__)
        load = PretrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]
        loaded = load(kind, pretrained_model_name_or_path, **options)
        if cls is kind:
            return loaded
        if not options.get("output_loading_info"):
            return cls._with_weights_of(loaded)[0]
        model, keys = cls._with_weights_of(loaded[0])
        return model, {**loaded[1], **keys}

    @classmethod
    def _with_weights_of(cls, loaded: Any) -> tuple[Any, dict[str, list[str]]]:
        """Return a model of this subclass with the weights of a loaded model, and unmatched names.

        ``missing_keys`` are the names of tensors that only the subclass has, ``unexpected_keys``
        the names of tensors that only the loaded model has.
        """
        model = cls(loaded.config).to(loaded.device, loaded.dtype)
        keys = model.load_state_dict(loaded.state_dict(), strict=False, assign=True)
        if keys.missing_keys or keys.unexpected_keys:
            warnings.warn(
                f"{cls.__name__} from {loaded.name_or_path}: tensors that are not in the checkpoint"
                f" and were initialized by the class: {listed(keys.missing_keys) or 'none'};"
                " tensors of the checkpoint that are not used:"
                f" {listed(keys.unexpected_keys) or 'none'}",
                stacklevel=3,
            )
        model.name_or_path, model.metadata = loaded.name_or_path, loaded.metadata
        return model.eval(), keys._asdict()

    @classmethod
    def from_config(cls, config: Any, **options: Any) -> Any:
        """Return a new model of a configuration, initialized as in the paper.

        Args:
            config: a configuration.
            options: ``dtype`` (or ``torch_dtype``) of the parameters; default: float32.

        Raises:
            ConfigurationError: the dtype is unknown.
            TypeError: an option is unknown.
        """
        dtype = dtype_of(options, None)
        if unknown := sorted(options.keys() - {*WITHOUT_EFFECT}):
            raise TypeError(f"from_config has no argument {unknown[0]!r}; it takes dtype")
        name = name_of_dtype(dtype, tuple(DTYPES))
        model = cls(config)
        return model if name is None else model.to(getattr(torch, name))

    @classmethod
    def _from_config(cls, config: Any, **options: Any) -> Any:
        return cls.from_config(config, **options)

    def post_init(self) -> None:
        """Do nothing, because the constructor initializes the parameters."""

    def init_weights(self) -> None:
        """Do nothing; see `post_init`."""

    def set_attn_implementation(self, attn_implementation: Any) -> None:
        """Do nothing, because there is only one implementation of attention."""

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Return the number of parameters.

        ``exclude_embeddings`` has no effect: as in transformers, it applies to
        ``torch.nn.Embedding``, which no model here has.
        """
        del exclude_embeddings
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def get_input_embeddings(self) -> nn.Module:
        """Return the projection of patches."""
        projection: nn.Module = self.patch_embed
        return projection

    @property
    def vit(self) -> EncoderPart:
        """The encoder: embeddings, blocks and norm. It can be called with images (N, C, H, W)."""
        return EncoderPart(self)

    @property
    def base_model(self) -> nn.Module:
        """The encoder: the model itself if it is an encoder, otherwise ``vit``."""
        return self if self.task == "encoder" else self.vit

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters to which fine-tuning applies no weight decay.

        One-dimensional parameters are not included, although fine-tuning applies no weight decay to
        them either.
        """
        return {"cls_token", "pos_embed"}

    def floating_point_ops(
        self, input_dict: Mapping[str, Any], exclude_embeddings: bool = True
    ) -> int:
        """Estimate the number of floating-point operations of a training step.

        The estimate is the same as in transformers: 6 x the number of input values x the number of
        parameters.

        Args:
            input_dict: the inputs of the model, by name.
            exclude_embeddings: has no effect; see `num_parameters`.
        """
        values = input_dict[self.main_input_name].numel()
        return int(6 * values * self.num_parameters(exclude_embeddings=exclude_embeddings))

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute the activations inside blocks in the backward pass instead of storing them.

        Args:
            gradient_checkpointing_kwargs: arguments of ``torch.utils.checkpoint.checkpoint``;
                ``use_reentrant`` is False by default.
            every_n_layers: recompute the first block and every n-th block after it.
            offload: store the inputs of blocks in CPU memory.

        Raises:
            ValueError: ``every_n_layers`` is less than 1.
        """
        enable_checkpointing(self, gradient_checkpointing_kwargs, every_n_layers, offload=offload)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Same as `gradient_checkpointing_enable`; later versions of transformers use this name."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)

    def gradient_checkpointing_disable(self) -> None:
        """Stop gradient checkpointing: store the activations inside blocks."""
        disable_checkpointing(self)

    def activation_checkpointing_disable(self) -> None:
        """Same as `gradient_checkpointing_disable`."""
        disable_checkpointing(self)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether the blocks recompute their activations in the backward pass."""
        return is_checkpointing(self)

    @property
    def is_activation_checkpointing(self) -> bool:
        """Same as `is_gradient_checkpointing`."""
        return is_checkpointing(self)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a state dict with the tensor names of this model or of transformers.

        The arguments and the result are as in `torch.nn.Module.load_state_dict`.
        """
        own = with_original_names(state_dict, plain(self.config), self.task)
        return super().load_state_dict(own, strict=strict, assign=assign)

    def _computed(
        self,
        pixel_values: Tensor | None,
        *more: Any,
        requested: RequestedOutputs,
        interpolate: bool | None,
    ) -> Any:
        """Return the reference model's output; position embeddings are resampled if needed.

        Args:
            pixel_values: the images (N, C, H, W).
            more: further inputs of the reference model, such as the noise.
            requested: the outputs that the call requests.
            interpolate: accept images of another size than the configured size. None for False.
        """
        model, pixel_values = self.for_size(pixel_values, interpolate)
        kind = next(base for base in type(self).__mro__ if base.__module__.startswith(REFERENCE))
        return kind.forward(model, pixel_values, *more, **requested.flags)  # type: ignore[attr-defined]

    def for_size(self, pixel_values: Tensor | None, interpolate: bool | None) -> tuple[Any, Tensor]:
        """Return a model for images of the size of `pixel_values`, and the cropped images.

        The model has the same parameters, with resampled position embeddings for images of another
        size. Incomplete patches at the right and bottom edges are cropped.

        Args:
            pixel_values: the images (N, C, H, W).
            interpolate: accept images of another size than the configured size. None for False.

        Raises:
            ValueError: see `usable_size`; or `pixel_values` is None.
        """
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        given = (pixel_values.shape[-2], pixel_values.shape[-1])
        size = usable_size(given, self.config, interpolate, whole=self.task == "pretrain")
        if size != given:
            pixel_values = pixel_values[..., : size[0], : size[1]]
        return (self if size == self.config.image_hw else self._for_image_size(size)), pixel_values

    def _with_weights(self, state_dict: Mapping[str, Tensor]) -> Any:
        """Return a model of the same configuration that shares the tensors of a state dict.

        Raises:
            LayoutError: the names or shapes differ from the names or shapes of the model.
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

    def _for_image_size(self, size: Size) -> Any:
        """Return a copy of the model for another image size, with resampled position embeddings.

        All other parameters are shared with this model.
        """
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


REFERENCE = "reference_models."
POSITIONS = ("pos_embed", "decoder_pos_embed")


def resampled(positions: Tensor, grid: Size, new_grid: Size) -> Tensor:
    """Resample position embeddings (1, 1 + L, D) to another grid of patches.

    As in a conversion to another image size, the interpolation is bicubic in two dimensions. It is
    computed in float64 (on MPS devices in float32), and the result is rounded to the dtype of the
    embeddings. The function is differentiable.
    """
    wide = torch.float32 if positions.device.type == "mps" else torch.float64
    patches = positions[:, 1:].to(wide).unflatten(1, grid).permute(0, 3, 1, 2)  # (1, D, h, w)
    new = F.interpolate(patches, size=new_grid, mode="bicubic", align_corners=False)
    tokens = new.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([positions[:, :1], tokens], dim=1)


class MaskedTorchModel(TorchModel):
    """Common base class of the models that mask patches: the encoder and the pre-training model."""

    def forward(
        self,
        pixel_values: Tensor | None = None,
        noise: Tensor | None = None,
        head_mask: None = None,
        interpolate_pos_encoding: bool | None = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Mask patches of images (N, C, H, W) and return the outputs of the model.

        Args:
            pixel_values: the images (N, C, H, W); required.
            noise: (N, L); the patches with the lowest values are kept. None for random noise.
            head_mask: must be None.
            interpolate_pos_encoding: accept images of another size than the configured size.
            output_attentions: return the attention probabilities of each block. None for the value
                in ``config``.
            output_hidden_states: return the output of the embeddings and of each block. None for
                the value in ``config``.
            return_dict: False for a plain tuple. None for the value in ``config``.

        Raises:
            NotImplementedError: ``head_mask`` is not None.
            ValueError: pixels or noise have the wrong shape.
        """
        requested = requested_outputs(
            self.config, output_hidden_states, output_attentions, return_dict, head_mask
        )
        result = self._computed(
            pixel_values, noise, requested=requested, interpolate=interpolate_pos_encoding
        )
        return output_of(result, as_tuple=requested.as_tuple)


class ViTMAEModel(MaskedTorchModel, reference.ViTMAEModel, TransformersBase):  # type: ignore[misc]
    """The encoder, for scripts that use ``transformers.ViTMAEModel``."""

    task = "encoder"

    @property
    def embeddings(self) -> nn.Module:
        """The class token, the position embeddings and the projection of patches."""
        return self.vit.embeddings

    @property
    def encoder(self) -> nn.Module:
        """A module whose attribute ``layer`` contains the blocks."""
        return self.vit.encoder

    @property
    def layernorm(self) -> nn.Module:
        """The final norm."""
        return self.norm


class ViTMAEForPreTraining(  # type: ignore[misc]
    MaskedTorchModel, reference.ViTMAEForPreTraining, TransformersBase
):
    """Encoder and decoder, for scripts that use ``transformers.ViTMAEForPreTraining``."""

    task = "pretrain"

    @property
    def decoder(self) -> nn.Module:
        """The parameters and modules of the decoder."""
        return decoder_of(self)

    def patchify(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """Cut images (N, C, H, W) into patches (N, L, P).

        The images must have the configured size; with ``interpolate_pos_encoding``, any size.
        """
        size = tuple(pixel_values.shape[-2:]) if interpolate_pos_encoding else self.config.image_hw
        return patchify(pixel_values, plain(self.config, image_size=size))

    def unpatchify(self, patches: Tensor, original_image_size: Size | None = None) -> Tensor:
        """Merge patches (N, L, P) into images (N, C, H, W), by default of the configured size."""
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
        """Return the mean squared error over the removed patches; see `PixelPrediction`."""
        size = (pixel_values.shape[-2], pixel_values.shape[-1])
        if interpolate_pos_encoding and size != self.config.image_hw:
            loss: Tensor = self._for_image_size(size).forward_loss(
                pixel_values, pred, mask, norm_pix_loss
            )
            return loss
        return super().forward_loss(pixel_values, pred, mask, norm_pix_loss)


class ViTForImageClassification(TorchModel, reference.ViTForImageClassification, TransformersBase):
    """The classifier, for scripts that use ``transformers.ViTForImageClassification``."""

    task = "classify"

    @property
    def classifier(self) -> nn.Module:
        """The head; it can be replaced by assigning a module."""
        return self.head

    @property
    def num_labels(self) -> int:
        """The number of classes in the configuration."""
        return int(self.config.num_labels)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        self.config.num_labels = count

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__("head" if name == "classifier" else name, value)

    def forward(  # type: ignore[override]  # it has transformers' arguments instead of taps
        self,
        pixel_values: Tensor | None = None,
        head_mask: None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Return logits (N, K) for images and, if `labels` are passed, the loss.

        The loss depends on ``config.problem_type``, as in transformers.

        Args:
            pixel_values: the images (N, C, H, W); required.
            head_mask: must be None.
            labels: (N,), or (N, K) for several labels per image.
            interpolate_pos_encoding: accept images of another size than the configured size.
            output_attentions: return the attention probabilities of each block. None for the value
                in ``config``.
            output_hidden_states: return the output of the embeddings and of each block. None for
                the value in ``config``.
            return_dict: False for a plain tuple. None for the value in ``config``.

        Raises:
            NotImplementedError: ``head_mask`` is not None.
            ValueError: the images have the wrong shape, or ``config.problem_type`` is invalid.
        """
        requested = requested_outputs(
            self.config, output_hidden_states, output_attentions, return_dict, head_mask
        )
        result = self._computed(
            pixel_values, requested=requested, interpolate=interpolate_pos_encoding
        )
        if labels is not None:
            result = result._replace(loss=self._loss(result.logits, labels))
        return output_of(result, as_tuple=requested.as_tuple)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of logits (N, K), a scalar, by transformers' rules for problem types."""
        whole = not labels.is_floating_point()
        kind = problem_type(self.config, whole_numbers=whole)
        if kind == "regression":
            return F.mse_loss(logits.flatten(), labels.to(logits.dtype).flatten())
        if kind == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return F.cross_entropy(logits, labels)
