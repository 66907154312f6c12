"""scripts/pretrain.py: the recipe, resuming, many processes, and the checkpoints that it writes."""

import argparse
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from arrays import distance
from paths import ROOT
from PIL import Image

from mae_convert.checkpoint.open import open_checkpoint
from reference_models.pytorch import ViTMAEConfig, ViTMAEForPreTraining

GOLDEN = ROOT / "tests" / "data" / "golden"
DEMO = ROOT / "mae_convert" / "data" / "demo"

sys.path.insert(0, str(ROOT / "scripts"))
import evaluate_reconstruction  # noqa: E402
import pretrain  # noqa: E402

TINY = (
    *("--input-size", "32", "--patch-size", "8", "--hidden-size", "32"),
    *("--num-hidden-layers", "2", "--num-attention-heads", "4", "--decoder-hidden-size", "24"),
    *("--decoder-num-hidden-layers", "1", "--decoder-num-attention-heads", "3"),
    *("--batch-size", "4", "--repeats", "4", "--epochs", "4", "--warmup-epochs", "1"),
    *("--lr", "3e-3", "--device", "cpu"),
)


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """Three images of smooth colours, of different sizes, one of them grey."""
    folder = tmp_path_factory.mktemp("image_folder")
    (folder / "more").mkdir()
    for number, (width, height) in enumerate([(60, 40), (48, 70), (200, 36)]):
        x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
        channels = [np.sin(3 * x + number), np.cos(2 * y - number), x * y]
        colours = (255 * (0.5 + 0.5 * np.stack(channels, axis=-1))).astype(np.uint8)
        image = Image.fromarray(colours).convert("L" if number == 2 else "RGB")
        image.save(folder / ("more" if number else ".") / f"{number}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


def run(image_folder, output, *flags):
    pretrain.main([str(image_folder), str(output), *TINY, *flags])
    return pretrain.read_checkpoint(output / "checkpoint.pth")


@pytest.fixture(scope="module")
def trained(image_folder, tmp_path_factory):
    """The output folder of an uninterrupted run."""
    output = tmp_path_factory.mktemp("trained")
    run(image_folder, output)
    return output


def assert_same(a, b):
    """Compare nested checkpoints; tensors bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


def assert_close(a, b):
    """Compare weights that were computed with sums in another order.

    The bias of the keys is not compared: softmax cancels it, so its gradient is only a rounding
    error, from which Adam makes steps of full length.
    """
    assert list(a) == list(b)
    for name in a:
        one, other = a[name], b[name]
        if name.endswith("qkv.bias"):
            (q, _, v), (other_q, _, other_v) = one.chunk(3), other.chunk(3)
            one, other = torch.cat([q, v]), torch.cat([other_q, other_v])
        assert distance(one, other) < 1e-3, name


# ------------------------------------------------------------------------------ what is written


def test_loss_falls_and_is_logged(trained):
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    losses = [line["train_loss"] for line in lines]
    assert losses[-1] < 0.7 * losses[0]


def test_checkpoint_has_the_format_of_the_original(trained):
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load(trained / "checkpoint.pth", weights_only=True)
    assert set(checkpoint) == {"model", "optimizer", "epoch", "scaler", "args", "config"}
    assert checkpoint["epoch"] == 3
    args = checkpoint["args"]
    assert isinstance(args, argparse.Namespace)
    assert (args.model, args.input_size, args.mask_ratio, args.norm_pix_loss) == (
        "custom",
        32,
        0.75,
        False,
    )
    assert (args.num_attention_heads, args.decoder_num_attention_heads) == (4, 3)
    original = torch.load(
        GOLDEN / "pretrain_tiny" / "checkpoint.pth", weights_only=True, map_location="cpu"
    )["model"]
    unnumbered = {".".join(p for p in name.split(".") if not p.isdigit()) for name in original}
    assert {
        ".".join(p for p in name.split(".") if not p.isdigit()) for name in checkpoint["model"]
    } == unnumbered


def test_weights_alone_build_the_model(trained):
    content = torch.load(trained / "weights.pth", weights_only=True)
    assert list(content) == ["model", "config"]
    assert content["config"]["image_mean"] == [0.485, 0.456, 0.406]
    model = ViTMAEForPreTraining(ViTMAEConfig.from_dict(content["config"]))
    model.load_state_dict(content["model"], strict=True)
    assert_same(
        dict(content["model"]), dict(pretrain.read_checkpoint(trained / "checkpoint.pth")["model"])
    )


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "checkpoint.pth"
    pretrain.save_atomically({"epoch": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        pretrain.save_atomically({"epoch": 2, "unwritable": lambda: None}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pth"]


# --------------------------------------------------------------- interrupted, continued, further


def test_resumed_equals_uninterrupted(image_folder, trained, tmp_path, monkeypatch):
    steps = pretrain.compute_loss
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 8:  # in the middle of the third epoch of three steps
            raise KeyboardInterrupt
        return steps(*arguments)

    monkeypatch.setattr(pretrain, "compute_loss", interrupted)
    with pytest.raises(SystemExit) as stopped:
        run(image_folder, tmp_path)
    assert stopped.value.code == 130
    assert pretrain.read_checkpoint(tmp_path / "checkpoint.pth")["epoch"] == 1
    monkeypatch.undo()

    resumed = run(image_folder, tmp_path, "--resume")
    whole = pretrain.read_checkpoint(trained / "checkpoint.pth")
    for part in ("model", "optimizer", "epoch", "scaler", "config"):
        assert_same(resumed[part], whole[part])


def test_loading_in_other_processes_or_from_memory_changes_nothing(image_folder, trained, tmp_path):
    whole = pretrain.read_checkpoint(trained / "checkpoint.pth")["model"]
    other = run(image_folder, tmp_path, "--num-workers", "2", "--in-memory")["model"]
    assert_same(dict(other), dict(whole))


def test_another_seed_changes_the_result(image_folder, trained, tmp_path):
    whole = pretrain.read_checkpoint(trained / "checkpoint.pth")["model"]
    other = run(image_folder, tmp_path, "--seed", "1")["model"]
    assert not torch.equal(other["decoder_pred.weight"], whole["decoder_pred.weight"])


def test_accumulated_batches_are_equivalent_to_one_large_batch(image_folder, tmp_path):
    large = run(image_folder, tmp_path / "large")
    summed = run(image_folder, tmp_path / "summed", "--batch-size", "2", "--accum-iter", "2")
    assert_close(summed["model"], large["model"])


@pytest.mark.slow
def test_two_processes_are_equivalent_to_one_large_batch(image_folder, trained, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(ROOT / "scripts" / "pretrain.py")]
    command += [str(image_folder), str(tmp_path), *TINY, "--batch-size", "1", "--accum-iter", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    whole = pretrain.read_checkpoint(trained / "checkpoint.pth")["model"]
    shared = pretrain.read_checkpoint(tmp_path / "checkpoint.pth")["model"]
    assert_close(shared, whole)


def test_further_training_starts_from_the_weights(image_folder, trained, tmp_path):
    # With a learning rate of zero the result is the initial model. Sizes come from the file.
    pretrain.main(
        [
            *(str(image_folder), str(tmp_path), "--init-from", str(trained / "weights.pth")),
            *("--lr", "0", "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "2"),
        ]
    )
    start = pretrain.read_checkpoint(trained / "checkpoint.pth")
    further = pretrain.read_checkpoint(tmp_path / "checkpoint.pth")
    assert_same(dict(further["model"]), dict(start["model"]))
    assert further["config"] == start["config"]


def test_new_decoder_is_created_for_an_encoder(trained, capsys):
    content = pretrain.read_checkpoint(trained / "weights.pth")
    model = ViTMAEForPreTraining(ViTMAEConfig.from_dict(content["config"]))
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    encoder = {
        n: v for n, v in content["model"].items() if "decoder" not in n and n != "mask_token"
    }
    pretrain.load_weights(model, encoder, "encoder.pth")
    loaded = model.state_dict()
    assert torch.equal(loaded["blocks.1.attn.qkv.weight"], encoder["blocks.1.attn.qkv.weight"])
    assert torch.equal(loaded["decoder_pred.weight"], fresh["decoder_pred.weight"])
    assert "decoder starts from random weights" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains_float32_weights(image_folder, tmp_path, precision):
    checkpoint = run(image_folder, tmp_path, "--precision", precision)
    assert {value.dtype for value in checkpoint["model"].values()} == {torch.float32}
    assert bool(checkpoint["scaler"]) == (precision == "float16")
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train_loss"] for line in lines]
    assert losses[-1] < 0.8 * losses[0]


# ---------------------------------------------------------------------------------- the recipe


def test_only_matrices_decay():
    config = ViTMAEConfig.from_dict(
        json.loads((GOLDEN / "transformers_tf_pretrain_tiny" / "config.json").read_text())
    )
    model = ViTMAEForPreTraining(config)
    optimizer = pretrain.make_optimizer(model, argparse.Namespace(weight_decay=0.05))
    names = {parameter: name for name, parameter in model.named_parameters()}
    spared, decayed = ({names[p] for p in g["params"]} for g in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.05]
    assert [group["betas"] for group in optimizer.param_groups] == [(0.9, 0.95)] * 2
    assert spared | decayed == set(names.values()) - {"pos_embed", "decoder_pos_embed"}
    assert all(name.endswith(".weight") and "norm" not in name for name in decayed)
    assert {"cls_token", "mask_token", "norm.weight", "patch_embed.proj.bias"} <= spared


def test_learning_rate_warms_up_and_decays():
    args = argparse.Namespace(lr=2.0, min_lr=0.5, warmup_epochs=4, epochs=12)
    rates = [pretrain.learning_rate(epoch, args) for epoch in (0, 1, 4, 8, 12)]
    assert rates == pytest.approx([0, 0.5, 2.0, 1.25, 0.5])


def test_learning_rate_scales_with_the_effective_batch_size():
    args = pretrain.parse_arguments(["image_folder", "output", "--blr", "1e-3"])
    complete = pretrain.complete_arguments(args, ViTMAEConfig(), 4096)
    assert complete.lr == pytest.approx(16e-3)
    assert complete.model == "mae_vit_base_patch16"
    assert args.model is None  # the arguments themselves are unchanged


def test_presets_follow_the_paper():
    for name, heads, layers in (("base", 12, 12), ("large", 16, 24), ("huge", 16, 32)):
        keys = json.loads((GOLDEN / "keys" / f"facebook_mae_visualize_vit_{name}.json").read_text())
        (preset,) = (p for model, p in pretrain.PRESETS.items() if name in model)
        assert (preset.num_attention_heads, preset.num_hidden_layers) == (heads, layers)
        with torch.device("meta"):
            state = ViTMAEForPreTraining(preset).state_dict()
        assert {n: list(v.shape) for n, v in state.items()} == {n: list(s) for n, s in keys.items()}


def test_crops_keep_to_scale_and_shape():
    rng = np.random.default_rng(0)
    areas, shapes = [], []
    for _ in range(2000):
        left, upper, right, lower = pretrain.random_crop_box(300, 200, 0.2, rng)
        assert 0 <= left < right <= 300 + 1e-9
        assert 0 <= upper < lower <= 200 + 1e-9
        areas.append((right - left) * (lower - upper) / 60000)
        shapes.append((right - left) / (lower - upper))
    assert 0.2 <= min(areas) < 0.25
    assert 0.75 <= min(shapes) < 0.8
    assert 1.25 < max(shapes) <= 4 / 3 + 1e-9
    # No box fits into a long strip: the middle of it is used, in an allowed shape.
    assert pretrain.random_crop_box(300, 30, 1.0, rng) == pytest.approx((130, 0, 170, 30))


def test_epoch_covers_every_index_once():
    args = argparse.Namespace(seed=0, accum_iter=2, batch_size=3, repeats=5)
    crops = pretrain.RandomCrops([None] * 5, ViTMAEConfig(), args, epoch=1)
    device = torch.device("cpu")
    batches = [pretrain.epoch_batches(crops, pretrain.Process(r, 2, device)) for r in (0, 1)]
    indices = [index for each in batches for batch in each for index in batch]
    # 24 of 25 indices fill steps of 2 x 2 x 3.
    assert len(indices) == len(set(indices)) == 24
    later = pretrain.RandomCrops([None] * 5, ViTMAEConfig(), args, epoch=2)
    assert pretrain.epoch_batches(later, pretrain.Process(0, 2, device)) != batches[0]


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch-size", "64"), "do not fill one step"),
        (("--num-attention-heads", "5"), "must divide hidden_size"),
        (("--init-from", "nowhere.pth"), "can't be read as a checkpoint"),
        ((), "continue it with --resume"),
        (("--resume", "--hidden-size", "40"), "contains another model"),
        (("--lr", "1e30", "--resume", "--epochs", "6"), "the loss is"),
    ],
)
def test_invalid_calls_are_refused_in_one_sentence(image_folder, trained, tmp_path, flags, message):
    output = tmp_path / "output"
    output.mkdir()
    (output / "checkpoint.pth").write_bytes((trained / "checkpoint.pth").read_bytes())
    with pytest.raises(SystemExit) as stopped:
        run(image_folder, output, *flags)
    assert message in stopped.value.code


def test_folder_without_images_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no images under"):
        run(tmp_path, tmp_path / "output")


# ------------------------------------------------------------------------ the embedded checkpoint


def test_embedded_checkpoint_is_small_and_plain():
    path = DEMO / "checkpoint.pth"
    assert path.stat().st_size <= 8 * 2**20
    content = torch.load(path, weights_only=True)
    assert list(content) == ["model", "config"]
    assert {value.dtype for value in content["model"].values()} == {torch.float32}
    json.dumps(content["config"])


@pytest.mark.parametrize("name", ["chelsea", "coffee", "aitzgorri"])
def test_embedded_model_reconstructs_unseen_images(name):
    model = evaluate_reconstruction.load_model(str(DEMO / "checkpoint.pth"))
    image = pretrain.load_image(DEMO / f"{name}.jpg")
    pixels = torch.stack(list(evaluate_reconstruction.squares(image, model.config)))
    noise = evaluate_reconstruction.make_noise(len(pixels), model.config, seed=1)
    errors = evaluate_reconstruction.evaluate(model, pixels, noise, (110, 100, 85))
    others = [error for method, (error, _) in errors.items() if method != "model"]
    assert errors["model"][0] < 0.9 * min(others)


def test_checkpoints_can_be_kept_for_a_timeline(image_folder, tmp_path):
    run(image_folder, tmp_path, "--keep-every", "2", "--save-every", "4")
    names = sorted(path.name for path in tmp_path.glob("checkpoint-*.pth"))
    assert names == ["checkpoint-2.pth", "checkpoint-4.pth"]
    remaining = pretrain.read_checkpoint(tmp_path / "checkpoint-4.pth")
    assert remaining["epoch"] == 3
    assert_same(remaining["model"], pretrain.read_checkpoint(tmp_path / "checkpoint.pth")["model"])
    opened = open_checkpoint(tmp_path / "checkpoint-2.pth")
    assert opened.task == "pretrain"
    assert opened.configuration.model.num_attention_heads == 4
