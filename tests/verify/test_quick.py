"""``verify --quick``: outputs in float64 only, which is the whole proof of the function."""

import json

import pytest

pytestmark = pytest.mark.usefixtures("forked_children")


@pytest.fixture
def converted(command, case, tmp_path):
    source = case("pretrain_tiny")
    command("convert", source.checkpoint, tmp_path / "tf", "--to", "transformers-tf", *source.heads)
    return [source.checkpoint, tmp_path / "tf", *source.heads]


def test_equal_models_are_proven_and_omitted_checks_are_listed(command, converted):
    result = command("verify", *converted, "--quick", "--require-proof", "--json")
    assert result.status == 0, result.out + result.err
    verdict = result.json
    assert verdict["passed"]
    assert verdict["proven"]
    names = {check["name"] for check in verdict["checks"]}
    assert {"function/logits", "function/loss", "weights/tensors that differ"} <= names
    assert not any("blocks" in name or "float32" in name for name in names)
    assert "intermediate activations, which neither run recorded" in verdict["not_compared"]
    assert any("precision below float64" in sentence for sentence in verdict["not_compared"])


def test_difference_is_detected_and_named(command, converted):
    path = converted[1] / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layer_norm_eps": 1e-3}))
    result = command("verify", *converted, "--quick")
    assert result.status == 1, result.out + result.err
    assert "layer_norm_eps is 1e-06 in A and 0.001 in B" in " ".join(result.out.split())
    assert "run again without --quick to find the first differing activation" in result.err
