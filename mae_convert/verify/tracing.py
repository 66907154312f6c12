"""The ``trace`` command: run one checkpoint and write its results to one file."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import CheckpointError, OutputError
from mae_convert.files.atomic import check_target, replacing_file
from mae_convert.formats.registry import SUFFIX_FORMATS
from mae_convert.runtime.child_files import as_encoder
from mae_convert.runtime.inputs import InputChoice, in_order, make_inputs
from mae_convert.runtime.running import DEFAULT_DTYPES, Request, Run, run_together
from mae_convert.runtime.sides import UNMASKED, Side, check_foreign, choose_side
from mae_convert.runtime.trace import Trace
from mae_convert.verify.declared_changes import apply_steps, steps_between


@dataclass(frozen=True)
class TraceOptions:
    """The options of a trace."""

    inputs: InputChoice = field(default_factory=InputChoice)
    """The images and the noise; by default random."""

    dtypes: tuple[str, ...] = DEFAULT_DTYPES
    """The dtypes to run, in order."""

    taps: bool = False
    """Whether to store intermediate activations."""

    gradients: bool = False
    """Whether to store the gradient of the loss with respect to every trainable parameter."""

    unmasked: bool = False
    """Whether to run without masking, with the patches in order."""

    as_converted: Path | None = None
    """The path of a checkpoint that was converted from this checkpoint. The steps that its
    conversion record declares, such as a change of dtype, are applied to this checkpoint before the
    run. None: no steps are applied."""

    overwrite: bool = False
    """Whether to replace an existing trace."""


def trace_to_file(checkpoint: Checkpoint, side: Side, output: Path, options: TraceOptions) -> None:
    """Run a checkpoint and write its trace.

    Raises:
        OutputError: the output exists and may not be replaced, or its directory does not exist.
        MissingRequirementError: the framework is not installed.
        MaeConvertError: the inputs do not fit the model, or the run failed.
    """
    _check_output(output, overwrite=options.overwrite)
    side = choose_side(checkpoint, side)
    check_foreign([side], gradients=options.gradients)
    after = checkpoint
    if options.as_converted is not None:
        target = open_checkpoint(options.as_converted)
        after = apply_steps(checkpoint, steps_between(checkpoint, target), target)
    as_stored = after is checkpoint
    if side.framework in UNMASKED and after.task == "pretrain":
        after = as_encoder(after)
    inputs = make_inputs(options.inputs, after)
    ratio = after.configuration.model.mask_ratio
    if options.unmasked or side.framework in UNMASKED:
        inputs, ratio = in_order(inputs), 0.0
    request = Request(options.dtypes, options.taps, options.gradients, ratio)
    (trace,) = run_together([Run(after, side, request, as_stored)], inputs)
    save_trace(trace, output, overwrite=options.overwrite)


def save_trace(trace: Trace, output: Path, *, overwrite: bool = False) -> None:
    """Write a trace atomically.

    Raises:
        OutputError: the file exists and may not be replaced, or it cannot be written.
    """
    metadata: dict[str, Any] = {"trace": json.dumps(trace.description)}
    # safetensors writes the memory of an array, which for transposed views is in another order.
    arrays = {name: np.asarray(array, order="C") for name, array in trace.arrays.items()}
    with replacing_file(output, overwrite=overwrite) as temporary:
        save_file(arrays, temporary, metadata=metadata)


def _check_output(output: Path, *, overwrite: bool) -> None:
    check_target(output, overwrite=overwrite)
    if SUFFIX_FORMATS.get(output.suffix.lower(), "safetensors") != "safetensors":
        raise OutputError(
            output,
            f" would be a safetensors file with the suffix of another format ({output.suffix})",
            hint="choose a name that ends in .safetensors",
        )
    if output.exists() and not _is_trace(output):
        raise OutputError(
            output, " exists and is not a trace, so it is not replaced", hint="choose another name"
        )


def _is_trace(path: Path) -> bool:
    try:
        Trace.load(path)
    except CheckpointError:
        return False
    return True
