"""The fine-tuned classifier: the encoder on whole images, and a linear head."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from reference_models.configuration import ViTMAEConfig
from reference_models.keras.encoder import Encoder
from reference_models.keras.layers import Initializer, LayerNorm, dense
from reference_models.keras.model import ConfiguredModel
from reference_models.keras.numerics import mean, widen
from reference_models.keras.patches import check_pixels
from reference_models.outputs import ImageClassifierOutput, Tensor, Wanted


@keras.saving.register_keras_serializable(package="reference_models")
class TFViTForImageClassification(ConfiguredModel):
    """A ViT with a head; variables have the paths of ``transformers.TFViTForImageClassification``.

    With ``global_pool="token"`` the head reads the class token after the encoder's final norm. With
    ``"avg"``, which transformers has not, it reads the mean of the patch tokens after ``fc_norm``,
    and the encoder has no final norm; with ``fc_norm=False`` besides, as in timm, it reads the mean
    of the patch tokens after the encoder's final norm. Arguments are those of ``TFViTMAEModel``.
    """

    def __init__(
        self,
        config: ViTMAEConfig | Mapping[str, Any],
        *,
        initializer: Initializer = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, **kwargs)
        pooled = self.config.normalises_mean
        self.encoder = Encoder(
            self.config,
            learned_positions=True,
            embedding_dropout=self.config.hidden_dropout_prob,
            final_norm=not pooled,
            initializer=initializer,
            dtype=self.dtype_policy,
        )
        self.fc_norm = (
            LayerNorm(self.config.layer_norm_eps, name="fc_norm", dtype=self.dtype_policy)
            if pooled
            else None
        )
        self.classifier = dense(
            self.config.num_labels, initializer, name="classifier", dtype=self.dtype_policy
        )
        self.build()

    def build(self) -> None:
        """Make all variables."""
        self.encoder.build()
        if self.fc_norm is not None:
            self.fc_norm.build((None, None, self.config.hidden_size))
        self.classifier.build((None, self.config.hidden_size))

    def call(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        output_taps: bool = False,
        training: bool = False,  # noqa: ARG002 (Keras hands it to the dropout layers)
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: (N, C, H, W), of the configured size.
            labels: (N,) integers, or (N, K) probabilities as label smoothing and mixup give.
            output_hidden_states: return the embedding output and each block's output.
            output_attentions: return each block's attention probabilities.
            output_taps: return intermediate results by name.
            training: whether dropout is active.

        Raises:
            ValueError: pixels have the wrong shape.
        """
        check_pixels(pixel_values, self.config)
        wanted = Wanted(output_hidden_states, output_attentions, output_taps)
        trunk = self.encoder(self._cast(pixel_values), wanted=wanted)
        tokens, taps = trunk.tokens, trunk.taps
        if self.fc_norm is not None:
            tokens = self.fc_norm(mean(tokens[:, 1:], axis=1, keepdims=True))  # (N, 1, D)
            taps = {**taps, "head.norm": tokens}
        if self.config.global_pool == "avg" and self.fc_norm is None:
            read = mean(tokens[:, 1:], axis=1)  # (N, D)
        else:
            read = tokens[:, 0]
        logits = self.classifier(read)
        return ImageClassifierOutput(
            loss=None if labels is None else cross_entropy(logits, labels),
            logits=logits,
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
            taps=taps if output_taps else None,
        )


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits (N, K) against labels (N,) or (N, K), a scalar.

    It is NaN where a label is none of the K.

    Raises:
        ValueError: there is not one label for each image.
    """
    logits = widen(logits)
    if None not in (labels.shape[0], logits.shape[0]) and labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"{labels.shape[0]} labels for {logits.shape[0]} images; give one for each"
        )
    if len(labels.shape) == 1:
        known = ops.logical_and(labels >= 0, labels < logits.shape[-1])
        logits = ops.where(ops.expand_dims(known, -1), logits, float("nan"))
        labels = ops.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    labels = ops.cast(labels, logits.dtype)
    losses = -ops.sum(labels * ops.log_softmax(logits, axis=-1), axis=-1)  # (N,)
    return ops.sum(losses) / ops.sum(ops.ones_like(losses))
