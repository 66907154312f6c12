"""The Keras 3 classes with transformers' names, on TensorFlow or JAX.

Variables have the paths of the TensorFlow classes of transformers 4.
"""

from collections.abc import Mapping
from functools import wraps
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import ops

from mae_convert.errors import MissingRequirementError
from mae_convert.models.compiled_blocks import CompiledBlocks, may_compile
from mae_convert.models.keras_methods import TransformersMethods
from mae_convert.models.keras_views import (
    EncoderView,
    RecomputedBlock,
    blocks_of,
    resampled,
    shared,
)
from mae_convert.models.model_outputs import output_of
from mae_convert.models.pretrained import (
    PretrainedModel,
    RequestedOutputs,
    problem_type,
    requested_outputs,
    usable_size,
)
from mae_convert.models.transformers_config import ReferenceConfig, ViTMAEConfig, as_config, plain
from reference_models import keras as reference
from reference_models.keras.numerics import cross_entropy, widen
from reference_models.keras.patches import patchify, unpatchify
from reference_models.outputs import Tensor

Size = tuple[int, int]


def taking_mappings(call: Any) -> Any:
    """Return a wrapper of a model's ``call`` that also accepts the inputs as a mapping.

    `KerasModel.__call__` unpacks mappings, but on JAX ``fit`` does not call ``__call__``.
    """

    @wraps(call)
    def unpacked(self: Any, pixel_values: Any, *more: Any, **named: Any) -> Any:
        if hasattr(pixel_values, "keys"):
            return call(self, *more, **{**pixel_values, **named})
        return call(self, pixel_values, *more, **named)

    return unpacked


def targets_of(targets: Any) -> Any:
    """Return the targets of ``fit``; a mapping such as {"labels": targets} is unpacked."""
    if isinstance(targets, Mapping) and len(targets) == 1:
        return next(iter(targets.values()))
    return targets


