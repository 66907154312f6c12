"""``trace``, ``compare`` and ``verify`` through the command line, on golden data and on faults."""

import json
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from arrays import distance
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

RESULTS = {
    "last_hidden_state": "latent",
    "logits": "pred",
    "loss": "loss",
    "loss_norm_pix": "loss_norm_pix",
    "reconstruction": "reconstruction",
}


# Two runs of the library of a directory start more quickly than one of TensorFlow.
LIBRARY = ("--framework-a", "transformers", "--framework-b", "transformers")


@pytest.fixture(scope="module")
def work(run, case, tmp_path_factory):
    """One conversion to each layout, and the golden inputs as a file."""
    folder, pretrain = tmp_path_factory.mktemp("verify"), case("pretrain_tiny")
    target = folder / "pt"
    more = ["--to", f"transformers-tf={folder / 'tf'}", "--to", f"keras={folder / 'k.weights.h5'}"]
    run("convert", pretrain.checkpoint, target, "--to", "transformers", *more, *pretrain.heads)
    golden = pretrain.arrays
    np.savez(folder / "in.npz", pixel_values=golden["imgs"], noise=golden["noise"])
    return folder


@pytest.mark.parametrize(
    ("framework", "source", "limit"),
    [("torch", None, 1e-12), ("tensorflow", "tf", 1e-10), ("tensorflow", "pt", 1e-10)],
)
def test_trace_of_the_golden_inputs_equals_the_output_of_the_original(
    command, case, work, tmp_path, framework, source, limit
):
    pretrain = case("pretrain_tiny")
    checkpoint = work / source if source else pretrain.checkpoint
    heads = [] if source else pretrain.heads
    out = tmp_path / "trace.safetensors"
    result = command(
        "trace", checkpoint, out, "--framework", framework, "--dtype", "float64",
        "--inputs", work / "in.npz", "--taps", *heads,
    )  # fmt: skip
    assert result.status == 0, result.err
    trace, golden = load_file(out), pretrain.arrays
    assert np.array_equal(trace["mask"], golden["mask"])
    assert np.array_equal(trace["ids_restore"], golden["ids_restore"])
    for ours, reference in RESULTS.items():
        assert trace[f"float64/{ours}"].dtype == np.float64
        assert distance(trace[f"float64/{ours}"], golden[f"f64/{reference}"]) < limit, ours
    for stack, blocks in (("encoder.blocks", "blocks"), ("decoder.blocks", "decoder_blocks")):
        for index in range(3 if stack == "encoder.blocks" else 2):
            tap = trace[f"float64/tap/{stack}.{index}.output"]
            assert distance(tap, golden[f"f64/tap/{blocks}.{index}"]) < limit


def test_compare_of_two_traces_gives_the_verdict_of_verify(command, run, case, work, tmp_path):
    """Forked child processes give the same results as child processes that are started."""
    pretrain = case("pretrain_tiny")
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert command("trace", pretrain.checkpoint, a, "--taps", *pretrain.heads).status == 0
    assert command("trace", work / "tf", b, "--taps").status == 0
    compared = command("compare", a, b, "--json")
    verified = run("verify", pretrain.checkpoint, work / "tf", "--json", *pretrain.heads)
    assert compared.status == verified.status == 0
    for key in ("passed", "proven", "checks", "suspects", "causes"):
        assert compared.json[key] == verified.json[key], key
    assert verified.json["proven"] is True
    other = tmp_path / "other.safetensors"
    command("trace", work / "pt", other, "--seed", 1, "--framework", "torch")
    result = command("compare", a, other)
    assert result.status == 2
    assert "different inputs" in result.err


@pytest.mark.parametrize("name", ["finetune_gap_tiny", "finetune_cls_tiny", "encoder_tiny"])
def test_every_task_is_proven_through_keras(command, case, tmp_path, name):
    source = case(name)
    target = tmp_path / "model.weights.h5"
    command("convert", source.checkpoint, target, "--to", "keras", *source.heads)
    result = command(
        "verify", source.checkpoint, target, *source.heads, "--json", "--require-proof"
    )
    assert result.status == 0, result.out + result.err
    assert {w["framework"] for w in result.json["witnesses"]} == {"torch", "tensorflow"}


