"""``verify --reduce``: the smallest reproducer of a failure, which does not need this project."""

import runpy
import sys
from dataclasses import replace

import numpy as np
import pytest
from mutation.families import FamilyPopulation
from mutation.models import random_tensors, write_model, write_original

from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.diagnose import reduce
from mae_convert.diagnose.reduce import Difference, reduced, reproducer_of, write_reproducer
from mae_convert.diagnose.reproducer import script_text
from mae_convert.errors import MaeConvertError, OutputError
from mae_convert.formats.dtypes import DTYPES
from mae_convert.runtime.child_files import BY_TABLES, stage
from mae_convert.runtime.sides import Side
from mae_convert.verify.distance import relative_error
from mae_convert.verify.judge import Check
from mae_convert.verify.verification import Options, parse_options, run_verification

pytestmark = pytest.mark.usefixtures("forked_children")

TORCH = Side("torch")
FLOAT64 = Options(dtypes=("float64",))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_model("pretrain", tmp_path_factory.mktemp("source"))


def failed(source, folder, *names, **fields):
    """Verify the model with changed tensors, or other fields, against itself."""
    tensors = random_tensors(source.configuration.model, "pretrain", 0, learned=False)
    for name in names:
        tensors[name] = tensors[name] + np.float32(0.25)
    config = replace(source.configuration.model, **fields)
    target = write_original(folder / "b.safetensors", config, "pretrain", tensors)
    return run_verification(source, target, TORCH, TORCH, FLOAT64)


def run_script(found, folder, monkeypatch, capsys):
    """Run the script of a reproducer on PyTorch in this process; return its status and lines."""
    folder.mkdir()
    np.savez(folder / "reproduce.npz", **found.arrays)
    path = folder / "reproduce.py"
    path.write_text(script_text(found.script, ("torch", "tensorflow")))
    assert "mae_convert" not in path.read_text()
    monkeypatch.setattr(sys, "argv", [str(path), "torch"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    return int(ended.value.code), capsys.readouterr().out.splitlines()


def check(found, folder, monkeypatch, capsys):
    """Check that the lines reproduce A's result from A's tensors, and B's from B's."""
    status, lines = run_script(found, folder, monkeypatch, capsys)
    distances = [[float(word) for word in line.split() if "e" in word and word[0].isdigit()]
                 for line in lines if "settings of" in line]  # fmt: skip
    text = script_text(replace(found.script, runner="own.py:build"), ("torch",))
    assert text.count("print('  the results of B were computed by own.py:build')\n") == 1
    (a_from_a, a_from_b), (b_from_a, b_from_b) = distances
    assert status == 1
    assert max(a_from_a, b_from_b) < 1e-13
    assert min(a_from_b, b_from_a) > 1e-4
    return lines


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "first", "tensors"),
    [
        pytest.param("encoder.blocks.1.attention.k.weight", "encoder.blocks.1.k", 4, marks=slow),
        ("encoder.blocks.0.attention.output.bias", "encoder.blocks.0.attention", 2),
        pytest.param("decoder.blocks.1.mlp.fc2.weight", "decoder.blocks.1.mlp", 6, marks=slow),
        pytest.param("encoder.norm.weight", "encoder.norm", 2, marks=slow),
        pytest.param("decoder.prediction.bias", "logits", 2, marks=slow),
        pytest.param("encoder.cls_token", "encoder.embedding", 1, marks=slow),
        ("encoder.patch_embedding.weight", "encoder.embedding", 2),
        pytest.param("encoder.position_embedding", "encoder.embedding", 2, marks=slow),
        pytest.param("decoder.position_embedding", "decoder.embedding", None, marks=slow),
        ("decoder.embed.weight", "decoder.embedding", 2),
        pytest.param("decoder.mask_token", "decoder.embedding", 1, marks=slow),
    ],
)
def test_one_step_of_one_token_shows_the_difference(
    source, tmp_path, monkeypatch, capsys, name, first, tensors
):
    found = reduced(failed(source, tmp_path, name))
    assert found.script.first == first
    assert tensors in (None, len({n for n in stored(found) if n.endswith(("t", "s", "token"))}))
    if not first.endswith("attention"):
        assert found.arrays["result/A"].shape[:2] == (1, 1)
    lines = check(found, tmp_path / "reproducer", monkeypatch, capsys)
    assert sum("differs between A and B" in line for line in lines) == 1