class KerasModel(TransformersMethods, PretrainedModel):
    """Common base class of the encoder, the pre-training model and the classifier.

    Attributes:
        compile_blocks: on TensorFlow, whether inference calls outside a graph use compiled blocks;
            if False, each operation is called eagerly. The attribute can be set for a model or for
            its class.
    """

    layout = "transformers-tf"
    compile_blocks = True

    def __init__(
        self, config: ViTMAEConfig | ReferenceConfig | Mapping[str, Any], **kwargs: Any
    ) -> None:
        super().__init__(as_config(config), **kwargs)  # type: ignore[call-arg]
        self._compiled_blocks = CompiledBlocks()
        if getattr(self.config, "gradient_checkpointing", False):
            self.gradient_checkpointing_enable()

    @classmethod
    def _from_config(cls, config: Any, **options: Any) -> Any:
        """Create a model from a configuration, like transformers' method ``_from_config``."""
        return cls(config, **options)

    @classmethod
    def from_config(cls, config: Any, *more: Any, **options: Any) -> Any:
        """Create a model from a configuration, or from the result of `get_config`."""
        if isinstance(config, ViTMAEConfig | ReferenceConfig):
            return cls(as_config(config), **options)
        return super().from_config(config, *more, **options)  # type: ignore[misc]

    def build(self, input_shape: Any = None) -> None:
        """Create all variables, if the constructor has not created them."""
        del input_shape  # the configuration determines the shape
        if not self.built:  # type: ignore[attr-defined]
            super().build()  # type: ignore[misc]

    @classmethod
    def runs_on(cls) -> str:
        """Return Keras's backend, "tensorflow" or "jax"."""
        return str(keras.backend.backend())

    @classmethod
    def default_dtype(cls) -> str | None:
        """Return the name of Keras's global dtype policy."""
        return str(keras.config.dtype_policy().name)

    def __call__(self, inputs: Any = None, *more: Any, **named: Any) -> Any:
        """Call the model, with its inputs as arguments or in a mapping."""
        if hasattr(inputs, "keys"):
            named = {**{name: inputs[name] for name in inputs}, **named}
        elif isinstance(inputs, list | tuple) and not hasattr(inputs, "_fields"):
            more = (*inputs, *more)
        elif inputs is not None:
            more = (inputs, *more)
        if not more and named.get("pixel_values") is None:
            raise ValueError("You have to specify pixel_values")
        return super().__call__(*more, **named)  # type: ignore[misc]

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Compute the same loss as the reference model.

        The targets `y` are an array, or a mapping that contains only the targets.
        """
        loss: Tensor = super().compute_loss(  # type: ignore[misc]
            x, targets_of(y), y_pred, sample_weight, training
        )
        return loss

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Update the metrics and return them.

        The targets `y` are an array, or a mapping that contains only the targets.
        """
        metrics: dict[str, Any] = super().compute_metrics(  # type: ignore[misc]
            x, targets_of(y), y_pred, sample_weight
        )
        return metrics

    def own_loss(self, outputs: Any, targets: Any, sample_weight: Any) -> Tensor | None:
        """Return the loss that the model computes itself; None if the loss of ``compile`` is used.

        Raises:
            ValueError: targets have sample weights and ``compile`` was called without a loss; or
                there are no targets, and the model computes no loss.
        """
        if targets is not None and self.loss is None:  # type: ignore[attr-defined]
            if sample_weight is not None:
                message = (
                    "the model's own loss does not support sample weights; pass a loss to compile"
                )
                raise ValueError(message)
            outputs, targets = self._with_targets(outputs, targets), None
        return super().own_loss(outputs, targets, sample_weight)  # type: ignore[misc]

    def _with_targets(self, outputs: Any, targets: Any) -> Any:
        """Return an output whose attribute ``loss`` is the loss that the model itself computes.

        Args:
            outputs: the outputs of the model.
            targets: the targets; not used by a masked autoencoder, which computes the loss when it
                is called.
        """
        del targets  # the targets of a masked autoencoder are its inputs
        return outputs

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Return the number of all parameters, or of the trainable parameters only."""
        weights = self.trainable_weights if only_trainable else self.weights  # type: ignore[attr-defined]
        return sum(int(np.prod(weight.shape)) for weight in weights)

    @property
    def vit(self) -> EncoderView:
        """The encoder, with transformers' attribute names; its inputs are images (N, C, H, W)."""
        return EncoderView(self)

    def gradient_checkpointing_enable(self, _: Any = None) -> None:
        """Recompute the activations inside each block in the backward pass.

        Raises:
            MissingRequirementError: Keras is older than 3.9.
        """
        if not hasattr(keras, "remat"):
            raise MissingRequirementError(
                f"Keras {keras.__version__} does not support gradient checkpointing",
                hint="pip install 'keras>=3.9'",
            )
        for block in blocks_of(self):
            block.__dict__["call"] = RecomputedBlock(block)

    def gradient_checkpointing_disable(self) -> None:
        """Stop gradient checkpointing: store the activations inside each block."""
        for block in blocks_of(self):
            block.__dict__.pop("call", None)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations inside blocks are recomputed in the backward pass, not stored."""
        return any("call" in block.__dict__ for block in blocks_of(self))

    def _computed(
        self,
        pixel_values: Tensor,
        *more: Any,
        requested: RequestedOutputs,
        interpolate: bool | None,
        training: bool | None,
    ) -> Any:
        """Return the reference model's result; position embeddings are resampled if needed.

        The arguments are as in `for_inputs`; `requested` determines which outputs are returned.
        """
        model, pixel_values = self.for_inputs(
            pixel_values, *more, interpolate=interpolate, training=training
        )
        kind = next(base for base in type(self).__mro__ if base.__module__.startswith(REFERENCE))
        return kind.call(model, pixel_values, *more, **requested.flags, training=bool(training))  # type: ignore[attr-defined]

    def for_inputs(
        self, pixel_values: Tensor, *more: Any, interpolate: bool | None, training: bool | None
    ) -> tuple[Any, Tensor]:
        """Return a model for images of the size of `pixel_values`, and the cropped images.

        The returned model shares the variables of this model. Its position embeddings are resampled
        for images of another size, and its blocks are compiled if that affects only the speed.
        Incomplete patches at the right and bottom edges of the images are cropped.

        Args:
            pixel_values: the images (N, C, H, W).
            more: the other inputs of the call, such as the noise.
            interpolate: accept images of another size than the configured size. None for False.
            training: whether dropout is active. None for False.

        Raises:
            ValueError: see `usable_size`.
        """
        given = tuple(pixel_values.shape[-2:])
        size = usable_size(given, self.config, interpolate, whole=self.task == "pretrain")
        if size != given:
            pixel_values = pixel_values[..., : size[0], : size[1]]
        model = self if size == self.config.image_hw else self._for_image_size(size)
        if (
            self.compile_blocks
            and not self.run_eagerly  # type: ignore[attr-defined]
            and may_compile((pixel_values, *more), training=training)
        ):
            model = self._with_compiled_blocks(model)
        return model, pixel_values

    def _for_image_size(self, size: tuple[int, ...]) -> Any:
        """Return a model for another image size; it shares all variables except the positions."""
        config = plain(self.config, image_size=size)
        model: Any = self

        def positions(layer: Any) -> Tensor:
            table = resampled(layer.position_embeddings, self.config.grid_hw, config.grid_hw)
            return ops.cast(table, layer.compute_dtype)

        embeddings = model.encoder.embeddings
        seen = shared(embeddings, config=config, position_embeddings=positions(embeddings))
        changes = {"config": config, "encoder": shared(model.encoder, embeddings=seen)}
        if decoder := getattr(model, "decoder", None):
            changes["decoder"] = shared(
                decoder, config=config, position_embeddings=positions(decoder)
            )
        return shared(model, **changes)

    def _with_compiled_blocks(self, model: Any) -> Any:
        """Return a copy of a model; the copy has compiled blocks and shares the variables."""
        stacks = ("encoder", "decoder") if hasattr(model, "decoder") else ("encoder",)
        compiled = {}
        for name in stacks:
            stack = getattr(model, name)
            blocks = self._compiled_blocks.of(stack._blocks())
            compiled[name] = shared(stack, _blocks=lambda blocks=blocks: blocks)
        return shared(model, **compiled)

    def _without_loss(self, outputs: Any) -> Any:
        as_tuple = not hasattr(outputs, "_fields")  # the first value is the loss, if there is one
        if as_tuple:
            return tuple(value for value in outputs if isinstance(value, tuple) or value.shape)
        return output_of(outputs, without=("loss",))


REFERENCE = "reference_models."


class MaskedKerasModel(KerasModel):
    """Base class of the encoder and the pre-training model, which remove patches."""

    @taking_mappings
    def call(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        head_mask: None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> Any:
        """Return the reference model's result, with the outputs that the arguments request."""
        requested = requested_outputs(
            self.config, output_hidden_states, output_attentions, return_dict, head_mask
        )
        result = self._computed(
            pixel_values,
            noise,
            requested=requested,
            interpolate=interpolate_pos_encoding,
            training=training,
        )
        return output_of(result, as_tuple=requested.as_tuple)


