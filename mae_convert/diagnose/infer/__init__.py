"""Determine by experiment the fields that no tensor specifies, such as numbers of heads.

There are two kinds of evidence, which require only the trained weights and some images:

- `head_structure`: training couples only channels of the same attention head; this is measurable in
    the products of the query and key matrices.
- `reconstruction`: a model reconstructs images best with the configuration of its training.

Statistical tests evaluate the evidence; if no test is significant, the field stays undecided.
"""

from mae_convert.diagnose.infer.decision import Candidate, Decision, Inference
from mae_convert.diagnose.infer.experiment import (
    InferenceOptions,
    infer,
    with_inferred,
    with_inferred_of,
)

__all__ = [
    "Candidate",
    "Decision",
    "Inference",
    "InferenceOptions",
    "infer",
    "with_inferred",
    "with_inferred_of",
]
