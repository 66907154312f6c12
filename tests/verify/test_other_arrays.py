"""``compare --names``: a trace and arrays that another program has stored."""

import json

import numpy as np
import pytest
from golden_cases import Case
from safetensors.numpy import save_file

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.families.checkpoint_options import Flags
from mae_convert.runtime.inputs import InputChoice
from mae_convert.runtime.sides import Side
from mae_convert.runtime.trace import Trace
from mae_convert.verify.tracing import TraceOptions, trace_to_file

NAMES = {"img": "pixel_values", "noise": "noise", "pred": "logits", "hidden": "mask",
         "enc.2": "encoder.blocks.2.output"}  # fmt: skip


@pytest.fixture(scope="module")
def trace(tmp_path_factory, fork_servers):
    """A trace of the golden inputs, which the tests of this file share."""
    folder, source = tmp_path_factory.mktemp("trace"), Case("pretrain_tiny")
    golden, heads = source.arrays, source.facts
    np.savez(folder / "in.npz", pixel_values=golden["imgs"], noise=golden["noise"])
    checkpoint = open_checkpoint(
        source.checkpoint,
        Flags(
            num_attention_heads=heads["num_heads"],
            decoder_num_attention_heads=heads["decoder_num_heads"],
        ),
    )
    options = TraceOptions(InputChoice(folder / "in.npz"), taps=True)
    with fork_servers.used():
        trace_to_file(checkpoint, Side("torch"), folder / "a.safetensors", options)
    return folder / "a.safetensors"


@pytest.fixture
def traced(trace, case, command, tmp_path):
    """The results of the original, a function that compares them with the trace, and the trace."""
    golden = case("pretrain_tiny").arrays
    arrays = {"img": golden["imgs"], "noise": golden["noise"], "pred": golden["f64/pred"],
              "hidden": golden["mask"], "enc.2": golden["f64/tap/blocks.2"]}  # fmt: skip

    def compare(names=NAMES, kind="npz", **changed):
        path = tmp_path / f"reference.{kind}"
        stored = {name: np.ascontiguousarray(a) for name, a in {**arrays, **changed}.items()}
        np.savez(path, **stored) if kind == "npz" else save_file(stored, path)
        (tmp_path / "names.json").write_text(json.dumps(names))
        return command("compare", trace, path, "--names", tmp_path / "names.json", "--json")

    return compare, arrays, Trace.load(trace)


def test_output_of_the_original_passes_in_both_precisions_and_containers(traced):
    compare, arrays, _ = traced
    result = compare()
    assert (result.status, result.json["passed"], result.json["proven"]) == (0, True, False)
    assert [check["name"] for check in result.json["checks"]] == [
        "function/mask", "function/encoder.blocks.2.output", "function/logits",
    ]  # fmt: skip
    assert not any("inputs" in what for what in result.json["not_compared"])
    single = {name: arrays[name].astype(np.float32) for name in ("pred", "enc.2")}
    result = compare(kind="safetensors", **single)
    assert result.status == 0
    assert "float32/B/logits" in [check["name"] for check in result.json["checks"]]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_difference_larger_than_rounding_fails(traced, dtype):
    compare, arrays, _ = traced
    result = compare(**{"enc.2": (arrays["enc.2"] * (1 + 1e-4)).astype(dtype)})
    assert (result.status, result.json["first_divergence"]) == (1, "encoder.blocks.2.output")


def test_arrays_of_another_shape_and_nan_are_named(traced):
    compare, arrays, _ = traced
    broken = arrays["pred"].copy()
    broken.flat[0] = np.nan
    result = compare(pred=broken, **{"enc.2": arrays["enc.2"][:, 1:]})
    shape = arrays["enc.2"].shape
    assert result.status == 1
    assert result.json["causes"] == [
        f"encoder.blocks.2.output has shape {shape} in A and "
        f"{(shape[0], shape[1] - 1, shape[2])} in B",
        "logits of B has 1 value that is NaN or infinite",
    ]


def test_missing_inputs_are_reported_and_other_inputs_are_refused(traced):
    compare, arrays, _ = traced
    result = compare({"pred": "logits"})
    what_not = result.json["not_compared"]
    assert any(what.startswith("the inputs") for what in what_not)
    assert any(what.endswith("which the map of names does not contain") for what in what_not)
    result = compare({"pred": "logits", "enc.2": "head.norm"})
    assert "head.norm, which A's trace does not contain" in result.json["not_compared"]
    result = compare(img=arrays["img"] + 1)
    assert (result.status, "different inputs" in result.err) == (2, True)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"pret": "logits"}, "did you mean 'pred'"),
        ({"elsewhere": "logits"}, "the arrays are "),
        ({"pred": "logit"}, "did you mean 'logits'"),
        ({"pred": "logits", "enc.2": "logits"}, "the same canonical name"),
        (["pred"], "is not a map of names"),
        ({"img": "pixel_values", "noise": "noise"}, "no result in common"),
    ],
)
def test_invalid_name_map_is_reported(traced, names, words):
    result = traced[0](names)
    assert result.status == 2
    assert words in result.err