def stored(found):
    """Return the script's names of the tensors and inputs of both sides."""
    names = (name for name in found.arrays if not name.startswith("result/"))
    return {name.removeprefix("A/").removeprefix("B/") for name in names} - {"x", "patch"}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["token", "avg"])
def test_the_head_of_a_classifier_is_shown_alone(tmp_path, monkeypatch, capsys, model):
    source = write_model(model, tmp_path)
    config = source.configuration.model
    tensors = random_tensors(config, "classify", 0, learned=True)
    tensors["head.weight"] = tensors["head.weight"][::-1].copy()
    target = write_original(tmp_path / "b.safetensors", config, "classify", tensors)
    found = reduced(run_verification(source, target, TORCH, TORCH, FLOAT64))
    assert found.script.first == "logits"
    check(found, tmp_path / "reproducer", monkeypatch, capsys)


@pytest.mark.slow
def test_another_epsilon_is_a_setting_of_the_step(source, tmp_path):
    printed = write_reproducer(
        reduced(failed(source, tmp_path, layer_norm_eps=1e-3)), tmp_path / "reproducer"
    )
    assert "eps is 1e-06 in A and 0.001 in B" in printed
    assert "differs between A and B" not in printed


# A runner with another result for the same tensors.
OTHER_CODE = """
import torch
from reference_models.configuration import ViTMAEConfig
from reference_models.pytorch import ViTMAEForPreTraining

ACTIVATIONS = {NAMES}

def build(config):
    known = {n: v for n, v in config.items() if n not in ("task", "num_kept", "dtype")}
    model = ViTMAEForPreTraining(ViTMAEConfig(**{**known, **FIELDS}))
    model.blocks[1].mlp.register_forward_hook(lambda module, given, out: OUT)
    return model

def forward(model, pixels, noise):
    found = model(pixels, noise)
    image = model.unpatchify(found.logits)
    loss = model.forward_loss(pixels, found.logits, found.mask, norm_pix_loss=True)
    results = {"mask": found.mask, "ids_restore": found.ids_restore, "logits": found.logits,
               "loss_norm_pix": loss, "reconstruction": image}
    CHANGE
    return results
"""
ALL = {
    "encoder.embedding": "blocks.0:input", "encoder.blocks.{}.attention": "blocks.{}.attn",
    "encoder.blocks.{}.mlp": "blocks.{}.mlp", "encoder.blocks.{}.output": "blocks.{}",
    "decoder.embedding": "decoder_blocks.0:input", "decoder.norm": "decoder_norm",
}  # fmt: skip
ROUNDED = "out.bfloat16().float() if out.dtype == torch.float32 else out"
BIASED = """
    target = model.patchify(pixels)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True, correction=0)
                                                         + 1e-6) ** 0.5
    errors = ((found.logits - target) ** 2).mean(-1)
    results["loss_norm_pix"] = (errors * found.mask).sum() / found.mask.sum()"""


def by_other_code(source, folder, *, names=ALL, fields="{}", out="out", change="", **options):
    """Verify a model against itself, where other code runs side B."""
    code = OTHER_CODE.replace("NAMES}", f"**{names!r}}}").replace("FIELDS", fields)
    code = code.replace("OUT", out).replace("    CHANGE", change)
    (folder / "own.py").write_text(code)
    asked = parse_options((), dtypes=options.get("dtypes", ("float64",)))
    return run_verification(source, source, TORCH, Side(f"{folder / 'own.py'}:build"), asked)


