"""Hypotheses tested by candidate runs: changes that make one side reproduce the other."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from arrays import FLOAT64_LIMIT, distance
from mutation.code_pytorch import fault
from mutation.in_process import InProcess
from mutation.models import write_model, write_original
from mutation.running import Run, prepare

from mae_convert.diagnose.block_variants import Variants
from mae_convert.diagnose.candidate_process import Pair, SideResult
from mae_convert.diagnose.candidate_run import ForwardPass, inputs_as
from mae_convert.diagnose.candidates import candidates
from mae_convert.diagnose.diagnosis import diagnose_pair, explain_by_running, search_sentences
from mae_convert.diagnose.hypotheses import Hypothesis, model_of
from mae_convert.diagnose.search import CandidateResult, search
from mae_convert.runtime import run_pytorch
from mae_convert.runtime.job import Job
from mae_convert.runtime.trace import Trace
from mae_convert.verify.judge import judge
from mae_convert.verify.verification import Options, common_request

pytestmark = pytest.mark.usefixtures("forked_children")

MODELS = ("pretrain", "encoder", "token", "avg", "learned")


class Sides:
    """Models, and their traces by PyTorch in this process."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0
        self.models = {name: write_model(name, folder) for name in MODELS}
        self.tensors = {n: t.load() for n, t in self.models["pretrain"].tensors.items()}

    def request(self, checkpoint):
        unmasked = checkpoint.task == "classify"
        inputs, request = common_request(checkpoint, Options(), unmasked=unmasked)
        return inputs, request.mask_ratio

    def subject(self, checkpoint, name=None):
        """Run a checkpoint, with a fault in the code if one is named."""
        inputs, ratio = self.request(checkpoint)
        self.count += 1
        run = Run(checkpoint, "torch", inputs, ratio)
        job = Job.load(prepare(run, self.folder / str(self.count)))
        with fault(name):
            arrays = {
                key if key in ("mask", "ids_restore") else f"{dtype}/{key}": array
                for dtype, results in run_pytorch.runs(job, inputs)
                for key, array in results.items()
            }
        return SideResult(checkpoint, Trace({**job.description, "versions": {}}, arrays))

    def changed(self, **tensors):
        """Return the pre-training model with other tensors; dots in names are underscores."""
        config = self.models["pretrain"].configuration.model
        self.count += 1
        path = self.folder / f"changed{self.count}.safetensors"
        changed = {name: tensors.get(name, array) for name, array in self.tensors.items()}
        return write_original(path, config, "pretrain", changed)

    def pair(self, a, b):
        return Pair(a, b, *self.request(a.checkpoint), process_class=InProcess)

    def explain(self, a, b):
        verdict = judge(a.trace, b.trace)
        assert not verdict.passed
        return diagnose_pair(verdict, self.pair(a, b))[0]


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    return Sides(tmp_path_factory.mktemp("sides"))


def forward_pass(sides, name, variants, start=None, known_values=None):
    subject = sides.subject(sides.models[name])
    with sides.pair(subject, subject).start_process(subject) as process:
        candidate = process._run
        inputs = inputs_as(candidate.inputs, torch.float64)
        forward = ForwardPass(candidate.model, candidate.job.task, inputs, known_values or {})
        return subject.trace, {n: v.numpy().copy() for n, v in forward.run(variants, start)}


@pytest.mark.parametrize("name", MODELS)
def test_step_by_step_forward_pass_equals_the_reference_model(sides, name):
    """The results are equal with the model's modules and step by step, from every result on."""
    trace, plain = forward_pass(sides, name, Variants())
    expected = {
        **trace.results("float64"),
        **{n: trace.arrays[n] for n in trace.arrays if "/" not in n},
    }
    assert set(plain) == set(expected)
    step_by_step = Variants([("nothing", "*", None)])
    for variants in (Variants(), step_by_step):
        _, forward = forward_pass(sides, name, variants)
        for result, array in forward.items():
            assert distance(array, expected[result]) < FLOAT64_LIMIT, result
    expected_results = {n: torch.from_numpy(np.array(v)) for n, v in expected.items()}
    _, later = forward_pass(sides, name, Variants(), "encoder.blocks.1.k", expected_results)
    assert "encoder.blocks.0.q" not in later
    reached = "encoder.blocks.2.output"
    assert distance(later[reached], expected[reached]) < FLOAT64_LIMIT


