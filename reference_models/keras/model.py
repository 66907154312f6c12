"""Common base class of the models: created from a configuration, and trained by ``fit``."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from reference_models.configuration import Configuration, ViTMAEConfig
from reference_models.outputs import Tensor


class ConfiguredModel(keras.Model):
    """A model that is a function of its configuration; all its weights exist once it is made.

    A subclass for another family sets ``configuration_class``.

    Inputs are not cast when they come in: noise must keep the precision that it is sorted by.
    """

    configuration_class: type[Configuration] = ViTMAEConfig

    def __init__(self, config: Configuration | Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        if isinstance(config, Mapping):
            config = self.configuration_class.from_dict(config)
        self.config: Any = config

    def _cast(self, x: Tensor) -> Tensor:
        """Return a tensor in the precision of the weights, but at least in float32."""
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
        """Return what ``fit`` minimizes: the model's own loss or, given targets, ``compile``'s."""
        own = self.own_loss(y_pred, y, sample_weight)
        if own is None:
            return super().compute_loss(x, y, y_pred.logits, sample_weight, training)
        return own / _replicas()

    def own_loss(self, outputs: Any, targets: Any, sample_weight: Any) -> Tensor | None:
        """Return the model's own loss, or None if the loss given to ``compile`` is to be used.

        Raises:
            ValueError: there is neither.
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
        """Update the metrics of ``compile`` with the logits, if there are targets."""
        if y is not None:
            y_pred = y_pred.logits
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def predict_step(self, *arguments: Any) -> Any:
        """Return the model's outputs for a batch, by name and without the loss."""
        done = super().predict_step(*arguments)
        if keras.backend.backend() == "jax":  # there the state comes back too
            return self._without_loss(done[0]), done[1]
        return self._without_loss(done)

    def _without_loss(self, outputs: Any) -> Any:
        found = outputs._asdict().items()
        return {name: value for name, value in found if value is not None and name != "loss"}


def _replicas() -> int:
    """Return over how many replicas TensorFlow will sum the gradients of a mean."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    count: int = tf.distribute.get_strategy().num_replicas_in_sync
    return count