def test_a_side_read_through_our_tables_passes_but_is_not_proven(command, case, work):
    pretrain = case("pretrain_tiny")
    pair = ["verify", pretrain.checkpoint, work / "pt", "--framework-b", "torch", *pretrain.heads]
    result = command(*pair, "--json")
    assert (result.status, result.json["passed"], result.json["proven"]) == (0, True, False)
    assert command(*pair, "--require-proof").status == 1


def test_an_encoder_is_compared_with_the_common_part(command, work, tmp_path):
    command(
        "convert", work / "tf", tmp_path / "encoder", "--to", "transformers", "--task", "encoder"
    )
    result = command("verify", work / "tf", tmp_path / "encoder", "--json")
    assert result.status == 0, result.out
    names = [check["name"] for check in result.json["checks"]]
    assert "function/encoder.norm" in names
    assert not any("decoder" in name for name in names if name.startswith("function/"))


def test_declared_rounding_is_applied_to_the_source_before_comparison(command, work, tmp_path):
    command("convert", work / "pt", tmp_path / "half", "--to", "transformers", "--dtype", "float16")
    result = command("verify", work / "pt", tmp_path / "half", *LIBRARY, "--json")
    assert result.status == 0, result.out
    assert 1e-6 < result.json["effects"]["logits"] < 1e-2
    record = json.loads((tmp_path / "half" / "conversion.json").read_text())
    (tmp_path / "half" / "conversion.json").write_text(json.dumps({**record, "steps": []}))
    undeclared = command("verify", work / "pt", tmp_path / "half", *LIBRARY, "--json")
    assert undeclared.status == 1
    assert any("rounded to float16" in cause for cause in undeclared.json["causes"])


