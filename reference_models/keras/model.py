"""Base classes of the models, which are created from a configuration and trained with ``fit``."""

from collections.abc import Mapping
from typing import Any, Unpack

import keras
from keras import ops

from reference_models.configuration import Configuration, ViTMAEConfig
from reference_models.keras.blocks import Initializer, dense
from reference_models.keras.numerics import cross_entropy
from reference_models.keras.patches import check_pixels
from reference_models.outputs import (
    ImageClassifierOutput,
    OutputOptions,
    Taps,
    Tensor,
    recorded,
)


class ConfiguredModel(keras.Model):
    """Base class of models that are created from a configuration.

    Subclasses for other families than the image MAE set ``configuration_class``.

    Inputs are not cast to the compute dtype: the masking noise is sorted, and rounding would change
    its order.
    """

    configuration_class: type[Configuration] = ViTMAEConfig

    def __init__(self, config: Configuration | Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        if isinstance(config, Mapping):
            config = self.configuration_class.from_dict(config)
        self.config: Any = config

    def _cast(self, x: Tensor) -> Tensor:
        """Return a tensor as float64 if the weights are float64, else as float32."""
        return ops.cast(x, "float64" if self.variable_dtype == "float64" else "float32")

    def get_config(self) -> dict[str, Any]:
        """Return the arguments with which ``from_config`` creates the same model, as plain data."""
        dtype = keras.dtype_policies.serialize(self.dtype_policy)
        return {"config": self.config.to_dict(), "name": self.name, "dtype": dtype}

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Return the loss for ``fit``: `own_loss` or, if that is None, the loss of ``compile``."""
        own = self.own_loss(y_pred, y, sample_weight)
        if own is None:
            return super().compute_loss(x, y, y_pred.logits, sample_weight, training)
        return own / _replicas()

    def own_loss(self, outputs: Any, targets: Any, sample_weight: Any) -> Tensor | None:
        """Return the loss that the model computes; None to use the loss of ``compile``.

        Raises:
            ValueError: there are no targets, and the model computes no loss.
        """
        del sample_weight
        if targets is not None:
            return None
        if getattr(outputs, "loss", None) is None:
            raise ValueError(
                "there is no loss: pass targets with the data, or train a model that computes its "
                "own loss"
            )  # fmt: skip
        return outputs.loss

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Update the metrics passed to ``compile``; targets are compared with the logits."""
        if y is not None:
            y_pred = y_pred.logits
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def predict_step(self, *arguments: Any) -> Any:
        """Return the model's outputs for a batch, by name and without the loss."""
        result = super().predict_step(*arguments)
        if keras.backend.backend() == "jax":  # on JAX the state is returned too
            return self._without_loss(result[0]), result[1]
        return self._without_loss(result)

    def _without_loss(self, outputs: Any) -> Any:
        fields = outputs._asdict().items()
        return {name: value for name, value in fields if value is not None and name != "loss"}


class EncoderModel(ConfiguredModel):
    """Base class of models with an encoder, to which a subclass adds layers.

    Subclasses set ``encoder_class``.

    Args:
        config: the configuration, or its fields.
        initializer: the initializer of all weights; None for the initializers of the paper.
        kwargs: ``name`` and ``dtype``, as for any Keras model.
    """

    encoder_class: Any

    def __init__(
        self,
        config: Configuration | Mapping[str, Any],
        *,
        initializer: Initializer = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, **kwargs)
        options = {"initializer": initializer, "dtype": self.dtype_policy}
        self.encoder = self.encoder_class(self.config, **self.encoder_options(), **options)
        self.add_layers(**options)
        self.build()

    def encoder_options(self) -> dict[str, Any]:
        """Return further keyword arguments for the constructor of the encoder; by default none."""
        return {}

    def add_layers(self, **options: Any) -> None:
        """Add the layers after the encoder, with the options ``initializer`` and ``dtype``."""
        raise NotImplementedError


class MaskedModel(EncoderModel):
    """Base class of models whose encoder sees only the visible patches.

    Subclasses for pre-training set ``decoder_class``. For arguments see `EncoderModel`.
    """

    decoder_class: Any = None

    def add_layers(self, **options: Any) -> None:
        """Add a random number generator for the noise, and the decoder if the model has one.

        The decoder is created with the options ``initializer`` and ``dtype``.
        """
        self.seed_generator = keras.random.SeedGenerator()
        if self.decoder_class is not None:
            self.decoder = self.decoder_class(self.config, **options)

    def build(self) -> None:
        """Create all variables."""
        self.encoder.build()
        if self.decoder_class is not None:
            self.decoder.build()


class ClassifierModel(EncoderModel):
    """Base class of classifiers: an encoder of all patches, and a linear head.

    Subclasses define `add_pooling` and `pool`. For arguments see `EncoderModel`.
    """

    def add_layers(self, **options: Any) -> None:
        """Add the layers between encoder and head, and the head.

        The head is created with the options ``initializer`` and ``dtype``.
        """
        self.fc_norm: Any = None
        self.add_pooling()
        self.classifier = dense(self.config.num_labels, name="classifier", **options)

    def add_pooling(self) -> None:
        """Add the layers between encoder and head, such as ``fc_norm``, if the model has any."""

    def build(self) -> None:
        """Create all variables."""
        self.encoder.build()
        if self.fc_norm is not None:
            self.fc_norm.build((None, None, self.config.hidden_size))
        self.classifier.build((None, self.config.hidden_size))

    def call(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        training: bool = False,  # noqa: ARG002 (Keras passes it to the dropout layers)
        **options: Unpack[OutputOptions],
    ) -> ImageClassifierOutput:
        """Classify images (N, C, H, W) or videos (N, C, T, H, W).

        Args:
            pixel_values: images or videos of the configured size.
            labels: (N,) integers, or (N, K) probabilities, as created by label smoothing and
                mixup. None: no loss is computed.
            training: whether dropout is active.
            options: additional outputs, see `OutputOptions`.

        Raises:
            ValueError: pixels have the wrong shape.
        """
        check_pixels(pixel_values, self.config)
        taps = Taps.requested(**options)
        tokens = self.encoder(self._cast(pixel_values), taps=taps)
        logits = self.classifier(self.pool(tokens, taps))
        loss = None if labels is None else cross_entropy(logits, labels)
        return ImageClassifierOutput(loss, logits, *recorded(taps))

    def pool(self, tokens: Tensor, taps: Taps | None = None) -> Tensor:
        """Return the input (N, D) of the head.

        Args:
            tokens: (N, T, D), the output of the encoder.
            taps: a dictionary that receives intermediate activations; None to record none.
        """
        raise NotImplementedError


def _replicas() -> int:
    """Return the number of replicas over which TensorFlow sums gradients; 1 on other backends."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    count: int = tf.distribute.get_strategy().num_replicas_in_sync
    return count
