"""Find the causes of a failed verification."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mae_convert.diagnose.candidate_process import Explanation, Laboratory, Pair, Subject, is_finite
from mae_convert.diagnose.candidates import candidates
from mae_convert.diagnose.hypotheses import Hypothesis, Model, model_of
from mae_convert.diagnose.precision import below_the_proof, in_the_proof
from mae_convert.diagnose.search import Answer, Search, search
from mae_convert.diagnose.tensor_differences import explain
from mae_convert.diagnose.trace_differences import signs
from mae_convert.diagnose.weight_edits import Change
from mae_convert.errors import MaeConvertError, MissingRequirementError
from mae_convert.verify.judge import Verdict, differing_tensors
from mae_convert.verify.localise import execution_order
from mae_convert.verify.trace import Trace
from mae_convert.verify.verification import Verification
from reference_models.configuration import ViTMAEConfig

# Checks of files, certificates and of what a proof needs: where only these fail, the two sides
# compute the same, so that there is nothing to diagnose.
NOT_OF_RESULTS = ("proof/", "file/", "certificate/")


def diagnose(done: Verification) -> Verification:
    """Return a verification that failed with the causes of its failure, as far as they are found.

    A verification that passed is returned as it is, and so is one without traces. Where a
    certificate stands for the source, the causes are what the traces alone show.
    """
    failed = [c for c in done.verdict.failed() if not c.name.startswith(NOT_OF_RESULTS)]
    if not failed or not done.traces:
        return done
    if not done.runs:
        return replace(done, verdict=explained_by_traces(done.verdict, *done.traces[:2]))
    source, target = (
        Subject(run.checkpoint, trace, run.as_stored)
        for run, trace in zip(done.runs, done.traces[:2], strict=True)
    )
    python = next((r.side.python for r in done.runs if r.side.framework == "torch"), None)
    ratio, limit = done.runs[0].request.mask_ratio or 0.0, done.runs[0].side.time_limit
    pair = Pair(source, target, done.inputs, ratio, python=python, time_limit=limit)
    return replace(done, verdict=explained(done.verdict, pair))


def explained(verdict: Verdict, pair: Pair) -> Verdict:
    """Return a failed verdict with its causes, and with the guilty tensors before other suspects.

    First comes what was found by running again, then what the tensors themselves show, and, where
    nothing was found, what the traces do.
    """
    return explained_by(verdict, pair)[0]


def explained_by(verdict: Verdict, pair: Pair) -> tuple[Verdict, Explanation]:
    """Return the same as ``explained``, and what was found by running again."""
    found = explain_by_running(pair, verdict)
    different = set(differing_tensors(pair.a.trace, pair.b.trace))
    suspects = tuple(dict.fromkeys([*found.guilty, *verdict.suspects]))
    tensors = [name for name in suspects if name in different]
    if different:  # those that only feed the divergence and are equal are no suspects
        suspects = tuple(n for n in suspects if n in different or n in found.guilty)
    shown = explain(pair.a.checkpoint, pair.b.checkpoint, tensors)
    first = verdict.first_divergence
    seen = [] if found.keys else signs(pair.a.trace, pair.b.trace, first)
    causes = (*found.causes, *verdict.causes, *shown, *seen)
    return replace(verdict, suspects=suspects, causes=causes), found


def explained_by_traces(verdict: Verdict, a: Trace, b: Trace) -> Verdict:
    """Return a failed verdict with what the traces alone show of its causes."""
    if verdict.passed:
        return verdict
    seen = signs(a, b, verdict.first_divergence)
    return replace(verdict, causes=(*verdict.causes, *seen))


SECONDS = 60.0  # of search in one direction; a ViT-B takes less than half of it
GIVEN_BYTES = 1 << 31  # tensors of the other side that are handed to a child at most
# Fields that change the function and not the shapes, and what they change.
CONFIGURED = {
    "decoder_layer_norm_eps": ("eps", "decoder.*"),  # the first that matches counts
    "layer_norm_eps": ("eps", "*"),
    "hidden_act": ("activation", "*"),
    "num_attention_heads": ("heads", "encoder.*"),
    "decoder_num_attention_heads": ("heads", "decoder.*"),
}


def explain_by_running(pair: Pair, verdict: Verdict) -> Explanation:
    """Return why the sides of a pair part, as far as it can be shown by running one of them again.

    Hypotheses change A until it is what B is. Where none does, the other way round is tried: a
    tensor that is zero in A cannot be made into what B holds.
    """
    first = verdict.first_divergence
    try:
        if first is None:
            return below_the_proof(pair, verdict)
        if first.startswith("grad/") or not all(
            is_finite(side.trace, first) for side in (pair.a, pair.b)
        ):
            return Explanation()
        found = _towards(pair)
        if found.keys or _same(pair):
            return found
        turned = _towards(pair.turned())
        return turned if turned.keys else found
    except MissingRequirementError:
        kinds = {h.key: None for h in candidates(model_of(pair.a.checkpoint), first or "logits")}
        return Explanation((_not_tested(kinds),))
    except MaeConvertError as error:  # why it failed is not to stand in the way of that it did
        return Explanation((f"hypotheses could not be tried: {error}",))


def _effective(model: ViTMAEConfig, name: str) -> Any:
    """Return a field as it is computed with: the decoder's epsilon may be the encoder's."""
    return model.decoder_eps if name == "decoder_layer_norm_eps" else getattr(model, name)


def _same(pair: Pair) -> bool:
    """Return whether both sides have the same tensors and the same arithmetic."""
    return not differing_tensors(pair.a.trace, pair.b.trace) and not _configured(pair)


@dataclass(frozen=True)
class _Bench:
    """A laboratory with the side that is changed, and the trace that it is to follow."""

    laboratory: Laboratory
    trace: Trace
    model: Model
    base: Sequence[Hypothesis] = field(default=())

    def __call__(self, hypotheses: Sequence[Hypothesis], start: str | None = None) -> Answer | None:
        return self.laboratory.compare(hypotheses, self.trace, start)

    def search(self, first: str, base: Sequence[Hypothesis] = ()) -> Search:
        return search(self.model, self, first, base=base, seconds=SECONDS)


def _towards(pair: Pair) -> Explanation:
    """Explain the trace of ``pair.b`` by changes of ``pair.a``."""
    given = _given(pair)
    with pair.try_on(pair.a, given) as laboratory:
        bench = _Bench(laboratory, pair.b.trace, model_of(pair.a.checkpoint))
        plain = bench([])
        if plain is None:
            return Explanation()
        if plain.first is None:
            return _own_run(_Bench(laboratory, pair.a.trace, bench.model), pair)
        theirs = [*_of_tensors(given, pair.names[1]), *_configured(pair)]
        with_theirs = bench(theirs) if theirs else None
        if with_theirs is not None and with_theirs.first is None:
            said = _same_with_other_side(theirs, pair.names, with_theirs.largest)
            return Explanation((said,), (), tuple(h.key for h in theirs))
        base: Sequence[Hypothesis] = ()
        first = plain.first
        if with_theirs is not None and _later(with_theirs.first, first):
            base, first = theirs, with_theirs.first or first
        found = bench.search(first, base)
        if not found.findings and not base:
            imprecise = in_the_proof(laboratory, pair, first)
            if imprecise is not None:
                return imprecise
        causes = search_sentences(found, base, pair.names)
        return Explanation(causes, _guilty(found), _keys(found))


def _later(first: str | None, than: str) -> bool:
    return first is None or execution_order(first) > execution_order(than)


def _own_run(bench: _Bench, pair: Pair) -> Explanation:
    """Explain a side whose run is not what its tensors compute, while the other's is."""
    plain = bench([])
    if plain is None or plain.first is None:
        return Explanation()
    found = bench.search(plain.first)
    causes = _own_run_sentences(found, pair.names)
    return Explanation(causes, _guilty(found), _keys(found))


