"""The verdict on two traces: function, numerics, configuration and weights.

Function: the float64 results of both sides are equal up to rounding errors. Numerics: in each lower
precision, each side's rounding error (its distance from its own float64 run) is small and not much
larger than the other side's rounding error, so a side that silently computes in lower precision
fails even if both sides agree within a wide tolerance. Tensors and configurations are compared
too, because some of them do not affect a forward pass: softmax cancels the bias of the keys, for
example.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mae_convert.checkpoint.fingerprint import described_family
from mae_convert.errors import MaeConvertError, Option
from mae_convert.families.family import ACTIVATION_SYNONYMS
from mae_convert.files.strict_json import plain
from mae_convert.runtime.trace import Trace
from mae_convert.runtime.trace_check import GRADIENT, RESULTS
from mae_convert.text import listed
from mae_convert.verify.assumptions import assumptions, blocking, in_words
from mae_convert.verify.coverage import left_out, missing_results, not_compared
from mae_convert.verify.distance import FUNCTION_LIMIT, function_error, relative_error
from mae_convert.verify.image_checks import LIMIT as SAME_PIXELS
from mae_convert.verify.image_checks import compare_preprocessing
from mae_convert.verify.localise import OUTPUT_NAMES, candidate_tensors, execution_order

UNIT_ROUNDOFF = {"float32": 2.0**-24, "tf32": 2.0**-11, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# A side's rounding error may be at most this many times the other side's rounding error.
PEER_FACTOR = 8.0
# For PEER_FACTOR, the other side's error counts as at least this many units of roundoff. Random
# full-size models have rounding errors of 0.3 to 16 units.
FLOOR_UNITS = 16.0
# No rounding error may be larger than this many units of roundoff.
CEILING_UNITS = 64.0
# For large attention logits, CEILING_UNITS is raised by UNITS_PER_LOGIT times the largest logit,
# but at most to half the unit roundoff of TF32, which is 8192 units of roundoff of float32.
UNITS_PER_LOGIT = 16.0
LARGEST_CEILING_UNITS = 4096.0
LIMITS = {
    "function": FUNCTION_LIMIT,
    "peer_factor": PEER_FACTOR,
    "floor_units": FLOOR_UNITS,
    "ceiling_units": CEILING_UNITS,
    "units_per_logit": UNITS_PER_LOGIT,
    "largest_ceiling_units": LARGEST_CEILING_UNITS,
}

# Names of the checks of a proof. A side is read natively if its framework or library loads the
# files without mae-convert's own readers and mapping tables.
SPECIFIED = "proof/no assumption that both sides share changes the function"
READ = "proof/every field that a library may act on is read"
NATIVE, WHOLE = "proof/both sides read natively", "proof/what one side lacks is declared"
SOURCE_AT_HAND = "proof/the source is available"
Results = Mapping[str, np.ndarray]
Error = Callable[[np.ndarray, np.ndarray], float]
RESULTS_OF_ONE_TASK = ("logits", "reconstruction", "loss", "loss_norm_pix")
ARRAYS = "arrays"
"""The value of ``framework`` for a side that consists of arrays stored by another program."""
PREPROCESSING_FIELDS = ("image_mean", "image_std")


@dataclass(frozen=True)
class Check:
    """One comparison with its measured value and limit."""

    name: str
    passed: bool
    measured: Any
    limit: Any


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison of two traces."""

    passed: bool
    """Whether every check passed."""

    proven: bool
    """Whether the comparison is independent of mae-convert's readers and mapping tables: the
    libraries of the file formats read both sides, and no mapping table was used to load them. The
    comparison then also tests the readers and tables with which one side was converted from the
    other. False if a side has configuration fields that were not read (see ``unread``)."""

    checks: tuple[Check, ...]
    """All comparisons."""

    first_divergence: str | None
    """The first intermediate activation or output that differs; None if no result differs."""

    suspects: tuple[str, ...]
    """Canonical tensors that may cause the difference, most likely first."""

    causes: tuple[str, ...]
    """Explanations of the difference: differing configuration fields, and hypotheses that were
    tested and confirmed."""

    witnesses: tuple[Mapping[str, Any], ...]
    """For each side, a description of its run: framework, versions, device and checkpoint."""

    effects: Mapping[str, float] = field(default_factory=dict)
    """For each output of A, the relative L2 distance between the results with and without rounding
    of the weights to the dtype that the conversion declares. It is reported, not checked. Empty if
    the conversion declares no dtype."""

    steps: tuple[Mapping[str, Any], ...] = ()
    """Changes that B's conversion record declares, such as resampled position embeddings. They were
    applied to A before it was run."""

    not_compared: tuple[str, ...] = ()
    """Phrases that name everything that the verdict does not cover."""

    replayed: bool = False
    """Whether the results of A were taken from B's certificate and A itself was not run. The
    verdict is then not a proof: a certificate can contain the results of any model."""

    assumptions: tuple[Mapping[str, Any], ...] = ()
    """Assumptions about fields that affect the outputs, as returned by
    `mae_convert.verify.assumptions.assumptions`."""

    inferred: Mapping[str, Any] | None = None
    """The evidence of the experiment that determined configuration fields which the files of A do
    not specify; None if no experiment was made."""

    unread: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The configuration fields of each side ("A", "B") that a library may use but mae-convert does
    not read; if there are any, nothing is proven."""

    isolated: tuple[Mapping[str, Any], ...] = ()
    """The steps of a step-isolated comparison, as returned by
    `mae_convert.verify.isolation.Step.plain`; empty if no isolated steps were compared."""

    meanings: tuple[str, ...] = ()
    """Sentences that explain the size of the differences between outputs."""

    def failed(self) -> list[Check]:
        """Return the checks that failed."""
        return [check for check in self.checks if not check.passed]


def judge(a: Trace, b: Trace, *, compare_weights: bool = True) -> Verdict:
    """Compare two traces and return the verdict.

    Args:
        a: the trace of the source.
        b: the trace of the target.
        compare_weights: compare the hashes of the canonical tensors too, not only the results of
            the forward passes.

    Raises:
        MaeConvertError: the traces have different inputs or no result in common, or a trace has
            no float64 run or is incomplete.
    """
    _check_comparable(a, b)
    function = list(_function(a, b))
    checks = [*_configuration(a, b), *function, *_numerics(a, b)]
    differing: list[str] = []
    if compare_weights:
        differing = differing_tensors(a, b)
        checks.append(Check("weights/tensors that differ", not differing, len(differing), 0))
    diverging = [c.name.removeprefix("function/") for c in function if not c.passed]
    first = min(diverging, key=execution_order, default=None)
    candidates = candidate_tensors(first, set(diverging), a, b) if first else []
    unread = {side: tuple(t.description.get("unread") or ()) for side, t in (("A", a), ("B", b))}
    return Verdict(
        passed=all(check.passed for check in checks),
        proven=_native(a, b) and not any(unread.values()),
        checks=tuple(checks),
        first_divergence=first,
        suspects=tuple(dict.fromkeys([*rank(differing, candidates), *candidates])),
        causes=tuple(_configuration_causes(a, b)),
        witnesses=tuple(runner_of(side, trace) for side, trace in (("A", a), ("B", b))),
        not_compared=tuple(not_compared(a, b)),
        assumptions=assumptions(a, b),
        unread={side: fields for side, fields in unread.items() if fields},
    )


def _native(a: Trace, b: Trace) -> bool:
    """Return whether both sides were loaded without mae-convert's readers and mapping tables."""
    return bool(a.description["native"] and b.description["native"])


