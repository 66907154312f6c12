"""Outputs of the PyTorch models: transformers' ``ModelOutput`` if transformers is installed.

transformers' pipelines require a ``ModelOutput``. Without transformers, the classes of
`model_outputs` are used. In both cases, the outputs have the same interface: values by attribute,
name or index, ``**outputs``, and unpacking, which yields the values. (Unpacking the outputs of
transformers' own models yields the names instead.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from mae_convert.models import model_outputs
from reference_models import outputs as reference

try:
    from transformers.utils import ModelOutput
except ImportError:
    ModelOutput = None

CLASSES: dict[type, Any] = {}

if ModelOutput is not None:

    class Output(ModelOutput):
        """An ordered dictionary with attribute access; iterating over it yields values."""

        def __iter__(self) -> Iterator[Any]:
            return iter(self.values())

    @dataclass
    class ViTMAEModelOutput(Output):
        """The output of the encoder; there is no field ``taps`` with intermediate activations."""

        last_hidden_state: Any = None
        mask: Any = None
        ids_restore: Any = None
        hidden_states: Any = None
        attentions: Any = None

    @dataclass
    class ViTMAEForPreTrainingOutput(Output):
        """The output of the pre-training model, without intermediate activations (``taps``)."""

        loss: Any = None
        logits: Any = None
        mask: Any = None
        ids_restore: Any = None
        hidden_states: Any = None
        attentions: Any = None

    @dataclass
    class ImageClassifierOutput(Output):
        """The output of the classifier, without intermediate activations (the field ``taps``)."""

        loss: Any = None
        logits: Any = None
        hidden_states: Any = None
        attentions: Any = None

    @dataclass
    class EncoderOutput(Output):
        """The output of a classifier's encoder; see `model_outputs.EncoderOutput`."""

        last_hidden_state: Any = None
        hidden_states: Any = None
        attentions: Any = None

    CLASSES = {
        model_outputs.EncoderOutput: EncoderOutput,
        reference.ViTMAEModelOutput: ViTMAEModelOutput,
        reference.ViTMAEForPreTrainingOutput: ViTMAEForPreTrainingOutput,
        reference.ImageClassifierOutput: ImageClassifierOutput,
    }


def output_of(result: NamedTuple, *, as_tuple: bool = False) -> Any:
    """Convert the output of a reference model to an output with the interface of transformers.

    Args:
        result: the output of a reference model.
        as_tuple: return a plain tuple of the values that are not None.
    """
    if as_tuple or not CLASSES:
        return model_outputs.output_of(result, as_tuple=as_tuple)
    fields = {name: value for name, value in result._asdict().items() if name != "taps"}
    return CLASSES[type(result)](**fields)
