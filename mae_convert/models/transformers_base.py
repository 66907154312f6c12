"""The last base class of the PyTorch models: transformers' own if transformers is installed.

``transformers.Trainer`` calls ``save_pretrained`` only for a ``PreTrainedModel``; for other models
it writes only the state dict, without a configuration. The methods that it calls are defined by the
classes of this project, which come first in the order of inheritance.
"""

from typing import Any

from torch import nn

try:
    from transformers.modeling_utils import PreTrainedModel
except ImportError:
    PreTrainedModel = nn.Module


class TransformersBase(PreTrainedModel):
    """A ``transformers.PreTrainedModel`` if there is one, initialised as a ``torch.nn.Module``."""

    generation_config: Any = None

    def __init__(self) -> None:
        nn.Module.__init__(self)
