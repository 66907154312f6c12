"""Explain a failed verdict by running again: what makes one side compute what the other does."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mae_convert.diagnose import sentences
from mae_convert.diagnose.candidates import candidates
from mae_convert.diagnose.edits import Change
from mae_convert.diagnose.hypothesis import Hypothesis, Model, model_of
from mae_convert.diagnose.imprecision import below_the_proof, in_the_proof
from mae_convert.diagnose.pair import Explanation, Pair, is_finite
from mae_convert.diagnose.process import Laboratory
from mae_convert.diagnose.search import Answer, Search, search
from mae_convert.errors import MaeConvertError, MissingRequirementError
from mae_convert.verify.judge import Verdict, differing_tensors
from mae_convert.verify.localise import execution_order
from mae_convert.verify.trace import Trace
from reference_models.configuration import ViTMAEConfig

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
        return Explanation((sentences.not_tested(kinds),))
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
            said = sentences.accounted_for(theirs, pair.names, with_theirs.largest)
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
        if (value := _effective(theirs, name)) != _effective(ours, name)
        and (pair.a.checkpoint.task == "pretrain" or not name.startswith("decoder_"))
        # The epsilon of the whole model has been changed to it already.
        and not (
            name == "decoder_layer_norm_eps"
            and ours.layer_norm_eps != theirs.layer_norm_eps == value
        )
    ]