FAULTS = {
    "nan": ("vit.layernorm.bias", lambda a: np.where(np.arange(a.size) == 3, np.nan, a)),
    "key bias": ("vit.encoder.layer.0.attention.attention.key.bias", lambda a: a + 5),
    "transposed": ("vit.encoder.layer.1.attention.attention.value.weight", lambda a: a.T),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_explained_and_reported(command, case, work, tmp_path, name):
    pretrain, (tensor, fault) = case("pretrain_tiny"), FAULTS[name]
    broken = tmp_path / "broken"
    shutil.copytree(work / "pt", broken)
    tensors = load_file(broken / "model.safetensors")
    tensors[tensor] = np.ascontiguousarray(fault(tensors[tensor]), dtype=np.float32)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    reports = [tmp_path / "report.json", tmp_path / "report.xml"]
    result = command(
        "verify", pretrain.checkpoint, broken, *pretrain.heads, "--json", *LIBRARY[2:],
        "--report", reports[0], "--report", reports[1],
    )  # fmt: skip
    assert result.status == 1
    verdict = result.json
    suspect = {
        "nan": "encoder.norm.bias",
        "key bias": "encoder.blocks.0.attention.k.bias",
        "transposed": "encoder.blocks.1.attention.v.weight",
    }[name]
    tap = {
        "nan": "encoder.norm",
        "key bias": "encoder.blocks.0.k",
        "transposed": "encoder.blocks.1.v",
    }[name]
    assert (verdict["suspects"][0], verdict["first_divergence"]) == (suspect, tap)
    word = {"nan": "NaN", "key bias": "has the constant 5 added", "transposed": "transposed"}[name]
    assert any(word in cause for cause in verdict["causes"])
    assert json.loads(reports[0].read_text())["passed"] is False
    suite = ET.parse(reports[1]).getroot()
    assert int(suite.get("failures")) == len(suite.findall(".//failure")) > 0


def test_models_with_different_shapes_fail_without_a_run(command, case, work, tmp_path):
    from mae_convert.formats import open_container, write_file

    tensors = open_container(case("encoder_tiny").checkpoint).tensors
    shorter = [t for name, t in tensors.items() if not name.startswith("blocks.2")]
    write_file(tmp_path / "short.pth", "pth", shorter)
    result = command(
        "verify",
        case("encoder_tiny").checkpoint,
        tmp_path / "short.pth",
        "--num-heads",
        4,
        "--json",
    )
    assert result.status == 1
    assert result.json["passed"] is False


def test_a_bad_input_file_is_refused(command, case, work, tmp_path):
    golden = case("pretrain_tiny").arrays
    bad = {
        "shape": {"pixel_values": golden["imgs"][:, :, :8]},
        "equal noise": {"pixel_values": golden["imgs"], "noise": golden["noise"] * 0},
        "dtype": {"pixel_values": golden["imgs"].astype(np.float64)},
        "nothing": {"images": golden["imgs"]},
        "NaN": {"pixel_values": golden["imgs"], "noise": golden["noise"] * np.nan},
        "objects": {"pixel_values": np.array([{}, None])},
        # an input of another family, which would otherwise be ignored
        "coordinates": {"pixel_values": golden["imgs"], "location_coords": np.zeros((2, 2), "f4")},
    }
    for name, arrays in bad.items():
        np.savez(tmp_path / "in.npz", **arrays)
        out = tmp_path / "trace.safetensors"
        result = command("trace", work / "pt", out, "--inputs", tmp_path / "in.npz")
        assert result.status == 2, name
        assert result.err.count("\n") == 1, name
        assert ("NaN" in result.err, "object arrays as pickles" in result.err,
                "location_coords, which this model does not take" in result.err) == (
            name == "NaN", name == "objects", name == "coordinates"
        )  # fmt: skip
        assert not out.exists()
    np.save(tmp_path / "in.npy", golden["imgs"])
    result = command("trace", work / "pt", out, "--inputs", tmp_path / "in.npy")
    assert (result.status, "numpy.savez" in result.err) == (2, True)


def test_a_report_that_cannot_be_written_is_refused_before_the_work(command, work, tmp_path):
    for report in ("report.pdf", "no/such/report.json"):
        result = command("verify", work / "pt", work / "tf", "--report", tmp_path / report)
        assert result.status == 2


def test_older_report_is_removed_if_the_run_fails_early(command, work, tmp_path):
    report = tmp_path / "report.JSON"
    report.write_text("passed")
    result = command("verify", work / "pt", work / "none", "--report", report)
    assert (result.status, report.exists()) == (2, False)
    result = command("verify", work / "pt", work / "tf", "--dtype", "tf32")
    assert (result.status, "CUDA devices only" in result.err) == (2, True)


def test_different_heads_fail_and_a_flag_applies_to_the_file_that_lacks_the_field(
    command, case, work
):
    original = case("pretrain_tiny").checkpoint
    result = command("verify", original, work / "pt", "--num-heads", 8, "--decoder-num-heads", 3,
                 "--framework-a", "torch", "--framework-b", "torch")  # fmt: skip
    assert result.status == 1
    assert "num_attention_heads is 8 in A and 4 in B" in result.out
    result = command("verify", work / "pt", work / "tf", "--num-heads", 8)
    assert (result.status, "contradicts" in result.err) == (2, True)


def test_results_that_are_not_compared_are_reported(command, work, tmp_path):
    """An encoder has no record of its decoder: the common part is equal, the decoder is listed."""
    command(
        "convert", work / "pt", tmp_path / "encoder", "--to", "transformers", "--task", "encoder"
    )
    (tmp_path / "encoder" / "conversion.json").unlink()
    result = command("verify", work / "pt", tmp_path / "encoder", *LIBRARY)
    assert result.status == 0
    assert "NOT declared" in result.out
    assert "in everything that was compared" in result.out
    result = command("verify", work / "pt", tmp_path / "encoder", *LIBRARY, "--require-proof")
    assert (result.status, "NOT PROVEN" in result.out) == (1, True)
    assert "no conversion record declares" in result.out


def test_assumptions_are_reported(command, case, work):
    pretrain = case("pretrain_tiny")
    result = command("verify", pretrain.checkpoint, work / "pt", *pretrain.heads)
    assert "assumed by convention of the facebook layout: layer_norm_eps 1e-06" in result.out


def test_two_names_of_one_activation_function_are_equal(command, work, tmp_path):
    for name, activation in (("a", "gelu_new"), ("b", "gelu_pytorch_tanh"), ("c", "gelu")):
        shutil.copytree(work / "pt", tmp_path / name)
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": activation}))
    assert command("verify", tmp_path / "a", tmp_path / "b", *LIBRARY).status == 0
    assert command("verify", tmp_path / "a", tmp_path / "c", *LIBRARY).status == 1


def test_attention_with_large_logits_passes(command, case, work, tmp_path):
    """With large logits, float32 is less precise in every implementation."""
    from mae_convert.formats import LazyTensor, open_container, write_file

    def sharper(tensor):
        array = tensor.load().copy()
        if tensor.name.endswith("qkv.weight"):
            array[: 2 * len(array) // 3] *= 6
        return LazyTensor.from_array(tensor.name, array)

    pretrain = case("pretrain_tiny")
    tensors = open_container(pretrain.checkpoint).tensors.values()
    write_file(tmp_path / "sharp.pth", "pth", [sharper(t) for t in tensors])
    command(
        "convert",
        tmp_path / "sharp.pth",
        tmp_path / "tf",
        "--to",
        "transformers-tf",
        *pretrain.heads,
    )
    result = command("verify", tmp_path / "sharp.pth", tmp_path / "tf", *pretrain.heads)
    assert result.status == 0, result.out


def test_trace_without_a_required_result_is_refused(command, work, tmp_path):
    trace = tmp_path / "a.safetensors"
    assert command("trace", work / "tf", trace, "--dtype", "float64").status == 0
    message = command("compare", trace, trace)
    assert "precision below float64" in message.out
    with safe_open(trace, "numpy") as file:
        metadata = file.metadata()
    for lost in ("float64/logits", "mask"):
        remaining = {name: array for name, array in load_file(trace).items() if name != lost}
        save_file(remaining, tmp_path / "b.safetensors", metadata=metadata)
        result = command("compare", trace, tmp_path / "b.safetensors")
        assert result.status == 2, result.out
        assert "lacks" in result.err


def test_compare_reports_results_of_only_one_trace_and_refuses_other_files(command, work, tmp_path):
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    command("trace", work / "pt", a, "--framework", "torch", "--gradients", "--taps")
    command("trace", work / "pt", b, "--framework", "torch", "--dtype", "float64")
    result = command("compare", a, b)
    assert result.status == 0
    for word in (
        "gradients, which only A has",
        "intermediate activations, which only A",
        "float32, which",
    ):
        assert word in result.out
    assert "does not exist" in command("compare", a, tmp_path / "none").err
    for change, words in (
        (lambda d: d.update(format=9), "format 9"),
        (lambda d: d["config"].pop("layer_norm_eps"), "config lacks layer_norm_eps"),
        (lambda d: d["checkpoint"].update(name="\x1b[2J"), "control characters"),
    ):
        with safe_open(b, "numpy") as file:
            described = json.loads(file.metadata()["trace"])
        change(described)
        save_file(load_file(b), tmp_path / "c.safetensors", {"trace": json.dumps(described)})
        result = command("compare", a, tmp_path / "c.safetensors")
        assert (result.status, words in result.err) == (2, True), result.err


def test_traces_with_other_masks_differ(command, work, tmp_path):
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    side = ["--framework", "torch", "--dtype", "float64"]
    command("trace", work / "pt", a, *side)
    command("trace", work / "pt", b, *side, "--mask-ratio", "0.5")
    result = command("compare", a, b)
    assert result.status == 1
    assert "Traceback" not in result.err


@pytest.mark.parametrize(("framework", "source"), [("torch", "k.weights.h5"), ("tensorflow", "tf")])
def test_run_in_lower_precision_is_possible(command, work, tmp_path, framework, source):
    out = tmp_path / "trace.safetensors"
    result = command(
        "trace", work / source, out, "--framework", framework, "--dtype", "bfloat16",
        "--dtype", "float64",
    )  # fmt: skip
    assert result.status == 0, result.err
    trace = load_file(out)
    error = distance(trace["bfloat16/logits"].astype(np.float64), trace["float64/logits"])
    assert 1e-4 < error < 1e-1


def test_a_checkpoint_is_not_replaced_by_a_trace_or_a_report(command, work, tmp_path):
    victim = tmp_path / "victim.weights.h5"
    shutil.copy(work / "k.weights.h5", victim)
    assert command("trace", victim, victim, "--overwrite").status == 2
    assert victim.read_bytes() == (work / "k.weights.h5").read_bytes()
    result = command("verify", work / "pt", work / "tf", "--report", work / "pt" / "config.json")
    assert result.status == 2


def test_a_model_is_verified_against_its_encoder_without_the_heads_of_its_decoder(
    command, case, tmp_path
):
    pretrain, encoder = case("pretrain_tiny").checkpoint, tmp_path / "encoder.pth"
    arguments = ("--num-heads", "4")
    assert command("convert", pretrain, encoder, "--to", "facebook", "--task", "encoder",
                   *arguments).status == 0  # fmt: skip
    shown = command("verify", pretrain, encoder, "--framework-a", "torch", "--framework-b", "torch",
                    *arguments)  # fmt: skip
    assert shown.status == 0, shown.out + shown.err
    refused = command("verify", pretrain, pretrain, *arguments)
    assert "specify it with --decoder-num-heads" in refused.err
