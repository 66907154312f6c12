"""The last base class of the PyTorch models: transformers' own, where transformers is installed.

``transformers.Trainer`` calls ``save_pretrained`` only of a ``PreTrainedModel``; of others it
writes the state dict alone, without a configuration. The methods that it calls are defined by the
classes of this project, which come first in the order of inheritance.
"""

from typing import Any

from torch import nn

try:
    from transformers.modeling_utils import PreTrainedModel
except ImportError:
    PreTrainedModel = nn.Module


class TransformersBase(PreTrainedModel):
    """A ``transformers.PreTrainedModel`` where there is one, made as a ``torch.nn.Module``."""

    generation_config: Any = None

    def __init__(self) -> None:
        nn.Module.__init__(self)
