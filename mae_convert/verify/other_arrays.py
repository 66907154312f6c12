"""Compare a trace with arrays that another program stored, matched by a map of names.

The arrays have no metadata: weights, configuration and versions are unknown, and the inputs are
known only if the file contains them too. So a verdict on such arrays is never a proof.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mae_convert.errors import CheckpointError, MaeConvertError, Option
from mae_convert.files.byte_ranges import ByteFile
from mae_convert.formats.contents import json_in
from mae_convert.runtime.inputs import inputs_sha256
from mae_convert.runtime.trace import Trace
from mae_convert.runtime.trace_check import BLOCK, MASKING, STEPS
from mae_convert.text import did_you_mean, listed, non_finite_values
from mae_convert.verify.distance import FUNCTION_LIMIT, function_error, relative_error
from mae_convert.verify.judge import (
    ARRAYS,
    FLOOR_UNITS,
    PEER_FACTOR,
    UNIT_ROUNDOFF,
    Check,
    Verdict,
    ceiling_units,
    rounding_errors,
    runner_of,
)
from mae_convert.verify.localise import OUTPUT_NAMES, execution_order

INPUTS = ("pixel_values", "noise")
MOST_NAMED = 6  # arrays that are listed in a sentence
ADVICE = (
    'write {"name in the file": "canonical name", ...}, for example {"enc_3": '
    '"encoder.blocks.3.output"}'
)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` or ``.safetensors`` file without loading pickles.

    Raises:
        CheckpointError: the file has another format or cannot be read.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, EOFError) as error:
        raise CheckpointError(
            path,
            f" is not an .npz or .safetensors file that can be read: {error}",
            hint="save the arrays with numpy.savez",
        ) from error


def read_names(path: Path) -> dict[str, str]:
    """Read a JSON file that maps the names in a file of arrays to canonical names.

    Raises:
        CheckpointError: the file is not a map of names, or it uses a canonical name twice.
    """
    names = json_in(ByteFile(path), ADVICE)
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(path, " is not a map of names", hint=ADVICE)
    for name in names.values():
        if not BLOCK.fullmatch(name) and name not in RESULT_NAMES:
            raise CheckpointError(
                path,
                f" contains the name {name!r}, which is not the name of a result",
                hint=did_you_mean(name, RESULT_NAMES)
                or f"results are named {', '.join(RESULT_NAMES)}; activations in blocks are named, "
                "for example, encoder.blocks.N.output",
            )
    if len(set(names.values())) < len(names):
        raise CheckpointError(
            path, " maps two arrays to the same canonical name", hint="leave one out"
        )
    return names


RESULT_NAMES = (*INPUTS, *MASKING, *OUTPUT_NAMES, *STEPS, "head.norm")


def compare_arrays(a: Trace, arrays: Mapping[str, np.ndarray], names: Mapping[str, str]) -> Verdict:
    """Return the verdict on whether another program's arrays equal the results of a trace.

    Float64 arrays may differ by rounding errors only. Arrays of lower precision are compared with
    the float64 results of the trace and may have the rounding error of their precision.

    Args:
        a: the trace.
        arrays: the arrays of the other program.
        names: a dictionary from the name of each array to the canonical name of the result.

    Raises:
        MaeConvertError: nothing can be compared, or the inputs differ.
    """
    if missing := [name for name in names if name not in arrays]:
        raise MaeConvertError(
            f"the file has no array {missing[0]!r}",
            hint=did_you_mean(missing[0], arrays)
            or (
                *("correct the name in the file of ", Option("names")),
                f"; the arrays are {listed(list(arrays), MOST_NAMED)}",
            ),
        )
    results = {canonical: arrays[name] for name, canonical in names.items()}
    inputs = {name: results.pop(name) for name in INPUTS if name in results}
    if inputs and inputs_sha256(inputs) != a.description["inputs"]:
        raise MaeConvertError(
            "trace A and the arrays were computed from different inputs, so they cannot be "
            "compared",
            hint=(
                "create the trace of A again, from the inputs of the other program: ",
                Option("inputs"),
            ),
        )
    exact, checks = a.results("float64"), list(_checks(a, results))
    if not checks:
        raise MaeConvertError(
            "trace A and the arrays have no result in common",
            hint=("trace A with ", Option("taps", True), " for intermediate activations"),
        )
    differing = [c.name.rpartition("/")[2] for c in checks if not c.passed]
    passed = not differing
    unknown = ["weights, configuration and versions of B, which are not stored with arrays"]
    if absent := [name for name in results if name not in exact and name not in a.arrays]:
        unknown.append(f"{listed(absent, MOST_NAMED)}, which A's trace does not contain")
    if unnamed := [name for name in arrays if name not in names]:
        unknown.append(
            f"{listed(unnamed, MOST_NAMED)} of B, which the map of names does not contain"
        )
    if not inputs:
        unknown.append("the inputs, because the arrays include neither pixel_values nor noise")
    return Verdict(
        passed=passed,
        proven=False,
        checks=tuple(checks),
        first_divergence=min(differing, key=execution_order, default=None),
        suspects=(),
        causes=tuple(_causes({**a.arrays, **exact}, results, differing)),
        witnesses=(runner_of("A", a), _runner(a)),
        not_compared=tuple(unknown),
    )


def _causes(
    ours: Mapping[str, np.ndarray], results: Mapping[str, np.ndarray], differing: Iterable[str]
) -> Iterator[str]:
    """Yield a phrase for each array whose shape differs or that has NaN or infinite values."""
    for name in differing:
        x, y = ours[name], results[name]
        if x.shape != y.shape:
            yield f"{name} has shape {x.shape} in A and {y.shape} in B"
        elif bad := int((~np.isfinite(y)).sum()):
            yield f"{name} of B has {non_finite_values(bad)}"


def _checks(a: Trace, results: Mapping[str, np.ndarray]) -> Iterator[Check]:
    exact = a.results("float64")
    for name in sorted(results, key=execution_order):
        array = results[name]
        if name in MASKING:
            if name in a.arrays:
                same = a.arrays[name].shape == array.shape
                differing = int((a.arrays[name] != array).sum()) if same else array.size
                yield Check(f"function/{name}", differing == 0, differing, 0)
        elif name in exact and array.dtype == np.float64:
            error = function_error(array, exact[name])
            yield Check(f"function/{name}", error <= FUNCTION_LIMIT, error, FUNCTION_LIMIT)
        elif name in exact:
            yield _rounded(a, name, array, exact[name])


def _rounded(a: Trace, name: str, array: np.ndarray, exact: np.ndarray) -> Check:
    """Return the check that compares an array in lower precision with A's float64 result.

    Args:
        a: the trace; its rounding errors determine the limit.
        name: the name of the result.
        array: the array of the other program.
        exact: A's float64 result.

    Raises:
        MaeConvertError: arrays of this dtype cannot be compared.
    """
    dtype = str(array.dtype)
    if dtype not in UNIT_ROUNDOFF:
        raise MaeConvertError(
            f"{name} has dtype {dtype}, which cannot be compared", hint="store float64 or float32"
        )
    unit, error = UNIT_ROUNDOFF[dtype], relative_error(array, exact)
    own = rounding_errors(a, dtype).get(name, 0.0)
    limit = min(PEER_FACTOR * max(own, FLOOR_UNITS * unit), ceiling_units(a) * unit)
    return Check(f"{dtype}/B/{name}", error <= limit, error, limit)


def _runner(a: Trace) -> dict[str, Any]:
    """Return the description of side B: another program, of which only stored arrays are known."""
    about = dict.fromkeys(("mode", "settings", "assumed", "assumptions"))
    description = {key: a.description.get(key) for key in ("layout", "task", "device")}
    return {
        "side": "B", **about, **description, "framework": ARRAYS, "native": False,
        "versions": {}, "checkpoint": {"name": "arrays of another program", "sha256": ""},
        "ours": "arrays of another program",
    }  # fmt: skip
