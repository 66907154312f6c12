"""Find the causes of a failed verification."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mae_convert.diagnose.candidate_process import (
    CandidateProcess,
    Explanation,
    Pair,
    SideResult,
    is_finite,
)
from mae_convert.diagnose.candidates import candidates
from mae_convert.diagnose.hypotheses import Hypothesis, Model, model_of
from mae_convert.diagnose.precision import explain_float32_errors, explain_float64_difference
from mae_convert.diagnose.search import CandidateResult, SearchResult, search
from mae_convert.diagnose.tensor_differences import describe_tensor_differences
from mae_convert.diagnose.trace_differences import describe_trace_differences
from mae_convert.diagnose.weight_edits import WeightEdit
from mae_convert.errors import MaeConvertError, MissingRequirementError, as_field
from mae_convert.runtime.trace import Trace
from mae_convert.verify.judge import Verdict, differing_tensors
from mae_convert.verify.localise import execution_order
from mae_convert.verify.verification import Verification

# Checks of files, certificates and the conditions of a proof: if only these fail, the two sides
# compute the same function, so there is nothing to diagnose.
NOT_OF_RESULTS = ("proof/", "file/", "certificate/")
SECONDS = 60.0  # seconds for a search that changes one side; for a ViT-B, less than half is needed
MOST_BYTES = 1 << 31  # the maximum size of the other side's tensors that are passed to a child
# Kind and module pattern of the variant for each field that changes a model's outputs but not the
# shapes of its tensors.
CONFIGURATION_FIELDS = {
    "decoder_layer_norm_eps": ("eps", "decoder.*"),  # the first matching field applies
    "layer_norm_eps": ("eps", "*"),
    "hidden_act": ("activation", "*"),
    "num_attention_heads": ("heads", "encoder.*"),
    "decoder_num_attention_heads": ("heads", "decoder.*"),
}
# The name of the side that is changed, and of the side whose results are explained.
Names = tuple[str, str]


def diagnose(verification: Verification) -> Verification:
    """Return a verification with the causes of its failure.

    A verification that passed, or that has no traces (recorded results of the runs), is returned
    unchanged. If the checkpoint was compared with a certificate, the weights of the source are not
    available, so only the traces are analysed.
    """
    failed = [c for c in verification.verdict.failed() if not c.name.startswith(NOT_OF_RESULTS)]
    if not failed or not verification.traces:
        return verification
    if not verification.runs:
        return replace(
            verification, verdict=diagnose_traces(verification.verdict, *verification.traces[:2])
        )
    source, target = (
        SideResult(run.checkpoint, trace, run.as_stored)
        for run, trace in zip(verification.runs, verification.traces[:2], strict=True)
    )
    python = next((r.side.python for r in verification.runs if r.side.framework == "torch"), None)
    ratio, limit = (
        verification.runs[0].request.mask_ratio or 0.0,
        verification.runs[0].side.time_limit,
    )
    pair = Pair(source, target, verification.inputs, ratio, python=python, time_limit=limit)
    return replace(verification, verdict=diagnose_pair(verification.verdict, pair)[0])


def diagnose_pair(verdict: Verdict, pair: Pair) -> tuple[Verdict, Explanation]:
    """Return a failed verdict with its causes, and the causes that candidate runs confirmed.

    A candidate run is a run of one side's model with hypotheses about the cause applied. The order
    of the causes is: causes that candidate runs confirmed, descriptions of differing tensors and,
    if no candidate run explains the difference, descriptions of how the traces differ.

    The verdict's ``suspects`` are the tensors that may cause the difference. They begin with the
    tensors for which a run confirmed a change: with the changed tensor, A computes B's results.
    """
    explanation = explain_by_running(pair, verdict)
    different = set(differing_tensors(pair.a.trace, pair.b.trace))
    suspects = tuple(dict.fromkeys([*explanation.changed_tensors, *verdict.suspects]))
    tensors = [name for name in suspects if name in different]
    if different:  # equal tensors are not suspects
        changed = explanation.changed_tensors
        suspects = tuple(n for n in suspects if n in different or n in changed)
    from_tensors = describe_tensor_differences(pair.a.checkpoint, pair.b.checkpoint, tensors)
    first = verdict.first_divergence
    from_traces = (
        [] if explanation.keys else describe_trace_differences(pair.a.trace, pair.b.trace, first)
    )
    causes = (*explanation.causes, *verdict.causes, *from_tensors, *from_traces)
    return replace(verdict, suspects=suspects, causes=causes), explanation


def diagnose_traces(verdict: Verdict, a: Trace, b: Trace) -> Verdict:
    """Return a failed verdict with the causes that follow from the traces alone."""
    if verdict.passed:
        return verdict
    causes = describe_trace_differences(a, b, verdict.first_divergence)
    return replace(verdict, causes=(*verdict.causes, *causes))


def explain_by_running(pair: Pair, verdict: Verdict) -> Explanation:
    """Explain the difference of a pair: change the model of one side, and run the changed model.

    The changes are hypotheses about the cause. They are applied to A's model to compute the results
    of B. If no hypothesis succeeds, the sides are swapped. A swap helps, for example, if a tensor
    is zero in A: no scaling or permutation of zeros yields the tensor of B.
    """
    first = verdict.first_divergence
    if not pair.a.checkpoint.family.has_hypotheses:
        return Explanation()
    try:
        if first is None:
            return explain_float32_errors(pair, verdict)
        if first.startswith("grad/") or not all(
            is_finite(side.trace, first) for side in (pair.a, pair.b)
        ):
            return Explanation()
        result = _explain_b_by_changing_a(pair)
        if result.keys or _same_model(pair):
            return result
        swapped = _explain_b_by_changing_a(pair.swapped())
        return swapped if swapped.keys else result
    except MissingRequirementError:
        kinds = {h.key: None for h in candidates(model_of(pair.a.checkpoint), first or "logits")}
        return Explanation((_not_tested(kinds),))
    except MaeConvertError as error:  # an error here must not replace the failed verdict
        return Explanation((f"hypotheses could not be tested: {error.render(as_field)}",))


def _effective(model: Any, name: str) -> Any:
    """Return the value of a field; the decoder's epsilon defaults to the encoder's epsilon."""
    return model.decoder_eps if name == "decoder_layer_norm_eps" else getattr(model, name)


def _same_model(pair: Pair) -> bool:
    """Return whether both sides have the same tensors and the same configuration."""
    return not differing_tensors(pair.a.trace, pair.b.trace) and not _configuration_hypotheses(pair)


@dataclass(frozen=True)
class _Comparison:
    """A function that applies hypotheses to one side's model and compares its run with a trace."""

    process: CandidateProcess
    trace: Trace
    model: Model

    def __call__(
        self, hypotheses: Sequence[Hypothesis], start: str | None = None
    ) -> CandidateResult | None:
        return self.process.compare(hypotheses, self.trace, start)

    def search(self, first: str, base: Sequence[Hypothesis] = ()) -> SearchResult:
        return search(self.model, self, first, base=base, seconds=SECONDS)


