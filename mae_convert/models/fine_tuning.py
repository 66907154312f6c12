"""Fine-tuning in Keras as in He et al. 2021 (arXiv:2111.06377, appendix A.2, table 9).

AdamW with warm-up and cosine decay of the learning rate, and layer-wise learning rate decay (Clark
et al. 2020, arXiv:2003.10555): the rate of a layer is multiplied by ``layer_decay`` to the power of
its distance from the head.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

BLOCK = re.compile(r"vit/encoder/layer_\._(\d+)/")
TOKENS = ("cls_token", "position_embeddings")


def layer_of(path: str, depth: int) -> int:
    """Return the number of the layer that a variable belongs to.

    Layer 0 is the embeddings, layers 1 to `depth` are the blocks, and layer `depth` + 1 is the
    final norm and the head.

    Args:
        path: the variable's path.
        depth: number of blocks of the encoder.
    """
    if match := BLOCK.search(path):
        return int(match[1]) + 1
    return 0 if "vit/embeddings/" in path else depth + 1


@keras.saving.register_keras_serializable(package="mae_convert")
class LayerDecayAdamW(keras.optimizers.Adam):
    """AdamW with a learning rate for each layer.

    In each step, weights are first multiplied by ``1 - decay * learning rate of the layer``. Weight
    decay is not applied to biases, norms, the class token and position embeddings.

    Args:
        learning_rate: the rate of the head; a number or a schedule.
        depth: number of blocks of the encoder.
        layer_decay: the ratio of the learning rates of a layer and the next layer.
        decay: the weight decay.
        named: further arguments of ``keras.optimizers.Adam``.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        *,
        depth: int = 12,
        layer_decay: float = 0.75,
        decay: float = 0.05,
        **named: Any,
    ) -> None:
        super().__init__(learning_rate, **{"beta_1": 0.9, "beta_2": 0.999, **named})
        self.depth, self.layer_decay, self.decay = depth, layer_decay, decay

    def build(self, variables: Sequence[Any]) -> None:
        """Determine the learning-rate factor of each variable, and whether it has weight decay."""
        super().build(variables)
        top = self.depth + 1
        self.scales = [
            self.layer_decay ** (top - layer_of(variable.path, self.depth))
            for variable in variables
        ]
        self.decays = [
            len(variable.shape) > 1 and variable.path.rpartition("/")[2] not in TOKENS
            for variable in variables
        ]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update a variable with the learning rate of its layer."""
        index = self._get_variable_index(variable)
        rate = ops.cast(learning_rate, variable.dtype) * self.scales[index]
        if self.decays[index]:
            self.assign_sub(variable, ops.convert_to_tensor(variable) * self.decay * rate)
        super().update_step(gradient, variable, rate)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the optimizer as plain data."""
        ours = {"depth": self.depth, "layer_decay": self.layer_decay, "decay": self.decay}
        return {**super().get_config(), **ours}


def fine_tuning_optimizer(
    model: Any,
    *,
    batch_size: int,
    steps_per_epoch: int,
    epochs: int,
    base_learning_rate: float = 1e-3,
    warmup_epochs: int = 5,
    layer_decay: float = 0.75,
) -> LayerDecayAdamW:
    """Return the optimizer of the paper's fine-tuning, for ``model.compile``.

    Args:
        model: a classifier of this project.
        batch_size: images in a step, over all replicas.
        steps_per_epoch: steps in an epoch.
        epochs: epochs of the training.
        base_learning_rate: the rate for a step of 256 images; for other numbers of images, the rate
            is proportional to the number.
        warmup_epochs: epochs in which the rate increases from zero.
        layer_decay: the ratio of the learning rates of a layer and the next layer.
    """
    warmup = min(warmup_epochs, epochs) * steps_per_epoch
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=max(1, math.ceil((epochs * steps_per_epoch) - warmup)),
        warmup_target=base_learning_rate * batch_size / 256,
        warmup_steps=warmup,
    )
    return LayerDecayAdamW(schedule, depth=model.config.num_hidden_layers, layer_decay=layer_decay)
