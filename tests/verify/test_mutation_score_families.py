"""A sample of the faults of the video families; the script runs all of them, slowly."""

import importlib.util

import pytest
from mutation.families import FAMILIES, FamilyPopulation
from mutation.running import run_all
from paths import ROOT

from mae_convert.verify.judge import judge

SCRIPT = ROOT / "scripts" / "mutation_score.py"


@pytest.fixture(scope="module")
def verdicts(fork_servers, tmp_path_factory):
    """Faults of each kind and family with the verdict on each, all by PyTorch in one process."""
    mutants, folder = {}, tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        (own := folder / family).mkdir()
        population = FamilyPopulation.of(family, own, seed=2)
        created = [
            *population.weights(1, by_tensorflow=0),
            *population.configurations(2, by_tensorflow=0),
            *population.code(4, 0),
        ]
        mutants[family] = [mutant for mutant in created if mutant.refused is None]
    pairs = {family: [(m.a, m.b) for m in created] for family, created in mutants.items()}
    sources = {id(a.checkpoint): a for some in pairs.values() for a, _ in some}
    targets = [b for some in pairs.values() for _, b in some]
    traces = run_all([*sources.values(), *targets], folder / "runs", fork_servers)
    of_source = dict(zip(sources, traces, strict=False))
    left = iter(traces[len(sources) :])
    return {
        family: [(m, of_source[id(m.a.checkpoint)], next(left)) for m in created]
        for family, created in mutants.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_fault_of_a_family_is_detected(verdicts, family):
    run = [(mutant, a, b) for mutant, a, b in verdicts[family] if not isinstance(b, str)]
    assert len(run) > 8
    for mutant, a, b in run:
        assert not judge(a, b).passed, mutant.name
        by_traces = judge(a, b, compare_weights=False).failed()
        seen = [c for c in by_traces if not c.name.startswith("configuration/")]
        assert bool(seen) != bool(mutant.blind), mutant.name


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_population_of_a_family_is_detected(monkeypatch, capsys, family):
    spec = importlib.util.spec_from_file_location("mutation_score", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr("sys.argv", [str(SCRIPT), "--family", family])
    with capsys.disabled():
        assert script.main() == 0
