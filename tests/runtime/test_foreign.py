"""External code as a runner: the user's own, and substitutes for the authors' code."""

import json
import sys
import textwrap
from pathlib import Path

import pytest
from mutation.models import write_model

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import MaeConvertError, MissingRequirementError
from mae_convert.runtime.foreign import ForeignCode, layout_in, parse_foreign
from mae_convert.runtime.runner_skeleton import SKELETON
from mae_convert.runtime.running import Run, run_together
from mae_convert.runtime.sides import Side, require_sides, with_foreign
from mae_convert.verify.verification import (
    Options,
    common_request,
    parse_options,
    run_verification,
)

pytestmark = pytest.mark.usefixtures("forked_children")

TORCH = Side("torch")

# An encoder of another project: one file, with other names of modules and parameters, that draws
# its mask itself.
OWN_MODEL = """
import torch
from torch import nn

LAYOUT = "facebook"
MASK = "torch.rand"
OUTPUTS = ("last_hidden_state", "mask")
ACTIVATIONS = {
    "encoder.embedding": "trunk.0:input",
    "encoder.blocks.{}.{q,k,v}": "trunk.{}.project",
    "encoder.blocks.{}.output": "trunk.{}",
}
NAMES = {"blocks.": "trunk.", ".norm1.": ".first.", ".norm2.": ".second.",
         ".attn.qkv.": ".project.", ".attn.proj.": ".out.", ".mlp.fc1.": ".up.",
         ".mlp.fc2.": ".down."}


class Layer(nn.Module):
    def __init__(self, width, hidden, heads, eps):
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        n, t, d = x.shape
        q, k, v = self.project(self.first(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, t, d))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class Encoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, patch = config["hidden_size"], config["patch_size"]
        self.kept = config["num_kept"]
        self.patches = nn.Conv2d(config["num_channels"], width, patch, patch)
        count = (config["image_size"] // patch) ** 2
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.zeros(1, 1 + count, width))
        self.trunk = nn.ModuleList(
            Layer(width, config["intermediate_size"], config["num_attention_heads"], EPS)
            for _ in range(config["num_hidden_layers"])
        )
        self.last = nn.LayerNorm(width, EPS)

    def forward(self, images):
        x = self.patches(images).flatten(2).mT + self.places[:, 1:]
        order = torch.rand(x.shape[:2], device=x.device).argsort(1)
        x = x.gather(1, order[:, : self.kept, None].expand(-1, -1, x.shape[2]))
        x = torch.cat([(self.token + self.places[:, :1]).expand(len(x), -1, -1), x], 1)
        for layer in self.trunk:
            x = layer(x)
        return self.last(x), (order.argsort(1) >= self.kept)


EPS = 1e-6


def build(config):
    assert config["task"] == "encoder"
    return Encoder(config)


def load_state(model, state):
    renamed = {"cls_token": "token", "pos_embed": "places", "norm.weight": "last.weight",
               "norm.bias": "last.bias", "patch_embed.proj.weight": "patches.weight",
               "patch_embed.proj.bias": "patches.bias"}
    for name in [n for n in state if n.startswith("blocks.")]:
        new = name
        for old, own in NAMES.items():
            new = new.replace(old, own)
        renamed[name] = new
    model.load_state_dict({renamed[n]: tensor for n, tensor in state.items()}, strict=True)
"""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_model("encoder", tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def own(tmp_path):
    """Return a function that writes the user's code with some text replaced."""

    def own(old="", new=""):
        path = tmp_path / "own.py"
        path.write_text(OWN_MODEL.replace(old, new) if old else OWN_MODEL)
        return f"{path}:build"

    return own


def verified(a, b, against, *, dtypes=("float64",)):
    options = parse_options((against,), dtypes=dtypes)
    return run_verification(a, b, TORCH, TORCH, options).verdict


def run_alone(checkpoint, against):
    """Run the code without the other runs of a verification."""
    (runner,) = parse_options((against,)).against
    options = Options(dtypes=("float64", "float32"))
    inputs, request = common_request(checkpoint, options, unmasked=False)
    run_together([Run(checkpoint, runner, request)], inputs)


def test_external_model_is_verified_like_a_reference_model(encoder, own):
    verdict = verified(encoder, encoder, own(), dtypes=("float64", "float32"))
    assert verdict.passed, verdict.failed()
    assert verdict.witnesses[2]["foreign"] == "own.py:build"
    names = {check.name.removeprefix("against own.py:build/") for check in verdict.checks}
    assert {"function/mask", "function/last_hidden_state", "function/encoder.blocks.2.k",
            "float32/B/encoder.blocks.1.output"} <= names  # fmt: skip
    assert "function/encoder.blocks.1.mlp" in names  # of A and B, not of the code
    assert "against own.py:build/function/encoder.blocks.1.mlp" not in {
        check.name for check in verdict.checks
    }


def test_a_model_that_computes_something_else_fails_where_it_does(encoder, own):
    verdict = verified(encoder, encoder, own("EPS = 1e-6", "EPS = 1e-5"))
    failed = [check.name for check in verdict.failed()]
    assert failed[0] == "against own.py:build/function/encoder.blocks.0.q"
    assert "against own.py:build/function/mask" not in failed


def test_checkpoint_is_loaded_with_the_tensor_names_of_the_code(encoder, own, tmp_path):
    """B is converted to these names unless A has them; without LAYOUT, B's own names are used."""
    execute(plan_conversion(encoder, tmp_path / "pt", "transformers"))
    converted = open_checkpoint(tmp_path / "pt")
    verdict = verified(encoder, converted, own())
    assert verdict.passed
    assert verdict.witnesses[2]["checkpoint"]["name"] == str(encoder.path)  # A has the names
    run_alone(converted, own())
    as_stored = own('LAYOUT = "facebook"', "LAYOUT = None")
    with pytest.raises(MaeConvertError, match=r"own.py:build failed at line \d+ of .*KeyError"):
        run_alone(converted, as_stored)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("return Encoder(config)", "return 3", "returns int and not a torch.nn.Module"),
        ('"trunk.0:input"', '"stem"', "names the module stem"),
        ("def load_state", "def other", "Missing key.*write a function load_state"),
        ("import torch\n", "import no_such_package\n", "no_such_package"),
        ('("last_hidden_state", "mask")', '("hidden",)', "OUTPUTS contains 'hidden'"),
        (
            '("last_hidden_state", "mask")',
            '("mask",)',
            "returns 2 values, but the length of OUTPUTS is 1",
        ),
        (
            '"encoder.blocks.{}.output"',
            '"layers.{}"',
            "'layers.{}', which is not the name of an activation",
        ),
        ("torch.rand(x.shape[:2]", "torch.rand((2, 3)", r"of shape \(2, 3\)"),
        ('MASK = "torch.rand"', 'MASK = "numpy"', "MASK is 'numpy'"),
        (
            "torch.rand(x.shape[:2]",
            "torch.randn(x.shape[:2]",
            "mask differs between the runs of own.py:build in float64 and float32",
        ),
        ("ACTIVATIONS = {", "ACTIVATIONS = 3, {", "ACTIVATIONS is not a dictionary of strings"),
        ('("last_hidden_state", "mask")', '"mask"', "OUTPUTS is not a tuple of names"),
        ('LAYOUT = "facebook"', 'LAYOUT = "nonsense"', "unknown layout 'nonsense'.*change LAYOUT"),
        ("import torch\n", "import sys; sys.exit(0)\n", "ended without a result; remove"),
        ("import torch\n", "import sys; sys.exit(3)\n", "ended without a result; remove"),
        ("def build", "def make", "contains no function or class build"),
    ],
)
def test_error_in_the_external_code_is_reported_in_one_sentence(encoder, own, old, new, words):
    with pytest.raises(MaeConvertError, match=words) as raised:
        run_alone(encoder, own(old, new))
    assert "own.py:build" in str(raised.value)
    assert raised.value.exit_status == 2