def _guilty(found: Search) -> tuple[str, ...]:
    return tuple(dict.fromkeys(n for f in found.findings for n in f.hypothesis.guilty))


def _keys(found: Search) -> tuple[str, ...]:
    return tuple(finding.hypothesis.key for finding in found.findings)


def _given(pair: Pair) -> list[str]:
    """Return the tensors that differ and that one side can be given of the other's."""
    a, b = pair.a.checkpoint.tensors, pair.b.checkpoint.tensors
    names = [name for name in differing_tensors(pair.a.trace, pair.b.trace) if name in a]
    possible = [name for name in names if name in b and a[name].shape == b[name].shape]
    return possible if sum(b[name].nbytes for name in possible) <= GIVEN_BYTES else []


def _of_tensors(names: Sequence[str], other: str) -> list[Hypothesis]:
    if not names:
        return []
    changes = tuple(Change(name, "same", (f"B/{name}",)) for name in names)
    which = (
        f"{other}'s {names[0]}"
        if len(names) == 1
        else f"{other}'s {len(names)} tensors that differ"
    )
    return [Hypothesis("tensors", which, changes)]


def _configured(pair: Pair) -> list[Hypothesis]:
    ours, theirs = (side.checkpoint.configuration.model for side in (pair.a, pair.b))
    return [
        Hypothesis("configuration", f"{pair.names[1]}'s {name}", arithmetic=((kind, where, value),))
        for name, (kind, where) in CONFIGURED.items()
        if (value := _effective(theirs, name)) != _effective(ours, name)
        and (pair.a.checkpoint.task == "pretrain" or not name.startswith("decoder_"))
        # The epsilon of the whole model has been changed to it already.
        and not (
            name == "decoder_layer_norm_eps"
            and ours.layer_norm_eps != theirs.layer_norm_eps == value
        )
    ]


