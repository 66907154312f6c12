"""The documentation: its code blocks run unchanged, page by page.

`CHECKED_ONLY` and the comment ``<!-- not run: REASON -->`` name the blocks that cannot be run here;
the commands and paths of all blocks are checked.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import click
import documentation
import pytest
import yaml
from hub_state import Account

import mae_convert.models
from mae_convert.cli.main import cli
from mae_convert.sweep import plan_fields as sweep_fields

ROOT = documentation.ROOT
DATA = ROOT / "mae_convert/data/demo"
TOKEN = "hf_theTokenOfSomeone"
PAGES = documentation.pages()
LANGUAGES = {"sh", "python", "yaml", "csv", "text"}
MOST_LINES_OF_README = 250
CHECKED_ONLY = {
    "CONTRIBUTING.md": "the test suite itself",
    "docs/adding_a_family.md": "tests/families/test_external_family.py runs it",
    "docs/adding_a_layout.md": "tests/layouts/test_adding_a_layout.py runs it",
    "docs/checkpoints.md": "it downloads from the Hub",
    "docs/public_projects.md": "an example on a file of the reader",
    "docs/reference/commands.md": "examples on files of the reader",
    "docs/robustness.md": "hours, or a test of its own",
    "docs/speed.md": "hours, and environments of other libraries",
    "docs/sweeps.md": "remote storage and a cluster; tests/sweep/test_sweep.py runs sweeps",
}
# Text that a page prints when it is run.
EXPECTED = {
    "README.md": ["PASSED and proven", "sheet.png"],
    "docs/experiments.md": ["num_attention_heads: 5", "decoder_num_attention_heads: 4"],
    "docs/fingerprint.md": [
        "mae1:87632d",
        ":5a9416",
        "B is A after the declared",
        "70 are bit-identical",
    ],
    "docs/guide/ci.md": ["PASSED and proven"],
    "docs/guide/features_pytorch.md": ["torch.Size([2, 160])", "torch.Size([2, 12, 12, 160])"],
    "docs/guide/fine_tune_keras.md": ["accuracy on digits"],
    "docs/guide/fine_tune_pytorch.md": ["accuracy on digits", "classify"],
    "docs/guide/index.md": [],
    "docs/guide/publish.md": ["facebook", "PASSED and proven", "PUBLISHED: 8 files"],
    "docs/guide/reconstructions.md": ["both.png", "160 features each, 10 labels", "correctly"],
    "docs/guide/saved_model.md": ["(1, 145, 160)"],
    "docs/guide/videos.md": ["frames.png", "1 video, 32 features each"],
    "docs/guide/tensorflow.md": ["(1, 144, 192)", "PASSED"],
    "docs/index.md": ["PASSED and proven"],
    "docs/layouts.md": ["transformers-tf", "Can be converted to"],
    "docs/migration.md": [],
    "docs/publishing.md": ["PUBLISHED"],
    "docs/runners.md": ["external code", "PASSED and proven"],
    "docs/repair.md": ["PASSED and proven", "decoder.position_embedding: is zero"],
    "docs/verification.md": ["PASSED and proven", "PASSED"],
}
DATASET = """
import tensorflow as tf
import numpy as np
pixels = np.random.default_rng(0).normal(size=(8, 3, 96, 96)).astype("float32")
dataset = tf.data.Dataset.from_tensor_slices((pixels, np.arange(8) % 2)).batch(4)
"""
BARE = """
import torch
torch.save({"model": torch.load("mae.pth", weights_only=True)["model"]}, "bare.pth")
"""
DAMAGED = """
import json, subprocess
from pathlib import Path
from safetensors.numpy import load_file, save_file
subprocess.run(["mae-convert", "convert", "mae.pth", "damaged", "--to", "transformers"], check=True)
weights, config = Path("damaged/model.safetensors"), Path("damaged/config.json")
tensors = load_file(weights)
block = "vit.encoder.layer.0.attention.attention"
query, key = f"{block}.query.weight", f"{block}.key.weight"
tensors[query], tensors[key] = tensors[key], tensors[query]
tensors["decoder.decoder_pos_embed"] *= 0
save_file(tensors, weights, {"format": "pt"})
config.write_text(json.dumps({**json.loads(config.read_text()), "layer_norm_eps": 1e-12}))
"""
RUNNER = next(b.code for b in documentation.blocks(documentation.DOCS / "runners.md")
              if b.language == "python")  # fmt: skip
# NAME of ``<!-- setup: NAME -->`` → a program, in the language of the block, that creates NAME.
SETUP = {
    "bare.pth": ("python", BARE),
    "cat.jpg": ("sh", "cp photos/chelsea.jpg cat.jpg"),
    "certified": ("sh", "mae-convert verify mae.pth my-mae --certify"),
    "damaged": ("python", DAMAGED),
    "half-precision": (
        "sh",
        "mae-convert convert mae.pth half-precision --to transformers --task encoder"
        " --dtype bfloat16",
    ),
    "my_runner.py": ("python", f"open('my_runner.py', 'w').write({RUNNER!r})"),
    "my-mae": ("sh", "mae-convert convert mae.pth my-mae --to transformers"),
    "my-mae-tf": ("sh", "mae-convert convert mae.pth my-mae-tf --to transformers-tf"),
    "my-mae.weights.h5": ("sh", "mae-convert convert mae.pth my-mae.weights.h5 --to keras"),
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "page"
    (folder / "photos").mkdir(parents=True)
    shutil.copy(DATA / "checkpoint.pth", folder / "mae.pth")
    for path in DATA.glob("*.jpg"):
        shutil.copy(path, folder / "photos")
    return folder


@pytest.fixture
def environment(hub, tmp_path):
    hub.state.accounts[TOKEN] = Account("someone")
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def run(language, code, folder, environment):
    program = ["sh", "-euc", code] if language == "sh" else [sys.executable, "-c", code]
    process = subprocess.run(
        program, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, f"{code}\n{process.stdout}{process.stderr}"
    return process.stdout


def run_block(block, folder, environment):
    before = ""
    for name in block.setup:
        if name == "dataset":
            before = DATASET
        elif name in ("certified",) or not (folder / name).exists():
            run(*SETUP[name], folder, environment)
    return run(block.language, before + block.code, folder, environment)


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(EXPECTED))
def test_every_block_runs(page, folder, environment):
    printed = ""
    for block in documentation.blocks(PAGES[page]):
        if block.language in ("sh", "python") and not block.not_run:
            printed += run_block(block, folder, environment)
    for words in EXPECTED[page]:
        assert words in printed, printed


def shown(text):
    """Return the lines of an output without values that differ between runs and machines."""
    lines = [re.sub(r"[-+.\d]*\d[-+.\w]*", "#", line).split() for line in text.splitlines()]
    return [line for line in lines if line]


def outputs_of_readme():
    """Return each command of the README with the output shown below it."""
    result = documentation.blocks(PAGES["README.md"])
    return [(b, o) for b, o in pairwise(result) if o.language == "text"]


def test_the_readme_shows_what_inspect_and_convert_print(folder, environment):
    for block, output in outputs_of_readme()[:2]:
        assert shown(run_block(block, folder, environment)) == shown(output.code)


@pytest.mark.slow
def test_the_readme_shows_what_its_commands_print(folder, environment):
    for block, output in outputs_of_readme():
        assert shown(run_block(block, folder, environment)) == shown(output.code)


def test_the_readme_is_short():
    lines = PAGES["README.md"].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES_OF_README


def test_every_page_is_run_or_has_a_reason_not_to():
    with_code = {
        name
        for name, path in PAGES.items()
        if any(block.language in ("sh", "python") for block in documentation.blocks(path))
    }
    assert with_code == EXPECTED.keys() | CHECKED_ONLY.keys()
    assert not EXPECTED.keys() & CHECKED_ONLY.keys()


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_block_is_well_formed(page):
    for block in documentation.blocks(PAGES[page]):
        assert block.language in LANGUAGES, block
        assert set(block.setup) <= {*SETUP, "dataset"}
        if block.language == "python":
            compile(block.code, page, "exec")
        if block.language == "yaml":
            yaml.safe_load(block.code)
        if block.language == "sh":
            for words in block.commands():
                check_command(words)


def check_command(words):
    """Check that a command has such options, and that the project's files that it names exist."""
    for word in words:
        if word.startswith(("scripts/", "tests/")):
            assert (ROOT / word).exists(), words
    if words[0] != "mae-convert":
        return
    command = cli.commands[words[1]]
    with click.Context(command, info_name=words[1]) as context:
        command.make_parser(context).parse_args(list(words[2:]))