FAULTS = {
    "heads inside out": "heads are split as (channels, heads) instead of (heads, channels) in"
    " every block",
    "eps 1e-12 in the decoder": "layer_norm_eps is 1e-12 in the decoder",
    "biased variance of patches": "patches are normalized differently (biased variance)",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_code_is_reproduced_and_named_with_its_reach(sides, name):
    model = sides.models["pretrain"]
    verdict = sides.explain(sides.subject(model), sides.subject(model, name))
    assert verdict.causes[0].startswith(f"A computes B's results if {FAULTS[name]}: reproduced")


def test_a_tensor_that_a_table_misnames_is_the_first_suspect(sides):
    """The tensors compare equal, because they are read back by the table that misnames them."""
    model, weight = sides.models["pretrain"], "decoder.blocks.1.attention.output.weight"
    turned = sides.changed(**{weight: sides.tensors[weight].T.copy()})
    b = replace(sides.subject(turned), checkpoint=model)
    b = replace(b, trace=replace(b.trace, description=sides.subject(model).trace.description))
    verdict = sides.explain(sides.subject(model), b)
    assert verdict.suspects[0] == weight
    assert verdict.causes[0].startswith(f"A computes B's results if {weight} is transposed: repro")


def test_two_faults_are_both_named(sides):
    model = sides.models["pretrain"]
    with fault("GELU by tanh"):
        b = sides.subject(model, "positions one off")
    verdict = sides.explain(sides.subject(model), b)
    assert "(patches get the position of the previous token)" in verdict.causes[0]
    assert "hidden_act is gelu_new in every block: reproduced" in verdict.causes[0]
    assert any("the difference at encoder.blocks.0.mlp disappears" in c for c in verdict.causes)


def test_difference_without_an_explanation_is_reported(sides):
    model = sides.models["pretrain"]
    with fault("eps 1e-3 in block 1"):
        b = sides.subject(model, "logits of attention capped")
    verdict = sides.explain(sides.subject(model), b)
    assert verdict.causes[0].startswith("no explanation of B at encoder.blocks.0.attention was")


def test_partial_explanation_reports_the_next_difference(sides):
    model = sides.models["pretrain"]
    with fault("no key bias"):
        b = sides.subject(model, "logits of attention capped")
    verdict = sides.explain(sides.subject(model), b)
    assert "A is closer to B if encoder.blocks.0.attention.k.bias is zero" in verdict.causes[0]
    assert any("B at encoder.blocks.0.attention was found" in cause for cause in verdict.causes)


def test_tensors_and_configuration_that_explain_the_difference_are_reported(sides):
    name = "decoder.position_embedding"
    a = sides.changed(**{name: sides.tensors[name] * 0})
    b = sides.changed()
    b = replace(b, configuration=replace(
        b.configuration, model=replace(b.configuration.model, layer_norm_eps=1e-12)))  # fmt: skip
    verdict = sides.explain(sides.subject(a), sides.subject(b))
    assert verdict.causes[0].startswith(
        f"A with B's {name} and B's layer_norm_eps computes the same"
    )
    assert "layer_norm_eps is 1e-06 in A and 1e-12 in B" in verdict.causes


def test_side_with_the_faulty_run_is_identified(sides):
    model = sides.models["pretrain"]
    a = sides.subject(model, "key and value exchanged")
    verdict = sides.explain(a, sides.subject(model))
    assert verdict.causes[0].startswith(
        "the PyTorch reference model with A's tensors and configuration computes the results of B"
    )
    assert "key and value exchanged) in every block: reproduced" in verdict.causes[1]


def test_lower_precision_of_the_float32_run_is_named(sides):
    model = sides.models["pretrain"]
    b = sides.subject(model, "norms in bfloat16, but not in the proof")
    verdict = sides.explain(sides.subject(model), b)
    assert verdict.first_divergence is None
    assert verdict.causes[0].startswith(
        "a test shows that B's float32 run uses bfloat16 to compute the"
    )
    assert "the layer norm before attention in every block (100%" in verdict.causes[0]


def test_without_pytorch_untried_hypotheses_are_reported(sides, monkeypatch):
    model = sides.models["pretrain"]
    a, b = sides.subject(model), sides.subject(model, "six heads")
    monkeypatch.setattr("mae_convert.runtime.sides.has_framework", lambda *_: False)
    verdict = sides.explain(a, b)
    assert verdict.causes[0].startswith("not tested, because PyTorch is not installed: number of")


def test_child_process_finds_the_same_explanation(sides):
    model = sides.models["pretrain"]
    a, b = sides.subject(model), sides.subject(model, "causal attention")
    pair = replace(sides.pair(a, b), process_class=Pair.process_class)
    in_a_child = explain_by_running(pair, judge(a.trace, b.trace))
    assert in_a_child == explain_by_running(sides.pair(a, b), judge(a.trace, b.trace))
    assert in_a_child.keys == ("attention",)


FIRSTS = {
    "learned": ("mask", "encoder.embedding", "decoder.blocks.0.k", "decoder.blocks.0.attention",
                "decoder.blocks.1.mlp", "decoder.blocks.1.output", "decoder.embedding",
                "decoder.norm", "reconstruction", "loss", "loss_norm_pix"),
    "token": ("encoder.norm", "logits"),
    "avg": ("head.norm",),
}  # fmt: skip


@pytest.mark.parametrize("name", FIRSTS)
def test_every_hypothesis_can_be_applied_and_changes_a_result(sides, name):
    subject = sides.subject(sides.models[name])
    model = model_of(subject.checkpoint)
    with sides.pair(subject, subject).start_process(subject) as process:
        for first in FIRSTS[name]:
            result = list(candidates(model, first))
            answers = {h.statement: process.compare([h], subject.trace, first) for h in result}
            assert not [message for message, answer in answers.items() if answer is None]
            assert not [message for message, answer in answers.items() if answer.first is None]


class Scripted:
    """A comparison with predefined results for each set of weight edits."""

    def __init__(self, answers):
        self.answers = answers

    def __call__(self, hypotheses, start=None):
        message = frozenset(h.statement for h in hypotheses)
        first = self.answers.get(message, "encoder.blocks.0.q")
        return None if first == "error" else CandidateResult(first, 0.0)


@contextmanager
def hypothesised(monkeypatch, by_first):
    monkeypatch.setattr(
        "mae_convert.diagnose.search.candidates", lambda _, first: by_first.get(first, [])
    )
    yield


def test_search_continues_from_the_best_candidate(sides, monkeypatch):
    q, end = "encoder.blocks.0.q", "decoder.norm"
    a, b, c = (Hypothesis(n, n, variants=((n, "*", 1),)) for n in "abc")
    wide = Hypothesis("a", "a everywhere")
    by_first = {q: [b, a.widened(lambda: [wide])], end: [c]}
    answers = {
        frozenset({"a"}): "encoder.blocks.0.mlp",
        frozenset({"b"}): "error",
        frozenset({"a everywhere"}): end,
        frozenset({"a everywhere", "c"}): None,
    }
    with hypothesised(monkeypatch, by_first):
        result = search(model_of(sides.models["pretrain"]), Scripted(answers), q)
        late = search(model_of(sides.models["pretrain"]), Scripted(answers), q, seconds=-1)
    assert [f.hypothesis.statement for f in result.findings] == ["a everywhere", "c"]
    assert (result.remaining, result.tried, result.in_time) == (None, 3, True)
    assert (late.findings, late.remaining, late.in_time) == ((), q, False)


def test_indistinguishable_explanations_are_all_reported(sides, monkeypatch):
    q = "encoder.blocks.0.q"
    a, b = (Hypothesis(n, n, variants=((n, "*", 1),)) for n in "ab")
    answers = {frozenset({"a"}): None, frozenset({"b"}): None}
    with hypothesised(monkeypatch, {q: [a, b]}):
        result = search(model_of(sides.models["pretrain"]), Scripted(answers), q)
    sentences = search_sentences(result, (), ("A", "B"))
    assert sentences[0].startswith("A computes B's results if a: reproduced")
    assert sentences[1] == "another explanation with the same results is that b"