@pytest.mark.parametrize(
    ("first", "options"),
    [
        ("encoder.blocks.0.mlp", {"fields": "{'hidden_act': 'relu'}"}),
        pytest.param(  # B records the outputs of blocks only, so a whole block is one step
            "encoder.blocks.0.output",
            {"fields": "{'hidden_act': 'relu'}",
             "names": {n: m for n, m in ALL.items() if n.endswith(("output", "embedding"))}},
            marks=slow,
        ),
        pytest.param(  # all blocks, with the norm after them, are one step
            "encoder.norm",
            {"fields": "{'hidden_act': 'relu'}",
             "names": {"encoder.embedding": "blocks.0:input", "encoder.norm": "norm"}},
            marks=slow,
        ),
        ("mask", {"change": "    results['mask'] = 1 - found.mask"}),
        pytest.param("ids_restore", {"change": "    results['ids_restore'] = noise.argsort(1)"},
                     marks=slow),
        ("loss_norm_pix", {"change": BIASED}),
        pytest.param("reconstruction", {"change": "    results['reconstruction'] = image.mT"},
                     marks=slow),
    ],
)  # fmt: skip
def test_fault_in_code_is_shown_against_the_results_of_the_tensors(
    source, tmp_path, monkeypatch, capsys, first, options
):
    """The formula computes A's result from A's tensors, which are equal to B's."""
    found = reduced(by_other_code(source, tmp_path, **options))
    assert found.script.first == first
    assert relative_error(found.arrays["result/B"], found.arrays["result/A"]) > 1e-3
    status, lines = run_script(found, tmp_path / "reproducer", monkeypatch, capsys)
    assert status == 1
    assert not any("differs between" in line or " in A and " in line for line in lines)
    for line in (line for line in lines if "settings of" in line):
        a, b = (float(part.split()[0]) for part in line.split(": ")[1].split("result, "))
        assert a < 1e-13 < b


def test_rounding_errors_of_one_step_are_shown(source, tmp_path, monkeypatch, capsys):
    done = by_other_code(source, tmp_path, out=ROUNDED, dtypes=("float32",))
    found = reduced(done)
    assert (found.script.first, found.script.dtype) == ("encoder.blocks.1.mlp", "float32")
    text = script_text(replace(found.script, runner="own.py:build"), ("torch",))
    assert text.count("print('  the results of B were computed by own.py:build')\n") == 1
    status, lines = run_script(found, tmp_path / "reproducer", monkeypatch, capsys)
    a, b = (
        [float(word.rstrip(",")) for word in line.split() if "e-" in word] for line in lines[:2]
    )
    assert status == 1
    assert a[0] < 1e-6
    assert b[0] > 1e-4
    assert max(a[1], b[1]) < 1e-6  # of the framework's own operations


@pytest.mark.parametrize("family", ["videomae", "prithvi", pytest.param("mae_st", marks=slow)])
def test_pixels_losses_and_embeddings_of_videos_are_computed_by_the_script(
    family, tmp_path, monkeypatch, capsys
):
    """The formulas give what A has computed, in an image and a token of B that differ."""
    source = FamilyPopulation.of(family, tmp_path).models["pretrain"]
    done = run_verification(source, source, TORCH, TORCH, FLOAT64)
    a = done.traces[0]
    embeddings = [("encoder.embedding", 0), ("encoder.embedding", 5), ("encoder.embedding", -1)]
    embeddings += [("decoder.embedding", token) for token in (0, 1, -1)]
    results = [(name, None) for name in ("loss", "loss_norm_pix", "reconstruction")]
    for number, (first, token) in enumerate(results + embeddings):
        name = f"float64/tap/{first}" if token is not None else f"float64/{first}"
        changed = a.arrays[name].copy()
        changed[(-1, token) if token is not None else ...] += 1
        b = replace(a, arrays={**a.arrays, name: changed})
        difference = Difference(first, b, "torch")
        found = reproducer_of(difference, a, (source, source), done.inputs, {"torch": None})
        status, lines = run_script(found, tmp_path / str(number), monkeypatch, capsys)
        assert status == 1
        assert not any("differs between" in line for line in lines)
        for line in (line for line in lines if "settings of" in line):
            of_a, of_b = (float(part.split()[0]) for part in line.split(": ")[1].split("result, "))
            assert of_a < 1e-13 < of_b, first