def _explain_b_by_changing_a(pair: Pair) -> Explanation:
    """Find changes of ``pair.a`` that reproduce the trace of ``pair.b``."""
    shared = _sharable_tensors(pair)
    with pair.start_process(pair.a, shared) as process:
        comparison = _Comparison(process, pair.b.trace, model_of(pair.a.checkpoint))
        plain = comparison([])
        if plain is None:
            return Explanation()
        if plain.first is None:
            return _explain_own_run(_Comparison(process, pair.a.trace, comparison.model), pair)
        theirs = [
            *_other_tensors_hypothesis(shared, pair.names[1]),
            *_configuration_hypotheses(pair),
        ]
        with_theirs = comparison(theirs) if theirs else None
        if with_theirs is not None and with_theirs.first is None:
            cause = _same_with_other_side(theirs, pair.names, with_theirs.largest)
            return Explanation((cause,), (), tuple(h.key for h in theirs))
        base: Sequence[Hypothesis] = ()
        first = plain.first
        if with_theirs is not None and _later(with_theirs.first, first):
            base, first = theirs, with_theirs.first or first
        result = comparison.search(first, base)
        if not result.findings and not base:
            imprecise = explain_float64_difference(process, pair, first)
            if imprecise is not None:
                return imprecise
        causes = search_sentences(result, base, pair.names)
        return Explanation(causes, _changed_tensors(result), _keys(result))


def _later(first: str | None, than: str) -> bool:
    return first is None or execution_order(first) > execution_order(than)


def _explain_own_run(comparison: _Comparison, pair: Pair) -> Explanation:
    """Explain why the run of ``pair.a`` differs from the PyTorch reference model.

    The reference model has the tensors and the configuration of ``pair.a``.
    """
    plain = comparison([])
    if plain is None or plain.first is None:
        return Explanation()
    result = comparison.search(plain.first)
    causes = _own_run_sentences(result, pair.names)
    return Explanation(causes, _changed_tensors(result), _keys(result))


def _changed_tensors(result: SearchResult) -> tuple[str, ...]:
    return tuple(dict.fromkeys(n for f in result.findings for n in f.hypothesis.changed_tensors))


def _keys(result: SearchResult) -> tuple[str, ...]:
    return tuple(finding.hypothesis.key for finding in result.findings)


