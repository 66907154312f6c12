"""Explain a failed verdict by running again: what makes one side compute what the other does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mae_convert.errors import MissingRequirementError
from mae_convert.verify.blame import execution_order
from mae_convert.verify.explain import sentences
from mae_convert.verify.explain.candidates import candidates
from mae_convert.verify.explain.edits import Change
from mae_convert.verify.explain.hypothesis import Hypothesis, Model, model_of
from mae_convert.verify.explain.precision import find_imprecisions
from mae_convert.verify.explain.process import Laboratory, Subject
from mae_convert.verify.explain.search import Answer, Search, search
from mae_convert.verify.judge import Verdict, differing_tensors
from mae_convert.verify.trace import Trace

SECONDS = 60.0  # of search in one direction; a ViT-B takes less than half of it
GIVEN_BYTES = 1 << 31  # tensors of the other side that are handed to a child at most
# Fields that change the function and not the shapes, and what they change.
CONFIGURED = {
    "layer_norm_eps": ("eps", "*"),
    "hidden_act": ("activation", "*"),
    "num_attention_heads": ("heads", "encoder.*"),
    "decoder_num_attention_heads": ("heads", "decoder.*"),
}


@dataclass(frozen=True)
class Explanation:
    """What was found by running again.

    Attributes:
        causes: sentences; each was tested and holds.
        guilty: canonical tensors that were changed on the way from A to B, likeliest first.
        keys: the kinds of fault, for those who count.
    """

    causes: tuple[str, ...] = ()
    guilty: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two sides that part, and what both were run on.

    Attributes:
        a: the side that is changed.
        b: the side that is to be explained.
        inputs: ``pixel_values`` and ``noise``.
        mask_ratio: at which both were run.
        names: what the two are called in sentences.
        python: interpreter of an environment that has PyTorch.
        laboratory: where hypotheses are tried.
    """

    a: Subject
    b: Subject
    inputs: Mapping[str, np.ndarray]
    mask_ratio: float
    names: tuple[str, str] = ("A", "B")
    python: str | None = None
    laboratory: type[Laboratory] = Laboratory

    def turned(self) -> "Pair":
        """Return the pair with its sides exchanged."""
        names = (self.names[1], self.names[0])
        return replace(self, a=self.b, b=self.a, names=names)

    def try_on(self, subject: Subject, given: Sequence[str] = ()) -> Laboratory:
        """Return a laboratory for one side, which is given tensors of the other."""
        other = self.b if subject is self.a else self.a
        return self.laboratory(
            subject, self.inputs, self.mask_ratio, other=other.checkpoint, given=given,
            python=self.python,
        )  # fmt: skip


def explain_by_running(pair: Pair, verdict: Verdict) -> Explanation:
    """Return why the sides of a pair part, as far as it can be shown by running one of them again.

    Hypotheses change A until it is what B is. Where none does, the other way round is tried: a
    tensor that is zero in A cannot be made into what B holds.
    """
    first = verdict.first_divergence
    try:
        if first is None:
            return _imprecision(pair, verdict)
        if first.startswith("grad/") or not all(
            _finite(side.trace, first) for side in (pair.a, pair.b)
        ):
            return Explanation()
        found = _towards(pair)
        if found.keys or _same(pair):
            return found
        turned = _towards(pair.turned())
        return turned if turned.keys else found
    except MissingRequirementError:
        kinds = {h.key: None for h in candidates(model_of(pair.a.checkpoint), first or "logits")}
        return Explanation((sentences.not_tested(kinds),))


def _same(pair: Pair) -> bool:
    """Return whether both sides have the same tensors and the same arithmetic."""
    return not differing_tensors(pair.a.trace, pair.b.trace) and not _configured(pair)


def _finite(trace: Trace, name: str, dtype: str = "float64") -> bool:
    keys = (f"{dtype}/tap/{name}", f"{dtype}/{name}", name)
    found = [trace.arrays[key] for key in keys if key in trace.arrays]
    return all(bool(np.isfinite(array).all()) for array in found)


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
            said = sentences.accounted_for(theirs, pair.names, with_theirs.largest)
            return Explanation((said,), (), tuple(h.key for h in theirs))
        base: Sequence[Hypothesis] = ()
        first = plain.first
        if with_theirs is not None and _later(with_theirs.first, first):
            base, first = theirs, with_theirs.first or first
        found = bench.search(first, base)
        if not found.findings and not base:
            return _imprecise_proof(laboratory, pair, first, found)
        causes = sentences.found(found, base, pair.names)
        return Explanation(causes, _guilty(found), _keys(found))


def _later(first: str | None, than: str) -> bool:
    return first is None or execution_order(first) > execution_order(than)


def _own_run(bench: _Bench, pair: Pair) -> Explanation:
    """Explain a side whose run is not what its tensors compute, while the other's is."""
    plain = bench([])
    if plain is None or plain.first is None:
        return Explanation()
    found = bench.search(plain.first)
    causes = sentences.own_run(found, pair.names)
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
        if (value := getattr(theirs, name)) != getattr(ours, name)
        and (pair.a.checkpoint.task == "pretrain" or not name.startswith("decoder_"))
    ]


def _imprecise_proof(laboratory: Laboratory, pair: Pair, first: str, found: Search) -> Explanation:
    """Explain a difference in the float64 run by less precision, or say what was tried."""

    def measure(hypothesis: Hypothesis, at: str) -> float:
        return laboratory.unexplained(hypothesis, pair.b.trace, "float64", at)

    steps = _steps(pair.b.trace, "float64")
    failing = [first, *(n for n in steps if execution_order(n) > execution_order(first))]
    parts = find_imprecisions(measure, failing, steps, "float64")
    if not parts:
        return Explanation(sentences.found(found, (), pair.names))
    return Explanation(sentences.imprecise(parts, pair.names[1], "float64"), (), ("precision",))


def _steps(trace: Trace, dtype: str) -> list[str]:
    """Return the names of the steps between, in order."""
    names = (n for n in trace.arrays if n.startswith(f"{dtype}/tap/"))
    return sorted((n.removeprefix(f"{dtype}/tap/") for n in names), key=execution_order)


def _imprecision(pair: Pair, verdict: Verdict) -> Explanation:
    """Explain a side whose error in float32 is too large."""
    failed = [check.name.split("/", 2) for check in verdict.failed()]
    own = {(side, name) for dtype, side, name in (f for f in failed if f[0] == "float32")}
    causes: tuple[str, ...] = ()
    for side, subject in (("A", pair.a), ("B", pair.b)):
        failing = sorted((name for s, name in own if s == side), key=execution_order)
        if failing and _finite(subject.trace, failing[0], "float32"):
            causes += _of_side(pair, side, subject, failing)
    return Explanation(causes, (), ("precision",) if causes else ())


def _of_side(pair: Pair, side: str, subject: Subject, failing: Sequence[str]) -> tuple[str, ...]:
    with pair.try_on(subject) as laboratory:

        def measure(hypothesis: Hypothesis, at: str) -> float:
            return laboratory.unexplained(hypothesis, subject.trace, "float32", at)

        steps = _steps(subject.trace, "float32")
        parts = find_imprecisions(measure, failing, steps, "float32")
    return sentences.imprecise(parts, side, "float32")
