"""An external trace file is validated before anything is compared."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mae_convert.errors import OutputError
from mae_convert.runtime.trace import Trace
from mae_convert.verify import tracing
from mae_convert.verify.certificate import ARRAYS, DOCUMENT
from mae_convert.verify.tracing import save_trace


@pytest.fixture(scope="module")
def trace(certified):
    """The description and the arrays of a trace, which a test may change."""
    description = json.loads((certified / DOCUMENT).read_text())["source_trace"]
    stored = load_file(certified / ARRAYS)
    arrays = {name: array for name, array in stored.items() if not name.startswith("inputs/")}
    tap = np.ones((2, 5, 32))
    arrays |= {f"float64/tap/encoder.blocks.{n}.output": tap * (n + 1) for n in range(3)}
    for name in [name for name in arrays if name.startswith("float64/")]:
        arrays[name.replace("64", "32")] = arrays[name].astype(np.float32)
    del description["own_errors"], description["ceiling_units"]
    return json.dumps(description), arrays


@pytest.fixture
def compared(command, trace, tmp_path):
    """Change a trace, compare it with another, and return the output of the command."""

    def compare(*changes, metadata=None, both=False):
        """Change the second trace; with two functions, one each; or both in the same way."""
        text, arrays = trace
        for number in (1, 2):
            own, described = dict(arrays), json.loads(text)
            if number == 2 or both or len(changes) == 2:
                for change in changes[-1:] if number == 2 else changes[:1]:
                    change(described, own)
            message = json.dumps(described) if metadata is None or number == 1 else metadata
            save_file(own, tmp_path / f"{number}.safetensors", metadata={"trace": message})
        return command("compare", tmp_path / "1.safetensors", tmp_path / "2.safetensors")

    return compare


def test_two_equal_traces_pass(compared):
    result = compared()
    assert result.status == 0, result.out + result.err


DAMAGE = {
    "tensors must contain at least 1": lambda d, a: d.update(tensors={}),
    "encoder.cls_token is missing": lambda d, a: d["tensors"].pop("encoder.cls_token"),
    "tensors: decoder.more does not belong to a model": lambda d, a: d["tensors"].update(
        {"decoder.more": [[1], "float32", "0" * 64]}
    ),
    "tensors.encoder.cls_token[2]": lambda d, a: d["tensors"].update(
        {"encoder.cls_token": [[1, 1, 32], "float32", 1]}
    ),
    "tensors.encoder.cls_token[1] must match pattern": lambda d, a: d["tensors"].update(
        {"encoder.cls_token": [[1, 1, 32], "float32\N{REPLACEMENT CHARACTER}", "0" * 64]}
    ),
    "is a trace of format 2": lambda d, a: d.update(format=2),
    "native must be boolean": lambda d, a: d.update(native="yes"),
    "dtypes": lambda d, a: d.update(dtypes=["float64", {}]),
    "steps[0] must contain": lambda d, a: d.update(steps=[{}]),
    "image_mean": lambda d, a: d.update(image_mean="x"),
    "config": lambda d, a: d["config"].update(image_size=[32, 32, 32]),
    "config lacks num_channels": lambda d, a: d["config"].pop("num_channels"),
    "num_attention_heads must divide": lambda d, a: d["config"].update(num_attention_heads=5),
    "control characters": lambda d, a: d["checkpoint"].update(name="\x1b]0;"),
    "lacks logits": lambda d, a: a.pop("float64/logits"),
    "has shape (0, 16, 192)": lambda d, a: a.update(
        {"float64/logits": np.zeros((0, 16, 192))}
    ),
    "tap/encoder.blocks.9.q is not a result": lambda d, a: a.update(
        {"float64/tap/encoder.blocks.9.q": np.ones((2, 5, 32))}
    ),
    "tap/encoder.blocks.0.x is not a result": lambda d, a: a.update(
        {"float64/tap/encoder.blocks.0.x": np.ones((2, 5, 32))}
    ),
    "float64/tap/encoder.embedding has shape (2, 5)": lambda d, a: a.update(
        {"float64/tap/encoder.embedding": np.ones((2, 5))}
    ),
    "grad/encoder.norm.weight has shape": lambda d, a: a.update(
        {"float64/grad/encoder.norm.weight": np.ones((1, 32))}
    ),
    "float16/logits does not belong to a run of the trace": lambda d, a: a.update(
        {"float16/logits": np.ones((2, 16, 192), np.float16)}
    ),
    "ids_restore has shape": lambda d, a: a.update(ids_restore=a["ids_restore"][:, :4].copy()),
}  # fmt: skip


@pytest.mark.parametrize("message", DAMAGE)
def test_file_that_is_not_a_trace_is_refused_in_one_sentence(compared, message):
    result = compared(DAMAGE[message])
    assert (result.status, result.err.count("\n"), message in result.err) == (2, 1, True), (
        result.err
    )


@pytest.mark.parametrize(
    "metadata", ["[]", "null", "{}", '{"format": 1}', '{"a": 1, "a": 2}', "[" * 100_000, "NaN"]
)
def test_metadata_that_is_not_a_description_is_refused_in_a_sentence(compared, metadata):
    result = compared(metadata=metadata)
    assert (result.status, result.err.count("\n")) == (2, 1), result.err


def test_two_traces_without_tensors_do_not_pass(compared):
    assert compared(lambda d, a: d.update(tensors={}), both=True).status == 2


def test_one_huge_value_does_not_hide_differences(compared):
    """With the relative L2 distance alone, 3e15 in one position hides a difference of 185."""
    name = "float64/tap/encoder.blocks.1.output"

    def with_outlier(more):
        def change(description, arrays):
            arrays[name] = np.full((2, 5, 32), 1.0 + more)
            arrays[name][0, 0, 0] = 3e15
            arrays[name.replace("64", "32")] = arrays[name].astype(np.float32)

        return change

    assert compared(with_outlier(0), both=True).status == 0
    result = compared(with_outlier(0), with_outlier(185))
    assert result.status == 1
    assert "first divergence: encoder.blocks.1.output" in result.out


def test_transposed_arrays_are_written_as_they_are(trace, tmp_path):
    """Gradients of Keras are transposed views."""
    text, arrays = trace
    name, grad = "float64/grad/encoder.blocks.0.mlp.fc2.weight", np.random.rand(128, 32).T
    save_trace(Trace(json.loads(text), {**arrays, name: grad}), tmp_path / "a.safetensors")
    assert np.array_equal(Trace.load(tmp_path / "a.safetensors").arrays[name], grad)


def test_trace_is_written_completely_or_not_at_all(trace, tmp_path, monkeypatch):
    text, arrays = trace
    made = Trace(json.loads(text), arrays)
    save_trace(made, tmp_path / "a.safetensors")
    with pytest.raises(OutputError):
        save_trace(made, tmp_path / "a.safetensors")

    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracing, "save_file", fails)
    with pytest.raises(OutputError, match="no space"):
        save_trace(made, tmp_path / "b.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