def _sharable_tensors(pair: Pair) -> list[str]:
    """Return the names of differing tensors that can be copied from ``pair.b`` to ``pair.a``.

    These tensors have the same shape on both sides. The result is empty if they have more than
    `MOST_BYTES` bytes in total.
    """
    a, b = pair.a.checkpoint.tensors, pair.b.checkpoint.tensors
    names = [name for name in differing_tensors(pair.a.trace, pair.b.trace) if name in a]
    possible = [name for name in names if name in b and a[name].shape == b[name].shape]
    return possible if sum(b[name].nbytes for name in possible) <= MOST_BYTES else []


def _other_tensors_hypothesis(names: Sequence[str], other: str) -> list[Hypothesis]:
    if not names:
        return []
    edits = tuple(WeightEdit(name, "copied", (f"B/{name}",)) for name in names)
    which = (
        f"{other}'s {names[0]}" if len(names) == 1 else f"{other}'s {len(names)} differing tensors"
    )
    return [Hypothesis("tensors", which, edits)]


def _configuration_hypotheses(pair: Pair) -> list[Hypothesis]:
    ours, theirs = (side.checkpoint.configuration.model for side in (pair.a, pair.b))
    return [
        Hypothesis("configuration", f"{pair.names[1]}'s {name}", variants=((kind, where, value),))
        for name, (kind, where) in CONFIGURATION_FIELDS.items()
        if (value := _effective(theirs, name)) != _effective(ours, name)
        and (pair.a.checkpoint.task == "pretrain" or not name.startswith("decoder_"))
        # The hypothesis about the epsilon of the whole model includes the decoder.
        and not (
            name == "decoder_layer_norm_eps"
            and ours.layer_norm_eps != theirs.layer_norm_eps == value
        )
    ]


def _not_tested(kinds: Iterable[str]) -> str:
    """Return a sentence about the kinds of fault that could not be tested without PyTorch."""
    return (
        f"not tested, because PyTorch is not installed: {', '.join(kinds)}; pip install"
        " 'mae-convert[torch]' and verify again"
    )


def _same_with_other_side(theirs: Sequence[Hypothesis], names: Names, largest: float) -> str:
    """Return a sentence which states that A computes B's results with tensors or fields of B.

    Args:
        theirs: hypotheses that together give A all differing tensors and fields of B.
        names: the names of A and B in sentences.
        largest: the largest error (relative L2) that remains.
    """
    a, b = names
    changes = " and ".join(hypothesis.statement for hypothesis in theirs)
    return (
        f"{a} with {changes} computes the same results as {b}: {_reproduced(largest)}; nothing else"
        " differs"
    )


def _reproduced(largest: float) -> str:
    return f"reproduced at every step (largest error {largest:.1e})"


def search_sentences(
    result: SearchResult, base: Sequence[Hypothesis], names: Names
) -> tuple[str, ...]:
    """Return sentences about the result of a search.

    Args:
        result: the result of a search.
        base: hypotheses that were applied in every run of the search.
        names: the name of the side to which hypotheses are applied, and the name of the side whose
            results they explain.
    """
    a, b = names
    with_base = f" with {' and '.join(h.statement for h in base)}" if base else ""
    nearer = (
        f"{a}{with_base} is closer to {b}: the next difference is at {result.first}" if base else ""
    )
    more = _findings(
        result,
        f"{a}{with_base} computes {b}'s results if",
        f"{a}{with_base} is closer to {b} if",
        b,
    )
    return (*([nearer] if nearer else []), *more)


def _own_run_sentences(result: SearchResult, names: Names) -> tuple[str, ...]:
    """Return sentences about the first side, whose results differ from the reference model."""
    a, b = names
    plain = (
        f"the PyTorch reference model with {a}'s tensors and configuration computes the results of"
        f" {b}, but not the results of {a}'s run"
    )
    complete = f"the reference model computes {a}'s results if"
    return (
        plain,
        *_findings(
            result, complete, f"{a}'s run is closer to the reference model if", f"{a}'s run"
        ),
    )


def _findings(result: SearchResult, complete: str, partial: str, target: str) -> Iterator[str]:
    findings = result.findings
    statements = " and ".join(finding.hypothesis.statement for finding in findings)
    if findings and result.remaining is None:
        yield f"{complete} {statements}: {_reproduced(findings[-1].largest)}"
        for other in findings[-1].others:
            yield f"another explanation with the same results is that {other.statement}"
    elif findings:
        yield f"{partial} {statements}: this removes the difference at {findings[0].removes}"
    if len(findings) > 1:
        for finding in findings:
            statement = finding.hypothesis.statement
            yield f"the difference at {finding.removes} disappears if {statement}"
    if result.remaining is not None:
        more = "" if result.in_time else "; the time limit was reached"
        yield (
            f"no explanation of {target} at {result.remaining} was found: none of"
            f" {result.tried} hypotheses removes the difference{more}"
        )
