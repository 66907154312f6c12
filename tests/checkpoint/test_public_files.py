"""Files as written by public projects: a complete model among other tensors is read.

They are made of the golden cases by giving the tensors the names and neighbours that the projects
give them. What is read must be the stored numbers, bit for bit; what is not read must be named.
"""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from mae_convert.checkpoint.diff import diff
from mae_convert.checkpoint.fingerprint import checkpoint_fingerprint, fingerprint_report
from mae_convert.checkpoint.inspect import inspect
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import CheckpointError, ConfigurationError, LayoutError
from mae_convert.families.checkpoint_options import Flags
from mae_convert.runtime.child_files import stage
from mae_convert.runtime.loaders import pytorch_state_dict
from mae_convert.runtime.loading import load_model
from mae_convert.runtime.saving import save_model
from mae_convert.verify.lineage import lineage
from mae_convert.verify.lineage_records import describe_checkpoint

pytestmark = pytest.mark.usefixtures("forked_children")

FLAGS = Flags(num_attention_heads=4, decoder_num_attention_heads=2)
rng = np.random.default_rng(15)


def noise(*shape):
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def weights(case, name):
    return torch.load(case(name).checkpoint, weights_only=False)["model"]


@pytest.fixture(scope="module")
def mae(case):
    return weights(case, "pretrain_tiny")


@pytest.fixture(scope="module")
def classifier(case):
    return weights(case, "finetune_cls_tiny")


@pytest.fixture(scope="module")
def pooled(case):
    return weights(case, "finetune_gap_tiny")


@pytest.fixture(scope="module")
def probe(case):
    return weights(case, "linprobe_tiny")


@pytest.fixture
def opened(tmp_path):
    """Write tensors to a file and open it."""

    def opened(tensors, *, flags=FLAGS, args=None, **options):
        value = {"model": tensors, **({"args": args} if args else {})}
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.pth"
        torch.save(value, path)
        return open_checkpoint(path, flags, **options)

    return opened


def width(state):
    return state["cls_token"].shape[-1]


def decoder_names(state):
    return [name for name in state if name.startswith(("decoder", "mask_token"))]


def encoder_of(state):
    others = (*decoder_names(state), "head", "fc_norm", "bn")
    return {name: t for name, t in state.items() if not name.startswith(tuple(others))}


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def parted(state, encoder, decoder):
    """Return a MAE whose encoder and decoder have prefixes of their own."""
    names = decoder_names(state)
    return {(decoder if n in names else encoder) + n: t for n, t in state.items()}


def renamed(state, *pairs):
    def new(name):
        for old, other in pairs:
            name = name.replace(old, other)
        return name

    return {new(name): tensor for name, tensor in state.items()}


def without_key_bias(state, prefixes=("blocks", "decoder_blocks")):
    result = {}
    for name, tensor in state.items():
        if name.split(".")[0] in prefixes and name.endswith("attn.qkv.bias"):
            q, _, v = tensor.chunk(3)
            result[name.replace("qkv.bias", "q_bias")] = q.clone()
            result[name.replace("qkv.bias", "v_bias")] = v.clone()
        else:
            result[name] = tensor
    return result


def with_zero_key_bias(state):
    result = dict(state)
    for name, tensor in state.items():
        if name.endswith("attn.qkv.bias"):
            q, k, v = tensor.chunk(3)
            result[name] = torch.cat([q, torch.zeros_like(k), v])
    return result


def assert_same_weights(checkpoint, opened_plain):
    """Compare canonical tensors bit for bit: those of the checkpoint with the plain file's."""
    for name, tensor in checkpoint.tensors.items():
        reference = opened_plain.tensors[name].load()
        assert tensor.load().tobytes() == reference.tobytes(), name