@keras.saving.register_keras_serializable(package="mae_convert")
class TFViTMAEModel(MaskedKerasModel, reference.TFViTMAEModel):
    """The encoder, for scripts that use ``transformers.TFViTMAEModel``."""

    task = "encoder"


@keras.saving.register_keras_serializable(package="mae_convert")
class TFViTMAEForPreTraining(MaskedKerasModel, reference.TFViTMAEForPreTraining):
    """Encoder and decoder, for scripts that use ``transformers.TFViTMAEForPreTraining``."""

    task = "pretrain"

    def patchify(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """Cut images (N, C, H, W) or (N, H, W, C) into patches (N, L, P).

        The images must have the configured size; with ``interpolate_pos_encoding``, any size.
        """
        if pixel_values.shape[1] != self.config.num_channels:
            pixel_values = ops.transpose(pixel_values, (0, 3, 1, 2))
        size = tuple(pixel_values.shape[-2:]) if interpolate_pos_encoding else self.config.image_hw
        return patchify(self._cast(pixel_values), plain(self.config, image_size=size))

    def unpatchify(self, patches: Tensor, original_image_size: Size | None = None) -> Tensor:
        """Merge patches (N, L, P) into images (N, H, W, C), by default of the configured size.

        The axes are in the order of transformers' TensorFlow class; the reference model returns
        (N, C, H, W).
        """
        size = tuple(original_image_size or self.config.image_hw)
        images = unpatchify(patches, plain(self.config, image_size=size))
        return ops.transpose(images, (0, 2, 3, 1))

    def reconstruct(
        self, pixel_values: Tensor, logits: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Return predicted patches as images (N, H, W, C), like `unpatchify`.

        Args:
            pixel_values: the original images (N, C, H, W). If the model predicts normalized pixels,
                the mean and the standard deviation of each patch are taken from these images.
            logits: (N, L, P), the predicted patches.
            mask: (N, L), 1 if a patch was removed; visible patches are copied from the images. If
                it is None, all patches of the result are predicted.
        """
        return super().reconstruct(pixel_values, logits, mask)

    def forward_loss(  # type: ignore[override]  # as in transformers
        self,
        pixel_values: Tensor,
        pred: Tensor,
        mask: Tensor,
        interpolate_pos_encoding: bool = False,
        norm_pix_loss: bool | None = None,
    ) -> Tensor:
        """Return the mean squared error over the removed patches; see `PixelPrediction`."""
        size = tuple(pixel_values.shape[-2:])
        model = (
            self._for_image_size(size)
            if interpolate_pos_encoding and size != self.config.image_hw
            else self
        )
        return reference.TFViTMAEForPreTraining.forward_loss(
            model, pixel_values, pred, mask, norm_pix_loss
        )


@keras.saving.register_keras_serializable(package="mae_convert")
class TFViTForImageClassification(KerasModel, reference.TFViTForImageClassification):
    """The classifier, for scripts that use ``transformers.TFViTForImageClassification``."""

    task = "classify"

    @taking_mappings
    def call(
        self,
        pixel_values: Tensor,
        head_mask: None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
        training: bool | None = None,
    ) -> Any:
        """Classify images; the loss depends on the labels and ``config.problem_type``."""
        requested = requested_outputs(
            self.config, output_hidden_states, output_attentions, return_dict, head_mask
        )
        result = self._computed(
            pixel_values,
            requested=requested,
            interpolate=interpolate_pos_encoding,
            training=training,
        )
        if labels is not None:
            result = result._replace(loss=self._loss(result.logits, labels))
        return output_of(result, as_tuple=requested.as_tuple)

    @property
    def num_labels(self) -> int:
        """The number of classes in the configuration."""
        return int(self.config.num_labels)

    def hf_compute_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Return the loss that a call with ``labels`` computes from logits (N, K)."""
        return self._loss(logits, labels)

    def _with_targets(self, outputs: Any, targets: Any) -> Any:
        return SimpleNamespace(loss=self._loss(outputs.logits, targets))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss that transformers computes from logits (N, K) and labels."""
        labels = ops.convert_to_tensor(labels)
        one_for_each = (
            len(labels.shape) == 1
        )  # class indices, which fit may pass as floating-point numbers
        whole = "int" in str(keras.backend.standardize_dtype(labels.dtype))
        kind = problem_type(self.config, whole_numbers=whole or one_for_each)
        if kind == "single_label_classification":
            if one_for_each and not whole:
                labels = ops.cast(labels, "int32")
            return cross_entropy(logits, labels)
        wide = widen(logits)
        targets = ops.cast(ops.reshape(labels, ops.shape(wide)), wide.dtype)
        if kind == "regression":
            return ops.mean(ops.square(wide - targets))
        return ops.mean(ops.binary_crossentropy(targets, wide, from_logits=True))
