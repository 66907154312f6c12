"""Inference of fields that no tensor specifies: which fields are decided, and which must not be."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from paths import DEMO, GOLDEN

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.cli.main import cli
from mae_convert.diagnose.infer import Candidate, Decision, Inference, InferenceOptions, infer
from mae_convert.diagnose.infer.decision import wins
from mae_convert.diagnose.infer.experiment import structure_of, with_inferred, with_inferred_of
from mae_convert.diagnose.infer.field_search import heads_decision
from mae_convert.diagnose.infer.grid import grid_decision
from mae_convert.diagnose.infer.head_structure import HeadStructure, head_structure
from mae_convert.errors import ConfigurationError
from reference_models.positions import sincos_position_embedding

torch = pytest.importorskip("torch")

UNTRAINED = GOLDEN / "pretrain_tiny/checkpoint.pth"
EMBEDDED = DEMO / "checkpoint.pth"
QUICK = InferenceOptions(crops=4)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model without its configuration."""
    path = tmp_path_factory.mktemp("bare") / "model.pth"
    torch.save({"model": torch.load(EMBEDDED, weights_only=True)["model"]}, path)
    return path


def opened(path: Path) -> Checkpoint:
    return open_checkpoint(path, incomplete=True)


def test_heads_and_target_of_a_trained_model_are_inferred(bare: Path) -> None:
    checkpoint = opened(bare)
    inferred = infer(checkpoint, QUICK)
    decided = inferred.decided()
    assert decided["num_attention_heads"] == 5
    assert decided["decoder_num_attention_heads"] == 4
    assert decided["norm_pix_loss"] is False
    complete = with_inferred(checkpoint, inferred).configuration
    assert (complete.missing, complete.model.num_attention_heads) == ((), 5)
    assert "num_attention_heads" not in complete.assumptions
    assert "experiment" in complete.sources["num_attention_heads"]
    json.dumps(inferred.as_json(), allow_nan=False)


@pytest.mark.slow
def test_commands_use_and_record_the_inferred_fields(bare: Path, tmp_path: Path) -> None:
    run = CliRunner()
    result = json.loads(run.invoke(cli, ["inspect", str(bare), "--infer", "--json"]).stdout)
    assert (result["missing"], result["config"]["num_attention_heads"]) == ([], 5)
    assert (
        result["inferred"]["fields"]["decoder_num_attention_heads"]["candidates"][0]["value"] == 4
    )
    target = tmp_path / "mae"
    assert run.invoke(cli, ["convert", str(bare), str(target), "--to", "transformers"]).exception
    convert = ["convert", str(bare), str(target), "--to", "transformers", "--infer"]
    assert run.invoke(cli, convert).exit_code == 0
    record = json.loads((target / "conversion.json").read_text())
    assert record["inferred"] == result["inferred"]
    assert not {"num_attention_heads", "norm_pix_loss"} & record["assumptions"].keys()
    verify = ["verify", str(bare), str(target), "--infer", "--require-proof", "--certify"]
    assert run.invoke(cli, verify).exit_code == 0
    certificate = json.loads((target / "verification.json").read_text())
    assert certificate["inferred"] == result["inferred"]
    assert run.invoke(cli, ["verify", str(target), "--require-proof"]).exit_code in (0, 1)


def test_target_uses_the_fields_inferred_from_its_source(bare: Path) -> None:
    checkpoint = opened(bare)
    decision = Decision("num_attention_heads", 5, None, "weights", "fits", (Candidate(5),))
    inference = Inference({"num_attention_heads": decision})
    target = with_inferred_of(checkpoint, checkpoint, inference).configuration
    assert target.model.num_attention_heads == 5
    assert [missing.field for missing in target.missing] == ["decoder_num_attention_heads"]
    assert target.sources["num_attention_heads"] == f"experiment (weights) on {bare}"


def test_message_contains_the_reason_for_each_undecided_field(bare: Path) -> None:
    decision = Decision("num_attention_heads", None, 0.7, "", "no candidate fits", ())
    left = with_inferred(opened(bare), Inference({"num_attention_heads": decision}))
    reason = "the experiment was inconclusive: no candidate fits"
    with pytest.raises(ConfigurationError, match=reason):
        left.require_complete()


def test_too_few_images_are_refused(bare: Path, tmp_path: Path) -> None:
    shutil.copy(EMBEDDED.with_name("coffee.jpg"), tmp_path)
    with pytest.raises(ConfigurationError, match="has 1 images"):
        infer(opened(bare), InferenceOptions(images=tmp_path))


def test_no_field_is_inferred_from_random_weights() -> None:
    inferred = infer(opened(UNTRAINED), QUICK)
    assert inferred.decided() == {}
    assert all(decision.reason for decision in inferred.decisions.values())