def unread_in_words(verdict: Verdict) -> str:
    """Return the configuration fields that mae-convert does not read, as text for each side."""
    return "; ".join(f"{side}: {listed(fields, 8)}" for side, fields in verdict.unread.items())


def proof(verdict: Verdict, a: Trace, b: Trace) -> tuple[Check, ...]:
    """Return the checks that a passed verdict must also pass to be a proof.

    The checks require that no mapping table was used, that a conversion record declares the tensors
    that only one side has, that no configuration field was ignored although a library may use it,
    and that the sides share no assumption that the comparison cannot confirm.

    Args:
        verdict: the verdict on the two traces.
        a: the trace of the source.
        b: the trace of the target.
    """
    whole = all(declared for *_, declared in left_out(a, b))
    assumed = blocking(verdict.assumptions)
    native = verdict.proven or _native(a, b)
    return (
        Check(NATIVE, native, native, True),
        Check(WHOLE, whole, whole, True),
        Check(READ, not verdict.unread, unread_in_words(verdict) or "none", "none"),
        Check(SPECIFIED, not assumed, in_words(assumed) or "none", "none"),
    )


def rank(differing: Sequence[str], candidates: Sequence[str]) -> list[str]:
    """Return the differing tensors, beginning with the tensors that affect the first divergence.

    Args:
        differing: the names of tensors that differ.
        candidates: the names of tensors that affect the first divergence.
    """
    return sorted(differing, key=lambda name: name not in candidates)