def test_check_command_detects_an_invalid_option():
    with pytest.raises(click.NoSuchOption):
        check_command(["mae-convert", "inspect", "mae.pth", "--no-such-option"])


def test_the_action_takes_the_inputs_of_the_guide():
    (block,) = (b for b in documentation.blocks(PAGES["docs/guide/ci.md"]) if b.language == "yaml")
    step = yaml.safe_load(block.code)["jobs"]["parity"]["steps"][-1]
    action = step["uses"].partition("/.github/")[2].partition("@")[0]
    inputs = yaml.safe_load((ROOT / ".github" / action / "action.yml").read_text())
    assert step["with"].keys() <= inputs["inputs"].keys()


def test_the_plans_of_sweeps_have_fields_that_exist():
    used = set()
    for block in documentation.blocks(PAGES["docs/sweeps.md"]):
        if block.language == "yaml":
            plan = yaml.safe_load(block.code)
            used |= set().union(plan["defaults"], *plan["jobs"])
        if block.language == "csv":
            used |= set(next(csv.reader(block.code.splitlines())))
    assert {"source", "to", "target"} <= used
    assert used <= sweep_fields.FIELDS.keys()


def test_the_site_loads_nothing_from_other_hosts():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert settings["theme"]["font"] is False
    names = [*settings["extra_css"], *settings.get("extra_javascript", ())]
    assert all((documentation.DOCS / name).is_file() for name in names)
    assert not any("](http" in line and "![" in line for line in all_lines())


def test_the_paths_that_pages_name_exist():
    pattern = r"`((?:tests|scripts|docs|mae_convert|reference_models)/[\w./*-]+)`"
    named = {path for line in all_lines() for path in re.findall(pattern, line)}
    missing = {path for path in named if not any(ROOT.glob(path))}
    assert len(named) > 30
    assert missing == {"mae_convert/families/mae/layouts/acme.py"}  # of the example of a new layout


def all_lines():
    return (line for path in PAGES.values() for line in path.read_text("utf-8").splitlines())


def test_every_class_that_the_migration_page_names_exists():
    text = PAGES["docs/migration.md"].read_text(encoding="utf-8")
    named = set(re.findall(r"`(TFViT\w+|ViT\w+|\w+ImageProcessor)`", text))
    assert len(named) > 8
    absent = set(mae_convert.models.ABSENT)  # named with what to use instead
    assert named <= {*mae_convert.models.__all__, *absent}
