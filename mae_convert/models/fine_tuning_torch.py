"""Fine-tuning in PyTorch as in He et al. 2021 (arXiv:2111.06377, appendix A.2, table 9).

The same method as `mae_convert.models.fine_tuning` for Keras: AdamW with warm-up and
cosine decay of the learning rate, and layer-wise learning rate decay (Clark et al. 2020,
arXiv:2003.10555): the rate of a layer is multiplied by ``layer_decay`` to the power of its distance
from the head.
"""

import math
import re
from typing import Any

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

BLOCK = re.compile(r"blocks\.(\d+)\.")
EMBEDDINGS = ("cls_token", "pos_embed", "patch_embed.")
NO_DECAY = ("cls_token", "pos_embed")


def layer_of(name: str, depth: int) -> int:
    """Return the number of the layer that a parameter belongs to.

    Layer 0 is the embeddings, layers 1 to `depth` are the blocks, and layer `depth` + 1 is the
    final norm and the head.

    Args:
        name: the parameter's name in the original code (facebookresearch/mae).
        depth: number of blocks of the encoder.
    """
    if match := BLOCK.match(name):
        return int(match[1]) + 1
    return 0 if name.startswith(EMBEDDINGS) else depth + 1


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    *,
    weight_decay: float = 0.05,
    layer_decay: float = 0.75,
) -> list[dict[str, Any]]:
    """Return the parameters of a classifier in groups, each with its learning rate, for AdamW.

    Weight decay is not applied to biases, norms, the class token and position embeddings.
    Parameters that do not require a gradient are left out.

    Args:
        model: a classifier with the parameter names of the original code (facebookresearch/mae).
        learning_rate: the rate of the head.
        weight_decay: the weight decay.
        layer_decay: the ratio of the learning rates of a layer and the next layer.

    Returns:
        For each layer in order, a dictionary for the parameters with weight decay and a dictionary
            for the parameters without weight decay. The keys of a dictionary are ``params``,
            ``lr``, ``weight_decay``, and ``layer``, the number of the layer: 0 for the embeddings,
            then the blocks, and last the final norm and the head (see `layer_of`).
    """
    names = dict(model.named_parameters())
    depth = len({match[1] for name in names if (match := BLOCK.match(name))})
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in names.items():
        if not parameter.requires_grad:
            continue
        layer = layer_of(name, depth)
        decays = parameter.ndim > 1 and name not in NO_DECAY
        group = groups.setdefault(
            (layer, decays),
            {
                "params": [],
                "lr": learning_rate * layer_decay ** (depth + 1 - layer),
                "weight_decay": weight_decay if decays else 0.0,
                "layer": layer,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def fine_tuning_optimizer(
    model: nn.Module,
    *,
    batch_size: int,
    steps_per_epoch: int,
    epochs: int,
    base_learning_rate: float = 1e-3,
    warmup_epochs: int = 5,
    layer_decay: float = 0.75,
    weight_decay: float = 0.05,
) -> tuple[AdamW, LambdaLR]:
    """Return the optimizer and the learning-rate scheduler of the paper's fine-tuning.

    The scheduler's ``step`` must be called after each training step; ``transformers.Trainer``,
    which accepts the optimizer and the scheduler as ``optimizers``, calls ``step`` itself.

    Args:
        model: a classifier of this project.
        batch_size: images in a step, over all processes and accumulated gradients.
        steps_per_epoch: steps in an epoch.
        epochs: epochs of the training.
        base_learning_rate: the rate for a step of 256 images; for other numbers of images, the rate
            is proportional to the number.
        warmup_epochs: epochs in which the rate increases from zero.
        layer_decay: the ratio of the learning rates of a layer and the next layer.
        weight_decay: the weight decay.
    """
    groups = parameter_groups(
        model,
        base_learning_rate * batch_size / 256,
        weight_decay=weight_decay,
        layer_decay=layer_decay,
    )
    warmup = min(warmup_epochs, epochs) * steps_per_epoch
    falling = max(1, epochs * steps_per_epoch - warmup)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / falling)))

    optimizer = AdamW(groups, betas=(0.9, 0.999))
    return optimizer, LambdaLR(optimizer, factor)