def test_runner_without_intermediate_activations_is_not_reduced(source, tmp_path):
    done = by_other_code(source, tmp_path, names={}, fields="{'hidden_act': 'relu'}")
    with pytest.raises(MaeConvertError, match=r"logits is the first result.*to ACTIVATIONS"):
        reduced(done)
    for name, first, words in (
        ("function/grad/encoder.cls_token", "grad/encoder.cls_token", "only gradients differ"),
        ("float32/B/grad/encoder.cls_token", None, "only gradients differ"),
        ("weights/tensors that differ", None, "no result of the runs differs"),
    ):
        checks = (Check(name, False, 1.0, 0.0),)
        verdict = replace(done.verdict, checks=checks, first_divergence=first)
        with pytest.raises(MaeConvertError, match=words):
            reduced(replace(done, verdict=verdict))
    a, b = done.traces
    arrays = {n: x[:1] if n.endswith("/logits") else x for n, x in b.arrays.items()}
    with pytest.raises(MaeConvertError, match=r"logits has shape \(2, .* in A and \(1, .* in B"):
        reduced(replace(done, traces=(a, replace(b, arrays=arrays))))


def test_bfloat16_weights_are_reproduced(source, tmp_path, monkeypatch, capsys):
    tensors = random_tensors(source.configuration.model, "pretrain", 0, learned=False)
    half = {name: array.astype(DTYPES["bfloat16"]) for name, array in tensors.items()}
    target = write_original(
        tmp_path / "b.safetensors", source.configuration.model, "pretrain", half
    )
    found = reduced(run_verification(source, target, TORCH, TORCH, FLOAT64))
    assert found.script.first == "encoder.embedding"
    check(found, tmp_path / "script", monkeypatch, capsys)

    def broken(*_):
        return "print('the first line')\nraise TypeError('not a number')\n"

    monkeypatch.setattr(reduce, "script_text", broken)
    with pytest.raises(MaeConvertError, match="failed on torch: TypeError: not a number"):
        write_reproducer(found, tmp_path / "reproducer")
    assert not (tmp_path / "reproducer").exists()


def test_the_command_writes_it_after_the_verdict(source, tmp_path, command):
    tensors = random_tensors(source.configuration.model, "pretrain", 0, learned=False)
    tensors["encoder.norm.bias"] += np.float32(1)
    target = write_original(
        tmp_path / "b.safetensors", source.configuration.model, "pretrain", tensors
    )
    pair = ["verify", source.path, target.path, "--framework-a", "torch", "--framework-b", "torch"]
    result = command(*pair, "--reduce", tmp_path / "small")
    assert result.status == 1
    assert "encoder.norm: B differs from A by" in result.err
    again = command(*pair, "--reduce", tmp_path / "small")
    assert (again.status, "exists" in again.err) == (2, True)
    assert command(*pair, "--quick", "--reduce", tmp_path / "other").status == 2
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="exists"):
        write_reproducer(reduced(failed(source, tmp_path, "encoder.norm.bias")), tmp_path / "there")


def test_model_with_nan_is_staged_through_our_tables(source, tmp_path, monkeypatch, capsys):
    """A verification accepts NaN; only conversions refuse it."""
    tensors = random_tensors(source.configuration.model, "pretrain", 0, learned=False)
    tensors["encoder.norm.bias"][0] = np.nan
    target = write_original(
        tmp_path / "nan.safetensors", source.configuration.model, "pretrain", tensors
    )
    (tmp_path / "work").mkdir()
    staged = stage(target, "tensorflow", tmp_path / "work")
    assert staged.converted_by == BY_TABLES
    with pytest.raises(MaeConvertError, match="would have NaN"):
        execute(plan_conversion(target, tmp_path / "out", "transformers"))
    found = reduced(run_verification(source, target, TORCH, TORCH, FLOAT64))
    status, lines = run_script(found, tmp_path / "script", monkeypatch, capsys)
    assert (status, lines[0][:43]) == (1, "encoder.norm: B differs from A by nan (rela")
    assert "nan from A's result, 0.0e+00 from B's result" in lines[-1]