BESIDE = {
    "UM-MAE": lambda s: {"vis_mask_token": noise(1, 1, width(s))},
    "SatMAE++": lambda s: {
        "proj_up_conv.weight": noise(12, 3, 1, 1),
        "proj_up_norm.weight": noise(12),
        "up_block.res_block.conv1.weight": noise(12, 12, 3, 3),
    },
    "a pooler": lambda s: {"pooler.dense.weight": noise(width(s), width(s))},
    "an online probe": lambda s: {
        "online_classifier.classification_head.weight": noise(7, width(s)),
        "online_classifier.classification_head.bias": noise(7),
    },
    "MoCo": lambda s: {
        "projector.0.weight": noise(width(s), width(s)),
        "predictor.0.weight": noise(width(s), width(s)),
        "queue": noise(width(s), 8),
        "queue_ptr": torch.zeros(1),
    },
    "part of a momentum encoder": lambda s: {
        f"momentum_encoder.{n}": t for n, t in encoder_of(s).items() if n != "cls_token"
    },
    "a discriminator": lambda s: {"discriminator.main.0.weight": noise(8, 3, 4, 4)},
    "a text tower": lambda s: {
        "text_model.embed.weight": noise(9, width(s)),
        "logit_scale": noise(),
    },
    "one tensor": lambda s: {"anything": noise(3)},
    "a profiler": lambda s: {"blocks.0.attn.total_ops": torch.zeros(1)},
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("kind", ["mae", "classifier"])
def test_additional_tensors_are_dropped_by_name_with_a_reason(request, opened, name, kind):
    state = request.getfixturevalue(kind)
    beside = BESIDE[name](state)
    checkpoint, plain = opened({**state, **beside}), opened(state)
    assert (checkpoint.task, checkpoint.layout.name) == (plain.task, "facebook")
    assert set(checkpoint.dropped) == set(beside)
    assert all(checkpoint.dropped.values())
    assert diff(checkpoint, plain).same
    assert len(diff(checkpoint, plain).not_read) >= 1
    assert fingerprint_report(checkpoint)["not_read"]
    result = lineage(describe_checkpoint(checkpoint), describe_checkpoint(plain))
    assert result.relation == "same weights"
    assert result.rests_on == ("the values of all tensors of A and B that their models use",)
    assert any(sentence.startswith("A's ") for sentence in result.not_compared)
    assert inspect(checkpoint)["dropped"] == dict(checkpoint.dropped)


def test_a_decoder_of_other_shapes_is_dropped_with_the_reason(mae, opened):
    """The problems of video layouts, which have the same names, are not mentioned."""
    checkpoint = opened({**mae, "decoder_pos_embed": noise(1, 3, 8)})
    assert checkpoint.task == "encoder"
    assert "decoder_pos_embed has shape (1, 3, 8)" in checkpoint.dropped["decoder_pos_embed"]
    assert not any("dimensions" in reason for reason in checkpoint.dropped.values())


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool])
def test_weights_that_are_not_floating_point_are_refused(mae, opened, dtype):
    name = "blocks.0.attn.proj.weight"
    with pytest.raises(CheckpointError, match=f"{name} has dtype .*; save the weights as float32"):
        opened({**mae, name: mae[name].to(dtype)})


DECODERS = {
    "other positions": lambda s: {**s, "decoder_pos_embed": noise(1, 5, 16)},
    "one tensor more": lambda s: {**s, "decoder_downsample.weight": noise(24, 24, 2, 2)},
    "layer scale": lambda s: {**s, "decoder_blocks.0.ls1.gamma": noise(24)},
    "one tensor less": lambda s: {n: t for n, t in s.items() if n != "decoder_norm.bias"},
    "cross attention": lambda s: renamed(s, ("decoder_blocks.0.attn", "decoder_blocks.0.cross")),
    "only its mask token": lambda s: {**encoder_of(s), "mask_token": s["mask_token"]},
    "a convolution": lambda s: {**encoder_of(s), "decoder.0.weight": noise(768, width(s), 1, 1)},
    "CrossMAE": lambda s: {**s, "wfm.w": noise(3, 3), "dec_norms.0.weight": noise(width(s))},
}  # fmt: skip


@pytest.mark.parametrize("name", DECODERS)
def test_encoder_is_read_if_the_decoder_is_not_supported(opened, mae, name):
    state = DECODERS[name](mae)
    checkpoint = opened(state, flags=Flags(num_attention_heads=4))
    assert checkpoint.task == "encoder"
    assert set(checkpoint.dropped) == set(state) - set(encoder_of(mae))
    assert_same_weights(checkpoint, opened(mae))