def effects(before: Trace, after: Trace) -> dict[str, float]:
    """Return the relative L2 distance of each float64 output between two traces, by output name.

    The distance is relative to the norm of the output in `before`.
    """
    old, new = before.results("float64"), after.results("float64")
    return {
        name: relative_error(new[name], old[name])
        for name in _common_results(before, after)
        if name in OUTPUT_NAMES
    }


def _check_comparable(a: Trace, b: Trace) -> None:
    if a.description["inputs"] != b.description["inputs"]:
        raise MaeConvertError(
            "the two traces were computed from different inputs, so they cannot be compared",
            hint=(
                *("use the same ", Option("inputs"), " file for both, or the same "),
                *(Option("seed"), " and ", Option("batch")),
            ),
        )
    for side in (a, b):
        if "float64" not in side.description["dtypes"]:
            raise MaeConvertError(
                f"the trace of {side.description['checkpoint']['name']} has no float64 run, which"
                " the comparison needs",
                hint=("trace it again with ", Option("run_dtype", "float64")),
            )
        omitted = side.description.get("settings", {}).get("omits", ())
        partial = omitted if "foreign" in side.description else ()
        results = [name for name in RESULTS[side.description["task"]] if name not in partial]
        if missing := [
            n for n in results if n not in side.arrays and f"float64/{n}" not in side.arrays
        ]:
            raise MaeConvertError(
                f"the trace of {side.description['checkpoint']['name']} is incomplete: it lacks "
                f"{missing[0]}",
                hint="trace it again",
            )
    if not _common_results(a, b):
        raise MaeConvertError(
            "the two sides have no result in common",
            hint=(
                *("compare their intermediate activations too (without ", Option("quick", True)),
                *("; trace with ", Option("taps", True), ")"),
            ),
        )


def _common_results(a: Trace, b: Trace) -> list[str]:
    others = b.results("float64")
    common = [name for name in a.results("float64") if name in others]
    if a.description["task"] != b.description["task"]:
        # The logits of a decoder (pixels) and of a head (classes) have only the name in common, and
        # so do the gradients of their losses.
        common = [n for n in common if n not in RESULTS_OF_ONE_TASK and not n.startswith(GRADIENT)]
    return sorted(common, key=execution_order)


def _function(a: Trace, b: Trace) -> Iterator[Check]:
    for name in ("mask", "ids_restore"):
        if name in a.arrays and name in b.arrays:
            differing = _count_differing(a.arrays[name], b.arrays[name])
            yield Check(f"function/{name}", differing == 0, differing, 0)
    left, right = a.results("float64"), b.results("float64")
    for name in _common_results(a, b):
        error = _distance(right, left, name, function_error)
        yield Check(f"function/{name}", error <= FUNCTION_LIMIT, error, FUNCTION_LIMIT)
    for name, side in missing_results(a, b):
        yield Check(f"function/{name}", False, f"missing in {side}", FUNCTION_LIMIT)