Names = tuple[str, str]  # of the side that was changed, and of the one that it became


def _not_tested(kinds: Iterable[str]) -> str:
    """Return what could not be tested without PyTorch."""
    return (
        f"not tested, because PyTorch is not installed: {', '.join(kinds)}; pip install"
        " 'mae-convert[torch]' and verify again"
    )


def _same_with_other_side(theirs: Sequence[Hypothesis], names: Names, largest: float) -> str:
    """Return that the other side's tensors or configuration explain everything."""
    a, b = names
    given = " and ".join(hypothesis.statement for hypothesis in theirs)
    return f"{a} with {given} computes what {b} does: {_reproduced(largest)}; nothing else differs"


def _reproduced(largest: float) -> str:
    return f"reproduced at every step (largest error {largest:.1e})"


def search_sentences(result: Search, base: Sequence[Hypothesis], names: Names) -> tuple[str, ...]:
    """Return what a search found, and what it did not.

    Args:
        result: what was found.
        base: what one side was given of the other before, and how far that led.
        names: of the sides.
    """
    a, b = names
    given = f" with {' and '.join(h.statement for h in base)}" if base else ""
    nearer = (
        f"{a}{given} comes nearer to {b}: the next difference is at {result.first}" if base else ""
    )
    more = _found(
        result,
        f"{b} is what {a}{given} becomes when",
        f"{a}{given} comes nearer to {b} when",
        b,
    )
    return (*([nearer] if nearer else []), *more)


def _own_run_sentences(result: Search, names: Names) -> tuple[str, ...]:
    """Return what a search found about a run that is not what its tensors compute."""
    a, b = names
    plain = (
        f"{b} is what {a}'s tensors and configuration compute in the PyTorch reference model, and"
        f" {a}'s own run is not"
    )
    there = f"{a}'s run is what they compute when"
    return (
        plain,
        *_found(result, there, f"{a}'s run is nearer to what they compute when", f"{a}'s run"),
    )


def _found(result: Search, there: str, nearer: str, target: str) -> Iterator[str]:
    findings = result.findings
    said = " and ".join(finding.hypothesis.statement for finding in findings)
    if findings and result.left is None:
        yield f"{there} {said}: {_reproduced(findings[-1].largest)}"
        for other in findings[-1].others:
            yield f"the same results follow when {other.statement}; they do not tell which it is"
    elif findings:
        yield f"{nearer} {said}: that removes the difference at {findings[0].removes}"
    if len(findings) > 1:
        for finding in findings:
            yield f"the difference at {finding.removes} is gone when {finding.hypothesis.statement}"
    if result.left is not None:
        more = "" if result.in_time else "; there was no time for more"
        yield (
            f"no explanation of {target} at {result.left} was found: none of"
            f" {result.tried} hypotheses makes it vanish{more}"
        )