def test_reason_for_an_unsupported_decoder_is_reported_when_it_is_requested(opened, mae, tmp_path):
    checkpoint = opened(DECODERS["other positions"](mae))
    assert "decoder_pos_embed has shape (1, 5, 16)" in checkpoint.dropped["decoder_pred.weight"]
    with pytest.raises(ConfigurationError, match=r"pretrain model: decoder_pos_embed has shape"):
        plan_conversion(checkpoint, tmp_path / "y.pth", "facebook", task="pretrain")
    with pytest.raises(LayoutError, match=r"pretrain model: .*decoder_pos_embed has shape"):
        opened(DECODERS["other positions"](mae), task="pretrain")


def at_root(name, *shape):
    return lambda s: {name: noise(*(width(s) if n is None else n for n in shape))}


NEEDED = {
    r"layer scale \(init_values\)": at_root("blocks.0.ls1.gamma", None),
    "layer scale ": at_root("blocks.1.gamma_1", None),
    "qk_norm": at_root("blocks.0.attn.q_norm.weight", 8),
    "reg_tokens": at_root("reg_token", 1, 4, None),
    "register tokens": at_root("register_tokens", 1, 4, None),
    "distillation token": at_root("dist_token", 1, 1, None),
    "relative position": at_root("blocks.0.attn.relative_position_bias_table", 9, 4),
    "relative position biases": at_root("rel_pos_bias.relative_position_bias_table", 9, 4),
    "pre_norm": at_root("norm_pre.weight", None),
    "scale_attn_norm|additional layer norm": at_root("blocks.0.attn.norm.weight", None),
    "norm after the patch": at_root("patch_embed.norm.weight", None),
    "LoRA": at_root("blocks.0.attn.qkv.lora_A.weight", 4, None),
    "AdaptFormer": at_root("blocks.0.adaptmlp.down_proj.weight", 4, None),
    "prompt": at_root("prompt_embeddings", 1, 4, None),
    "embedding or token": at_root("channel_cls_embed", 1, 3, None),
    "does not have": at_root("blocks.0.mixer.weight", None, None),
    "ViTDet": at_root("blocks.0.attn.rel_pos_h", 9, 8),
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "net.image_encoder."])
@pytest.mark.parametrize("what", NEEDED)
def test_tensors_that_change_the_function_are_refused_by_their_purpose(
    opened, mae, classifier, what, prefix
):
    for state in (mae, classifier, encoder_of(mae)):
        beside = NEEDED[what](state)
        with pytest.raises(LayoutError, match=what.strip()) as error:
            opened(under(prefix, {**state, **beside}))
        assert prefix + next(iter(beside)) in str(error.value)


def test_misspelt_tensor_name_is_reported_with_the_nearest_known_name(opened, mae):
    with pytest.raises(LayoutError, match=r"unexpected: blocks\.0\.mlp\.fc9.*nearest.*fc[12]"):
        opened({**mae, "blocks.0.mlp.fc9.weight": noise(3)})


def test_one_missing_bias_is_not_a_model_without_biases(opened, mae):
    broken = {n: t for n, t in mae.items() if n != "blocks.1.attn.qkv.bias"}
    with pytest.raises(LayoutError, match=r"missing: blocks\.1\.attn\.qkv\.bias"):
        opened(broken)
    broken = {**broken, "queue": noise(3)}
    with pytest.raises(LayoutError):
        opened(broken)


PREFIXES = ["image_encoder.", "model.net.vit_mae.", "a.b.c.d.e.f.", "model._orig_mod.x."]


@pytest.mark.parametrize("beside", [{}, {"text_encoder.a.weight": noise(3, 3), "b": noise(2)}])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_of_a_complete_model_is_removed(opened, mae, prefix, beside):
    checkpoint = opened({**under(prefix, mae), **beside})
    assert checkpoint.prefix.in_words() == prefix.replace("_orig_mod.", "") or "_orig_mod" in prefix
    assert set(checkpoint.dropped) == set(beside)
    assert diff(checkpoint, opened(mae)).same


@pytest.mark.parametrize(("encoder", "decoder"), [
    ("encoder.", "decoder."),  # EasyCV
    ("backbone.", "decoder."),  # solo-learn
    ("backbone.vit.", "decoder."),  # lightly up to 1.5
    ("model.enc.", "model.dec.x."),
])  # fmt: skip
def test_encoder_and_decoder_may_have_prefixes_of_their_own(opened, mae, encoder, decoder):
    beside = {"classifier.weight": noise(10, width(mae)), "classifier.bias": noise(10)}
    checkpoint = opened({**parted(mae, encoder, decoder), **beside})
    assert checkpoint.task == "pretrain"
    assert set(checkpoint.dropped) == set(beside)
    assert not diff(checkpoint, opened(mae)).tensors