def test_without_a_framework_only_the_weights_are_analyzed(bare: Path) -> None:
    inferred = infer(opened(bare), InferenceOptions(framework=""))
    assert inferred.decided() == {"num_attention_heads": 5}
    assert "no framework" in inferred.decisions["norm_pix_loss"].reason


@pytest.mark.parametrize("heads", [3, 6, 12])
def test_coupled_channels_show_the_number_of_heads(heads: int) -> None:
    """As after training, queries and keys share directions within each head."""
    generator = np.random.default_rng(heads)
    width, channels = 96, 96 // heads

    def layer() -> tuple[np.ndarray, np.ndarray]:
        query, key = generator.normal(size=(2, width, width))
        for start in range(0, width, channels):
            block = slice(start, start + channels)
            key[block] += 0.1 * generator.normal(size=(channels, channels)) @ query[block]
        return query, key

    layers = [layer() for _ in range(4)]
    result = head_structure([lambda one=one: one for one in layers])
    assert result.decided
    assert result.best == heads


def test_uncoupled_channels_do_not_show_the_number_of_heads() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        layers = [tuple(generator.uniform(-1, 1, (2, 48, 48))) for _ in range(2)]
        assert not head_structure([lambda one=one: one for one in layers]).decided


def test_no_field_is_inferred_if_images_and_weights_disagree() -> None:
    structure = HeadStructure({1: 0.0, 2: 90.0, 4: 10.0}, {1: 20.0, 2: 0.0, 4: 15.0})
    losses = {heads: np.full((4, 4), value) for heads, value in ((1, 0.9), (2, 0.8), (4, 0.5))}
    decision = heads_decision("num_attention_heads", structure, losses, 1.0)
    assert decision.value is None
    assert decision.reason == "the weights show 2, the images 4"
    agreed = heads_decision("num_attention_heads", structure, {**losses, 2: losses[4] / 2}, 1.0)
    assert (agreed.value, agreed.method) == (2, "reconstruction and weights")


def test_losses_on_fewer_crops_are_compared_on_those_crops_only() -> None:
    structure = HeadStructure({1: 0.0, 2: 1.0, 4: 1.0}, {1: 0.0, 2: 0.0, 4: 0.0})
    easy_first = np.tile(np.linspace(0.1, 0.9, 16), (4, 1))
    losses = {2: easy_first, 4: easy_first[:, :4] + 0.1, 1: easy_first + 0.2}
    decision = heads_decision("num_attention_heads", structure, losses, 1.0)
    assert decision.value == 2
    result = {candidate.value: candidate.loss for candidate in decision.candidates}
    assert result == pytest.approx({2: 0.5, 4: 0.6, 1: 0.7})


def test_a_candidate_that_wins_on_one_image_only_is_not_significant() -> None:
    noise = np.random.default_rng(0).normal(scale=0.01, size=(2, 4, 32))
    better_on_one = noise[0] + 1
    better_on_one[0] -= 0.5
    assert wins(better_on_one, (noise[1] + 1)[None]) < 0.99
    assert wins(noise[0] + 0.9, (noise[1] + 1)[None]) == 1.0


def test_heads_of_encoders_are_inferred_from_weights_only(bare: Path, tmp_path: Path) -> None:
    weights = torch.load(bare, weights_only=True)["model"]
    encoder = {n: v for n, v in weights.items() if "decoder" not in n and n != "mask_token"}
    torch.save({"model": encoder}, tmp_path / "encoder.pth")
    inferred = infer(opened(tmp_path / "encoder.pth"), QUICK)
    assert inferred.images == 0
    assert inferred.decided() == {"num_attention_heads": 5}
    assert structure_of(opened(bare), "num_attention_heads").best == 5


@pytest.mark.parametrize(("rows", "columns"), [(12, 12), (6, 24), (24, 6), (8, 18)])
def test_grid_of_learned_positions_is_inferred(bare: Path, rows: int, columns: int) -> None:
    checkpoint = opened(bare)
    name = "encoder.position_embedding"
    table = sincos_position_embedding(160, (rows, columns))
    table = table + np.random.default_rng(0).normal(scale=0.1, size=table.shape)
    changed = checkpoint.tensors[name].mapped(lambda _: table, np.dtype("float64"))
    learned = Checkpoint(**{**vars(checkpoint), "tensors": {**checkpoint.tensors, name: changed}})
    assert grid_decision(learned).value == (rows * 8, columns * 8)


def test_random_positions_show_no_grid(bare: Path) -> None:
    checkpoint = opened(bare)
    name = "encoder.position_embedding"
    table = np.random.default_rng(0).normal(size=(1, 145, 160))
    changed = checkpoint.tensors[name].mapped(lambda _: table, np.dtype("float64"))
    random = Checkpoint(**{**vars(checkpoint), "tensors": {**checkpoint.tensors, name: changed}})
    assert grid_decision(random).value is None
