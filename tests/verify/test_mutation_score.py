"""A sample of all faults and of good pairs; the slow tests use all of them.

``scripts/mutation_score.py`` prints the score of all faults.
"""

import importlib.util

import pytest
from mutation.good_pairs import designs, failed_pairs, runs_of_pairs, verify_pairs
from mutation.population import Population
from mutation.repair import KNOWN, NOT, repairs
from mutation.repair import remarks as not_repaired
from mutation.report import KINDS, failures, markdown, remarks, score
from mutation.running import run_all
from mutation.score import judged, runs_of
from paths import ROOT

SCRIPT = ROOT / "scripts" / "mutation_score.py"


@pytest.fixture(scope="module")
def verdicts(fork_servers, tmp_path_factory):
    """The verdicts on some faults of each kind and on some good pairs, in both frameworks."""
    folder = tmp_path_factory.mktemp("population")
    population = Population(folder, seed=1)
    mutants = [
        *population.weights(2, by_tensorflow=1),
        *population.tables(1, by_tensorflow=0),
        *population.configurations(4, by_tensorflow=1),
        *population.code(4, 1),
        *population.precision(3, 0),
    ]
    pairs = list(designs(2, 2))
    faulty = runs_of(mutants)
    traces = run_all([*faulty, *runs_of_pairs(pairs, folder)], folder / "runs", fork_servers)
    failed = failed_pairs(pairs, traces[len(faulty) :])
    return judged(mutants, traces[: len(faulty)]), failed


@pytest.fixture
def sample(verdicts):
    return verdicts[0]


def test_every_fault_is_detected_by_the_checks_that_apply_to_it(sample, capsys):
    with capsys.disabled():
        print(f"\n{markdown(sample)}")
    missed = failures(sample)
    assert not missed["not detected"]
    assert not [o for o in missed["not detected by traces"] if "[read]" not in o.mutant.name]
    assert all(score(kind, sample).total > 1 for kind in KINDS)
    assert len(sample) > 20


def test_differing_tensors_are_candidates_and_causes_are_named(sample):
    missed = failures(sample)
    assert not missed["first suspect not correct"]
    named = [score(kind, sample) for kind in ("configurations", "code", "precision")]
    assert sum(s.named for s in named) >= 0.9 * sum(s.total for s in named)


def test_faults_invisible_to_the_forward_pass_are_listed_with_the_check_that_detects_them(sample):
    message = list(remarks(sample))
    blind = [o for o in sample if o.mutant.blind]
    assert blind
    for outcome in blind:
        assert "traces" not in outcome.detected
        seen = f"{outcome.mutant.blind}: seen by {', '.join(sorted(outcome.detected))}"
        assert any(seen in line for line in message)


def test_good_pairs_pass(verdicts):
    assert len({str(design) for design in designs(200, 0)}) == 200
    assert verdicts[1] == {}


def test_faults_are_repaired_bit_for_bit(tmp_path):
    population = Population(tmp_path, seed=2)
    mutants = [*population.weights(4, by_tensorflow=1),
               *population.configurations(3, by_tensorflow=0)]  # fmt: skip
    result = repairs(mutants, tmp_path / "repaired")
    assert len(result) > 10
    assert not [r for r in result if r.result == NOT], not_repaired(result)
    assert [r for r in result if r.result == KNOWN]


@pytest.mark.slow
def test_whole_population_is_detected_and_explained(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("mutation_score", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr("sys.argv", [str(SCRIPT)])
    with capsys.disabled():
        assert script.main() == 0


@pytest.mark.slow
def test_two_hundred_good_pairs_pass(tmp_path):
    assert verify_pairs(200, 0, tmp_path) == {}