def test_decoder_of_solo_learn_uses_the_epsilon_of_solo_learn(opened, mae):
    """The file may contain no settings; a value that the tensor names suggest is an assumption."""
    stored = parted(mae, "backbone.", "decoder.") | {"classifier.weight": noise(10, width(mae))}
    result = opened(stored).configuration
    assert result.model.decoder_layer_norm_eps == 1e-5
    assert result.assumptions["decoder_layer_norm_eps"] == "names"
    assert opened(mae).configuration.model.decoder_layer_norm_eps is None


@pytest.mark.parametrize("form", ["beside", "prefix", "parts", "wrapped", "copy"])
def test_a_child_process_reads_the_stored_file_by_itself(opened, mae, tmp_path, form):
    """The library gets the unchanged file and the names of tensors outside of the model."""
    copy = under("ema.", {name: tensor + 1 for name, tensor in mae.items()})
    state = {
        "beside": {**mae, "queue": noise(3)},
        "prefix": {**under("net.", mae), "norm.weight": noise(7)},  # the name of a model's tensor
        "parts": parted(mae, "encoder.", "decoder."),
        "wrapped": {**under("net._orig_mod.", mae), "queue": noise(3)},
        "copy": {**mae, **copy},
    }[form]
    checkpoint = opened(state, state_key="." if form == "copy" else None)
    staged = stage(checkpoint, "torch", tmp_path)
    assert staged.converted_by is None
    loaded = pytorch_state_dict(staged.weights)
    assert set(loaded) == set(mae)
    assert all(torch.equal(loaded[name], mae[name]) for name in mae)


def test_checkpoint_of_the_lightly_benchmark_is_read(opened, mae, golden):
    """Both naming variants are read, with the online classifier and the backbone's mask token."""
    new = renamed(
        parted(mae, "backbone.vit.", "decoder."),
        ("decoder.decoder_embed", "decoder_embed"), ("decoder.decoder_pred", "prediction_head"),
        ("decoder.decoder_", "decoder."),
    )  # fmt: skip
    old = safetensors.torch.load_file(golden / "lightly_pretrain_tiny" / "model.safetensors")
    for state in (new, old):
        beside = {"online_classifier.head.weight": noise(7, 32)}
        checkpoint = opened({**under("net.", state), **beside})
        assert (checkpoint.layout.name, checkpoint.task) == ("lightly", "pretrain")
        assert beside.keys() <= checkpoint.dropped.keys()