def _distance(result: Results, exact: Results, name: str, error: Error = relative_error) -> float:
    """Return the distance of a result from the exact result.

    The distance is ``error(result, exact)``, except for the gradient of a key bias. In exact
    arithmetic, this gradient is zero, because softmax does not depend on the bias. The computed
    gradient, in `exact` too, consists of rounding errors, whose size depends on the gradient of the
    key weight. The norm of the difference is therefore divided by the larger of two norms in
    `exact`: the norm of the key weight's gradient, and the norm of the key bias's gradient.

    Args:
        result: the results to compare, by name.
        exact: the results of a float64 run, by name.
        name: the name of the result.
        error: the function that computes the distance of two arrays.
    """
    if name.startswith(GRADIENT) and name.endswith(".k.bias"):
        weight = exact.get(name.replace(".k.bias", ".k.weight"))
        if weight is not None and result[name].shape == exact[name].shape:
            difference = result[name].astype(np.float64) - exact[name].astype(np.float64)
            size = max(np.linalg.norm(exact[name]), np.linalg.norm(weight))
            if not size:
                return relative_error(difference, difference * 0)
            return float(np.linalg.norm(difference) / size)
    return error(result[name], exact[name])


def rounding_errors(trace: Trace, dtype: str) -> Mapping[str, float]:
    """Return the rounding error of each result of the run in `dtype`.

    It is the distance of the result from the result of the float64 run. A trace from a certificate
    contains these distances instead of the results of the run in `dtype`.
    """
    stored = trace.description.get("own_errors")
    if stored is not None:
        return stored.get(dtype, {})
    results, exact = trace.results(dtype), trace.results("float64")
    return {name: _distance(results, exact, name) for name in results if name in exact}


def _count_differing(a: np.ndarray, b: np.ndarray) -> int:
    return int((a != b).sum()) if a.shape == b.shape else max(a.size, b.size, 1)


def _numerics(a: Trace, b: Trace) -> Iterator[Check]:
    dtypes = [d for d in a.description["dtypes"] if d in b.description["dtypes"] and d != "float64"]
    ceiling = ceiling_units(a)
    for dtype in dtypes:
        unit = UNIT_ROUNDOFF[dtype]
        errors_a, errors_b = rounding_errors(a, dtype), rounding_errors(b, dtype)
        for name in _common_results(a, b):
            error_a, error_b = errors_a.get(name, math.inf), errors_b.get(name, math.inf)
            for side, own, other in (("A", error_a, error_b), ("B", error_b, error_a)):
                peer = other if math.isfinite(other) else 0.0  # the other side fails its own check
                limit = min(PEER_FACTOR * max(peer, FLOOR_UNITS * unit), ceiling * unit)
                yield Check(f"{dtype}/{side}/{name}", own <= limit, own, limit)


def ceiling_units(trace: Trace) -> float:
    """Return the largest allowed rounding error of a result, as a multiple of the unit roundoff.

    Large attention logits raise the limit: if q and k have a relative error of e, a logit of
    magnitude m has an absolute error of about m e, and its exponential has a relative error of
    about m e, in any implementation. The logits are computed from the recorded q and k.
    """
    if (stored := trace.description.get("ceiling_units")) is not None:
        return min(float(stored), LARGEST_CEILING_UNITS)
    config = trace.description["config"]
    largest = 0.0
    for name, q in trace.arrays.items():
        k = trace.arrays.get(name[:-1] + "k")
        if name.startswith("float64/tap/") and name.endswith(".q") and k is not None:
            prefix = "decoder_" if "/decoder." in name else ""
            heads = config[f"{prefix}num_attention_heads"]
            q, k = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k))  # noqa: PLW2901
            logits = np.einsum("nthd,nshd->nhts", q, k, optimize=True) / math.sqrt(q.shape[-1])
            largest = max(largest, float(np.abs(logits).max(initial=0.0)))
    allowed = CEILING_UNITS + UNITS_PER_LOGIT * largest
    return min(allowed, LARGEST_CEILING_UNITS) if math.isfinite(allowed) else CEILING_UNITS