def test_unknown_layout_of_external_code_is_reported_with_its_file(encoder, own):
    with pytest.raises(
        MaeConvertError, match=r"unknown layout 'facebok'.*change LAYOUT in the fil"
    ):
        verified(encoder, encoder, own('LAYOUT = "facebook"', 'LAYOUT = "facebok"'))


def test_interpreter_without_the_packages_of_every_run_is_missing(own, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho '[\"numpy\"]'\n")
    python.chmod(0o755)
    with pytest.raises(MissingRequirementError, match=r"not installed in .*/python: numpy; "):
        require_sides(with_foreign(Side(own(), python=str(python))))


def test_code_runs_a_side_itself(encoder, own, tmp_path):
    """Its results are B's; activations that its map lacks are reported as not compared."""
    options = parse_options((), dtypes=("float64", "float32"))
    done = run_verification(encoder, encoder, TORCH, Side(own()), options)
    assert done.verdict.passed, done.verdict.failed()
    assert done.verdict.witnesses[1]["foreign"] == "own.py:build"
    names = {check.name for check in done.verdict.checks}
    assert {"function/last_hidden_state", "function/encoder.blocks.2.k", "function/mask",
            "float32/B/encoder.blocks.1.output"} <= names  # fmt: skip
    assert any(text.endswith("which only A has") for text in done.verdict.not_compared)
    other = own("EPS = 1e-6", "EPS = 1e-5")
    verdict = run_verification(encoder, encoder, Side(other), TORCH, parse_options(())).verdict
    assert not verdict.passed
    assert verdict.first_divergence == "encoder.blocks.0.q"
    assert not (tmp_path / "__pycache__").exists()  # would be stale if the file is edited again


@pytest.mark.parametrize(
    ("side", "options", "words"),
    [
        ({}, {"gradients": True}, r"gradients is not supported for own.py:build.*leave gradients="),
        ({}, {"isolate": True}, r"is not supported for own.py:build, .*leave isolate="),
        ({"mode": "compiled"}, {}, "own.py:build cannot be run in the mode compiled"),
        ({"framework": "missing.py:build"}, {}, "missing.py is not a file; check the path"),
        ({"framework": "nonsense"}, {}, "is neither a framework nor code"),
    ],
)
def test_unsupported_options_of_external_code_are_refused_before_anything_runs(
    encoder, own, side, options, words
):
    b = Side(**{"framework": own(), **side})
    with pytest.raises(MaeConvertError, match=words):
        run_verification(encoder, encoder, TORCH, b, parse_options((), **options))


def test_side_that_returns_only_its_mask_is_refused(encoder, own):
    code = own("return self.last(x), (order.argsort(1) >= self.kept)",
               "return None, (order.argsort(1) >= self.kept)")  # fmt: skip
    options = parse_options((), dtypes=("float64",))
    with pytest.raises(
        MaeConvertError, match="does not return last_hidden_state, which the comparison requires"
    ):
        run_verification(encoder, encoder, TORCH, Side(code), options)


def test_code_is_run_only_where_the_option_names_it(encoder, tmp_path, command):
    path, marker = tmp_path / "own.py", tmp_path / "ran"
    path.write_text(f"open({str(marker)!r}, 'w')\nLAYOUT = 'timm'\ndef build(config): ...\n")
    assert layout_in(path) == "timm"
    assert parse_foreign(f"{path}:build") == ForeignCode("file", str(path), "build", "timm")
    pair = [encoder.path, encoder.path, "--framework-a", "torch", "--framework-b", "torch"]
    assert command("verify", *pair, cwd=tmp_path).status == 0
    assert not marker.exists()
    assert command("verify", *pair, "--against", f"{path}:build").status == 2
    assert marker.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("missing.py:build", "missing.py is not a file; check the path"),
        ("original=missing", "is not a directory"),
        ("no_such_package.module:build", "no Python module no_such_package.module"),
        (
            "nonsense",
            "neither a framework nor code .*; choose one of torch, .* code as PATH.py:FACTORY",
        ),
        ("bad.py:build", "is not Python code"),
        ("name.py:build", "LAYOUT is not the name of a layout"),
    ],
)
def test_missing_code_or_function_is_reported_before_anything_runs(
    tmp_path, monkeypatch, text, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text("def build(:")
    (tmp_path / "name.py").write_text("LAYOUT = max(1, 2)\n")
    with pytest.raises(MaeConvertError, match=words):
        parse_options((text,))


def test_skeleton_is_valid_python_with_instructions(encoder, tmp_path, command):
    path = tmp_path / "new.py"
    assert command("runner", "new", path).status == 0
    assert path.read_text() == SKELETON
    compile(SKELETON, "new.py", "exec")
    assert command("runner", "new", path).status == 2
    with pytest.raises(MaeConvertError, match="NotImplementedError: return your model"):
        run_alone(encoder, f"{path}:build")


KERAS_CODE = """
from reference_models.keras import TFViTMAEModel

ACTIVATIONS = {"encoder.blocks.{}.output": "vit/encoder/layer_._{}"}


def build(config):
    fields = {n: v for n, v in config.items() if n not in ("task", "num_kept", "dtype")}
    return TFViTMAEModel(fields, dtype=config["dtype"])


def load_state(model, state):
    short = {name.split("/", 2)[-1].removesuffix(":0"): array for name, array in state.items()}
    for variable in model.weights:
        variable.assign(short.pop(variable.path.removeprefix(f"{model.name}/")))
    assert not short


def forward(model, pixel_values, noise):
    outputs = model(pixel_values, noise=noise)
    return {"last_hidden_state": outputs.last_hidden_state, "mask": outputs.mask}
"""


def test_external_keras_model_is_run(encoder, tmp_path):
    (tmp_path / "keras_code.py").write_text(KERAS_CODE)
    execute(plan_conversion(encoder, tmp_path / "tf", "transformers-tf"))
    target = open_checkpoint(tmp_path / "tf")
    python = Path(sys.executable).with_name("python3")  # not forked from a process with PyTorch
    verdict = verified(encoder, target, f"{tmp_path}/keras_code.py:build={python}")
    names = {check.name for check in verdict.checks}
    assert verdict.passed, verdict.failed()
    assert "against keras_code.py:build/function/encoder.blocks.2.output" in names
    assert "keras" in verdict.witnesses[2]["versions"]


# Substitutes for timm and for a clone of the authors' repository. They share with the real ones the
# names, the arguments, and features that current versions of NumPy and timm have removed.
TIMM = """
from torch import nn
from reference_models.configuration import BlockConfig
from reference_models.pytorch.blocks import Block as Ours


class Block(Ours):
    def __init__(self, dim, num_heads, mlp_ratio=4.0, qkv_bias=False, norm_layer=nn.LayerNorm):
        eps = norm_layer(1).eps
        super().__init__(BlockConfig(width=dim, heads=num_heads, hidden=int(dim * mlp_ratio),
                                     eps=eps, act="gelu", qkv_bias=qkv_bias))
"""
CLONE = """
import numpy as np
import torch
from torch import nn
from timm.models.layers import to_2tuple
from timm.models.vision_transformer import Block
from util.pos_embed import NAME
from reference_models.configuration import ViTMAEConfig
from reference_models.pytorch import ViTMAEForPreTraining


class MaskedAutoencoderViT(ViTMAEForPreTraining):
    def __init__(self, img_size=224, patch_size=16, in_chans=3, embed_dim=1024, depth=24,
                 num_heads=16, decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16,
                 mlp_ratio=4.0, norm_layer=nn.LayerNorm, norm_pix_loss=False):
        hidden = [int(width * mlp_ratio) for width in (embed_dim, decoder_embed_dim)]
        super().__init__(ViTMAEConfig(
            image_size=to_2tuple(img_size), patch_size=patch_size, num_channels=in_chans,
            hidden_size=embed_dim, num_hidden_layers=depth, num_attention_heads=num_heads,
            intermediate_size=hidden[0], decoder_hidden_size=decoder_embed_dim,
            decoder_num_hidden_layers=decoder_depth, decoder_num_attention_heads=decoder_num_heads,
            decoder_intermediate_size=hidden[1], layer_norm_eps=norm_layer(1).eps,
            mask_ratio=0.75,
        ))
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_ratio, qkv_bias=True, qk_scale=None,
                  norm_layer=norm_layer) for _ in range(depth))
        self.norm_pix_loss = norm_pix_loss
        assert isinstance(0.5, np.float)

    def forward_encoder(self, images, mask_ratio):
        count = self.config.num_patches
        noise = torch.rand(len(images), count, device=images.device)
        return self.encode_visible(images, noise, None)

    def forward_decoder(self, latent, ids_restore):
        return self.decode(latent, ids_restore)

    def forward_loss(self, images, prediction, mask):
        return super().forward_loss(images, prediction, mask, norm_pix_loss=self.norm_pix_loss)
"""


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A local clone, and a version of timm that has moved modules."""
    for path, text in {
        "libraries/timm/__init__.py": "",
        "libraries/timm/layers.py": "def to_2tuple(x):\n    return (x, x)\n",
        "libraries/timm/models/__init__.py": "",
        "libraries/timm/models/_registry.py": "",
        "libraries/timm/models/vision_transformer.py": TIMM,
        "mae/util/pos_embed.py": "NAME = 'a module of the clone itself'\n",
        "mae/models_mae.py": CLONE,
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(textwrap.dedent(text))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "libraries"))
    return tmp_path / "mae"


def test_original_code_runs_as_cloned(clone, case):
    from mae_convert.families.checkpoint_options import Flags

    flags = Flags(num_attention_heads=4, decoder_num_attention_heads=3)
    source = open_checkpoint(case("pretrain_tiny").checkpoint, flags)
    before = {path: path.read_bytes() for path in clone.rglob("*.py")}
    verdict = verified(source, source, f"original={clone}")
    assert verdict.passed, verdict.failed()
    names = {check.name.removeprefix("against original/") for check in verdict.checks
             if check.name.startswith("against original/")}  # fmt: skip
    assert {"function/mask", "function/ids_restore", "function/logits", "function/loss_norm_pix",
            "function/reconstruction", "function/encoder.blocks.2.v", "function/decoder.norm",
            "function/decoder.embedding"} <= names  # fmt: skip
    assert before == {path: path.read_bytes() for path in clone.rglob("*.py")}


def test_a_directory_that_is_not_such_a_clone_is_refused(clone, encoder):
    with pytest.raises(MaeConvertError, match=r"contains neither models_mae\.py"):
        run_alone(encoder, f"original={clone / 'util'}")


def test_a_trace_and_a_side_of_the_command_line_are_computed_by_code(
    encoder, own, tmp_path, command
):
    trace = tmp_path / "b.safetensors"
    done = command("trace", encoder.path, trace, "--taps", "--framework", own())
    assert done.status == 0, done.err
    pair = [encoder.path, encoder.path, "--framework-a", "torch"]
    done = command("verify", *pair, "--framework-b", own(), "--dtype", "float64")
    assert done.status == 0, done.err
    assert "run by own.py:build, external code" in " ".join(done.out.split())
    assert command("trace", encoder.path, tmp_path / "a.safetensors", "--taps").status == 0
    assert command("compare", tmp_path / "a.safetensors", trace).status == 0
    done = command("verify", *pair, "--framework-b", "tensorfow")
    assert done.status == 2
    assert "'tensorfow' is not one of 'torch'" in done.err
    assert "original=DIRECTORY" in done.err


def test_reports_name_the_external_code(encoder, own, tmp_path, command):
    result = command(
        "verify", encoder.path, encoder.path, "--framework-a", "torch", "--framework-b", "torch",
        "--against", own(), "--report", tmp_path / "r.html", "--report", tmp_path / "r.md",
        "--report", tmp_path / "r.json",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert "run by own.py:build, external code, with torch" in result.out
    assert "own.py:build, external code" in (tmp_path / "r.md").read_text()
    assert "own.py:build, external code" in (tmp_path / "r.html").read_text()
    witnesses = json.loads((tmp_path / "r.json").read_text())["witnesses"]
    assert [w["framework"] for w in witnesses] == ["torch", "torch", "foreign"]