def test_transformers_model_with_prefix_and_pooler_is_read(tmp_path, golden):
    folder = golden / "transformers_tf_encoder_tiny_v4pt"
    config = json.loads((folder / "config.json").read_text())
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    beside = {"pooler.dense.weight": noise(8, 8), "pooler.dense.bias": noise(8)}
    safetensors.torch.save_file({**tensors, **beside}, tmp_path / "model.safetensors")
    config = {**config, "model_type": "vit", "architectures": ["ViTModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.task == "encoder"
    assert set(checkpoint.dropped) == set(beside)
    assert diff(checkpoint, open_checkpoint(folder)).same


def test_one_of_two_complete_models_has_to_be_selected(opened, mae):
    other = {name: tensor + 1 for name, tensor in mae.items()}
    both = {**under("model.", mae), **under("ema_model.", other)}
    with pytest.raises(LayoutError, match='state_key="ema_model" or state_key="model"'):
        opened(both)
    assert diff(opened(both, state_key="model"), opened(mae)).same
    assert diff(opened(both, state_key="ema_model"), opened(other)).same
    chosen = opened(both, state_key="model.ema_model")  # the key in the file, then the prefix
    assert chosen.prefix.in_words() == "ema_model."
    assert set(chosen.dropped) == set(under("model.", mae))


def test_model_without_a_prefix_together_with_its_ema_copy(opened, mae):
    both = {**mae, **under("ema.module.", {name: t + 1 for name, t in mae.items()})}
    with pytest.raises(LayoutError, match=r'state_key="\." or state_key="ema"'):
        opened(both)
    assert diff(opened(both, state_key="."), opened(mae)).same


def test_online_and_momentum_encoder_share_a_decoder(opened, mae):
    momentum = under("momentum.", encoder_of(mae))
    both = {**parted(mae, "online.", "decoder."), **momentum}
    with pytest.raises(LayoutError, match='state_key="momentum" or state_key="online"'):
        opened(both)
    assert opened(both, state_key="online").task == "pretrain"


def test_one_of_two_decoders_has_to_be_selected(opened, mae):
    decoder = {n: t for n, t in mae.items() if n in decoder_names(mae)}
    both = {**encoder_of(mae), **under("a.", decoder), **under("b.", decoder)}
    with pytest.raises(LayoutError, match=r'decoders .*a\.\*, b\.\*.*task="encoder"'):
        opened(both)
    assert opened(both, task="encoder").task == "encoder"


def test_encoder_with_other_channels_is_read_if_the_decoder_has_another_objective(opened, mae):
    """The encoders of SSL4EO-S12 and FG-MAE have 13 channels and a different decoder."""
    encoder = {**encoder_of(mae), "patch_embed.proj.weight": noise(32, 13, 8, 8)}
    hog = {"decoder_pred.weight": noise(9, 24), "decoder_embed.weight": noise(24, 32)}
    checkpoint = opened({**encoder, **hog}, flags=Flags(num_attention_heads=4))
    assert (checkpoint.task, checkpoint.configuration.model.num_channels) == ("encoder", 13)
    assert set(checkpoint.dropped) == set(hog)


class TestSeveralTasks:
    """A MAE and a linear head in one file, as test_time_training_mae writes it."""

    @pytest.fixture
    def state(self, mae):
        norm = {"bn.running_mean": noise(32), "bn.running_var": noise(32).abs() + 1,
                "bn.num_batches_tracked": torch.tensor(7)}  # fmt: skip
        return {**mae, **norm, "head.weight": noise(10, 32), "head.bias": noise(10)}

    def test_each_task_can_be_read(self, opened, state, mae):
        for task in ("pretrain", "encoder", "classify"):
            checkpoint = opened(state, task=task)
            assert (checkpoint.task, checkpoint.also) == (task, ())
            used = {checkpoint.prefix.stored[rule.external] for rule in checkpoint.rules}
            assert used | set(checkpoint.dropped) == set(state)
        assert_same_weights(opened(state, task="pretrain"), opened(mae))

    def test_its_linear_probe_equals_that_of_the_original(self, opened, state):
        ours = opened(state, task="classify")
        names = {"bn.": "head.0.", "head.weight": "head.1.weight", "head.bias": "head.1.bias"}
        plain = renamed({n: t for n, t in state.items() if n in encoder_of(state)})
        probe = {n: t for n, t in state.items() if n.startswith(("bn", "head"))}
        same = opened({**plain, **renamed(probe, *names.items())})
        assert diff(ours, same).same

    def test_conversion_requires_an_explicit_task(self, opened, state, tmp_path):
        checkpoint = opened(state)
        assert (checkpoint.task, checkpoint.also) == ("pretrain", ("classify",))
        with pytest.raises(ConfigurationError, match='task="pretrain" or task="classify"'):
            plan_conversion(checkpoint, tmp_path / "y.pth", "facebook")
        assert any('task="classify" reads it' in line for line in inspect(checkpoint)["odd"])

    def test_file_is_compared_as_the_task_of_the_other_file(self, opened, state, command, tmp_path):
        path = opened(state).path
        options = ("--num-heads", "4", "--decoder-num-heads", "2")
        for task in ("classify", "encoder", "pretrain"):
            target = tmp_path / f"{task}.safetensors"
            result = command("convert", path, target, "--to", "facebook", "--task", task, *options)
            assert result.status == 0, result.err
            result = command("diff", path, target, *options)
            assert result.status == 0, result.err
            assert "not compared: A's" in result.out
            step = {"step": "task", "from": "pretrain", "to": task}
            steps = open_checkpoint(target).container.conversion["steps"]
            assert (step in steps) == (task != "pretrain")
            if task == "classify":  # the head's batch norm was folded
                continue
            shown = command("inspect", path, "--task", task, "--json", *options).json
            assert shown["task"] == task
            assert set(shown["dropped"]) == set(open_checkpoint(path, FLAGS, task=task).dropped)


def test_head_with_unknown_layers_is_not_read_as_a_classifier(opened, classifier):
    state = {**classifier, "bottleneck.weight": noise(32, 32)}
    checkpoint = opened(state)
    assert checkpoint.task == "encoder"
    assert "bottleneck.weight" in checkpoint.incomplete["classify"]
    with pytest.raises(LayoutError, match=r"belong to a layer between .*bottleneck\.weight"):
        opened(state, task="classify")


class TestNoKeyBias:
    """Models with query and value biases but no key biases, which are equivalent to zeros."""

    def test_it_is_the_model_with_a_key_bias_of_zeros(self, opened, mae):
        checkpoint = opened(without_key_bias(mae))
        assert (checkpoint.layout.name, checkpoint.task) == ("facebook", "pretrain")
        assert not checkpoint.key_bias
        zeros = opened(with_zero_key_bias(mae))
        assert diff(checkpoint, zeros).same
        assert str(checkpoint_fingerprint(checkpoint)) == str(checkpoint_fingerprint(zeros))
        blocks = {name.partition(".norm1")[0] for name in mae if ".norm1.weight" in name}
        assert len(checkpoint.created) == len(blocks)

    @pytest.mark.parametrize("layout", ["transformers", "keras", "facebook", "transformers-tf"])
    def test_it_is_written_back_unchanged(self, opened, mae, tmp_path, layout):
        suffix = {"keras": ".weights.h5", "facebook": ".safetensors"}.get(layout, "")
        there, back = tmp_path / f"there{suffix}", tmp_path / "back.pth"
        state = without_key_bias(mae)
        report = execute(plan_conversion(opened(state), there, layout))
        created = [reason for reason in report["created"].values() if "no key bias" in reason]
        assert len(created) == (0 if layout == "facebook" else len(opened(state).created))
        again = open_checkpoint(there)
        assert not again.key_bias
        assert report["fingerprint"] == str(checkpoint_fingerprint(again))
        execute(plan_conversion(again, back, "facebook"))
        written = torch.load(back, weights_only=True)
        assert written["config"]["key_bias"] is False
        assert set(written["model"]) == set(state)
        assert all(torch.equal(written["model"][name], state[name]) for name in state)

    def test_key_bias_that_was_trained_later_is_kept(self, opened, mae, tmp_path):
        there = tmp_path / "there"
        execute(plan_conversion(opened(without_key_bias(mae)), there, "transformers"))
        weights = safetensors.torch.load_file(there / "model.safetensors")
        name = "vit.encoder.layer.0.attention.attention.key.bias"
        weights[name] = weights[name] + 1
        safetensors.torch.save_file(weights, there / "model.safetensors", {"format": "pt"})
        execute(plan_conversion(open_checkpoint(there), tmp_path / "back.pth", "facebook"))
        written = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
        assert torch.equal(written["blocks.0.attn.qkv.bias"][32:64], weights[name])

    def test_it_is_loaded_and_saved_unchanged(self, opened, mae, tmp_path):
        state = without_key_bias(mae)
        model = load_model(opened(state))
        expected = with_zero_key_bias(mae)
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
        save_model(model, tmp_path / "back.pth", "facebook")
        assert set(torch.load(tmp_path / "back.pth", weights_only=True)["model"]) == set(state)
        with torch.no_grad():
            model.blocks[0].attn.qkv.bias[40] = 1.0
        save_model(model, tmp_path / "trained.pth", "facebook")
        written = torch.load(tmp_path / "trained.pth", weights_only=True)["model"]
        assert written["blocks.0.attn.qkv.bias"][40] == 1.0

    def test_only_some_key_biases_are_an_error(self, opened, mae):
        with pytest.raises(LayoutError):
            opened({**without_key_bias(mae), "blocks.0.attn.k_bias": noise(32)})

    def test_verify_passes_for_a_model_without_key_bias(self, opened, mae, tmp_path):
        from mae_convert.runtime.sides import Side
        from mae_convert.verify.verification import verify

        source = opened(without_key_bias(mae))
        execute(plan_conversion(source, tmp_path / "there", "transformers"))
        torch_side = Side("torch")
        verdict = verify(source, open_checkpoint(tmp_path / "there"), torch_side, torch_side)
        assert verdict.passed


def as_mmpretrain(state):
    return renamed(
        under("backbone.", encoder_of(state)),
        ("patch_embed.proj", "patch_embed.projection"), ("backbone.norm", "backbone.ln1"),
        ("blocks", "layers"), ("norm1", "ln1"), ("norm2", "ln2"),
        ("mlp.fc1", "ffn.layers.0.0"), ("mlp.fc2", "ffn.layers.1"),
    )  # fmt: skip


def test_fine_tuned_mmpretrain_checkpoint_is_read(opened, pooled, tmp_path):
    names = {"fc_norm": "backbone.ln2", "head": "head.fc"}
    head = {f"{names[n.split('.')[0]]}.{n.split('.')[1]}": pooled[n] for n in pooled
            if n.split(".")[0] in names}  # fmt: skip
    state = {**as_mmpretrain(pooled), **head}
    checkpoint = opened(state)
    assert (checkpoint.layout.name, checkpoint.task) == ("mmpretrain", "classify")
    assert checkpoint.configuration.model.global_pool == "avg"
    assert diff(checkpoint, opened(pooled)).same
    execute(plan_conversion(opened(state), tmp_path / "y.pth", "mmpretrain"))
    written = torch.load(tmp_path / "y.pth", weights_only=True)["state_dict"]
    assert set(written) == set(state)
    assert all(torch.equal(written[name], state[name]) for name in state)


def test_linear_probe_of_mmpretrain_is_read(opened, probe):
    norm = renamed(
        {n: t for n, t in probe.items() if n.startswith("head.0")}, ("head.0", "neck.bn")
    )
    for head in ("head.layers.head", "head.fc"):
        linear = {f"{head}.weight": probe["head.1.weight"], f"{head}.bias": probe["head.1.bias"]}
        checkpoint = opened({**as_mmpretrain(probe), **norm, **linear})
        assert checkpoint.task == "classify"
        assert diff(checkpoint, opened(probe)).same


def test_linear_probe_of_the_original_with_mean_pooling(opened, probe, pooled):
    head = {n: t for n, t in probe.items() if n.startswith("head.")}
    norm = {n: pooled[n] for n in ("fc_norm.weight", "fc_norm.bias")}
    state = {n: t for n, t in encoder_of(probe).items() if not n.startswith("norm.")}
    checkpoint = opened({**state, **norm, **head})
    assert (checkpoint.task, checkpoint.configuration.model.global_pool) == ("classify", "avg")
    folded = opened(probe).tensors["head.weight"].load()
    assert checkpoint.tensors["head.weight"].load().tobytes() == folded.tobytes()


class TestNoEmbedClass:
    """timm models with no_embed_class, whose position embeddings lack the class token's row."""

    def test_it_is_refused_with_the_name_of_the_option(self, opened, classifier):
        state = {**classifier, "pos_embed": classifier["pos_embed"][:, 1:]}
        with pytest.raises(LayoutError, match=r"no_embed_class=True.*torch\.cat"):
            opened(state)

    def test_non_square_grid_is_not_mistaken_for_no_embed_class(self, opened, classifier):
        rows = classifier["pos_embed"][:, 1:].clone()
        patch = classifier["patch_embed.proj.weight"].shape[-1]
        size = (3 * patch, 5 * patch)
        state = {**classifier, "pos_embed": rows}
        flags = Flags(num_attention_heads=4, image_size=size)
        assert opened(state, flags=flags).configuration.model.grid_hw == (3, 5)
        state["pos_embed"][:, 0] = 0  # as in the row of the class token in a fixed table
        with pytest.raises(ConfigurationError, match="source_image_size="):
            opened(state)


def test_an_image_mae_with_query_and_value_biases_is_not_called_videomae(opened, mae):
    state = under("encoder.", without_key_bias(encoder_of(mae)))
    state = {n: t for n, t in state.items() if not n.endswith(("cls_token", "pos_embed"))}
    state |= {"encoder_to_decoder.weight": noise(24, 32), "mask_token": noise(1, 1, 24)}
    with pytest.raises(LayoutError) as error:
        opened(state)
    assert "VideoMAE" not in str(error.value)
    assert "no class token" in str(error.value)