def _configuration(a: Trace, b: Trace) -> Iterator[Check]:
    for name in _compared_fields(a, b):
        left, right = _field(a, name), _field(b, name)
        yield Check(f"configuration/{name}", left == right, right, left)
    for what in compare_preprocessing(a, b):
        name = f"configuration/preprocessing/{what.name}"
        yield Check(name, what.error <= SAME_PIXELS, plain(what.b), plain(what.a))
    # Class names are part of the result; they are compared only if both sides have them.
    left, right = (side.description.get("labels") for side in (a, b))
    if left and right:
        yield Check(
            "configuration/labels",
            left == right,
            _count_differing_names(right, left),
            "the same names",
        )


def _count_differing_names(names: Sequence[str], others: Sequence[str]) -> str:
    """Return the number of class names that differ, as text."""
    count = sum(name != other for name, other in zip(names, others, strict=False))
    return f"{count + abs(len(names) - len(others))} of {len(others)} names differ"


def _compared_fields(a: Trace, b: Trace) -> list[str]:
    tasks = {a.description["task"], b.description["task"]}
    fields = described_family(a.description).compared_fields(tasks)
    compared = [name for name in fields if name not in OPTIONAL or _has_component(name, a, b)]
    return compared + list(PREPROCESSING_FIELDS)


# Fields that describe an optional component of a model, and the values that mean that it is absent.
OPTIONAL: Mapping[str, tuple[Any, ...]] = {
    "decoder_layer_norm_eps": (None,),
    "fc_norm": (None, True),
    "final_layer_norm_eps": (None,),
}


def _has_component(name: str, a: Trace, b: Trace) -> bool:
    """Return whether at least one side has the optional component that a field describes."""
    return any(_config(trace, name) not in OPTIONAL[name] for trace in (a, b))


def _field(trace: Trace, name: str) -> Any:
    description = trace.description
    value = description[name] if name in PREPROCESSING_FIELDS else _config(trace, name)
    if name == "decoder_layer_norm_eps" and value is None:
        return _config(trace, "layer_norm_eps")
    return ACTIVATION_SYNONYMS.get(value, value) if name == "hidden_act" else value


def _config(trace: Trace, name: str) -> Any:
    return trace.description["config"].get(name)  # traces of earlier versions lack some fields


def differing_tensors(a: Trace, b: Trace) -> list[str]:
    """Return the canonical names of the tensors that are not bit-identical on both sides.

    For models with different tasks, only tensors that both sides have are compared.
    """
    left, right = a.description["tensors"], b.description["tensors"]
    same_task = a.description["task"] == b.description["task"]
    names = {**left, **right} if same_task else [name for name in left if name in right]
    return [name for name in names if left.get(name) != right.get(name)]


def _configuration_causes(a: Trace, b: Trace) -> Iterator[str]:
    for name in _compared_fields(a, b):
        left, right = _field(a, name), _field(b, name)
        if left != right:
            yield f"{name} is {left} in A and {right} in B"
    for name, side, other in (("A", a, b), ("B", b, a)):
        of_other = other.description["steps"]
        lossy = [s for s in side.description["steps"] if s["step"] != "task" and s not in of_other]
        if lossy and differing_tensors(a, b):
            yield (
                f"{name} declares that {lossy[-1]['step']} was changed to {lossy[-1].get('to')}; "
                f"`verify SOURCE {side.description['checkpoint']['name']}` takes this into account"
            )


def runner_of(side: str, trace: Trace) -> dict[str, Any]:
    """Return a description of how one side was run: framework, versions, device, checkpoint."""
    keys = ("framework", "device", "mode", "native", "ours", "versions", "settings", "layout",
            "family", "task", "checkpoint", "assumed", "assumptions")  # fmt: skip
    foreign = {"foreign": code} if (code := trace.description.get("foreign")) else {}
    return {"side": side, **{key: trace.description.get(key) for key in keys}, **foreign}
