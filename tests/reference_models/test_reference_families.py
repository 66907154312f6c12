"""The PyTorch models of the video families equal the original programs."""

import importlib

import numpy as np
import pytest
import torch
from arrays import FLOAT64_LIMIT, distance
from family_cases import CASES, WHOLE, configuration, expectations, golden, inputs
from family_models import (
    VIDEO,
    checkpoint,
    loaded,
    model_of,
    random_inputs,
    random_model,
    results,
    tensors,
)

from reference_models import configuration as configurations
from reference_models.masks import running_cells, tube_noise

LIMIT = 1e-12


@pytest.mark.parametrize("case", CASES)
def test_everything_equals_the_original(case):
    with torch.no_grad():
        result = results(loaded(case), tensors(inputs(case)))
    expected = expectations(case)
    assert len(expected) >= 4
    for name, value in expected.items():
        if name in ("mask", "ids_restore"):
            np.testing.assert_array_equal(result[name], value)
        else:
            assert result[name].dtype == torch.float64, name
            assert distance(result[name], value) <= LIMIT, name


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_equal_the_original(case):
    family, task = CASES[case]
    model = model_of(family, task, configuration(case))
    ours, reference = (
        {name: value.shape for name, value in state.items()}
        for state in (model.state_dict(), checkpoint(case))
    )
    assert ours == reference


@pytest.mark.parametrize(
    "case", [WHOLE[0], *(pytest.param(case, marks=pytest.mark.slow) for case in WHOLE[1:])]
)
def test_compiled_without_graph_breaks(case):
    torch._dynamo.reset()
    model, model_inputs = loaded(case), tensors(inputs(case))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        plain, fast = (run(**model_inputs, output_taps=True) for run in (model, compiled))
    assert distance(fast.logits, plain.logits) <= FLOAT64_LIMIT
    assert fast.taps.keys() == plain.taps.keys()


@pytest.mark.parametrize("case", CASES)
def test_gradients_reach_every_trained_parameter_of_the_family(case):
    family, task = CASES[case]
    model, model_inputs = (
        model_of(family, task, configuration(case)).double(),
        tensors(inputs(case)),
    )
    output = model(**model_inputs)
    (output.logits.square().sum() if output.loss is None else output.loss).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    assert all(gradient.isfinite().all() for gradient in gradients.values())


# --- VideoMAE ---


def test_positions_equal_the_formula_in_float32():
    config = configurations.VideoMAEConfig()
    module = importlib.import_module("reference_models.pytorch.videomae")
    table = module.fixed_positions(config, 768)[0]
    assert table.dtype == torch.float32
    for position, channel in ((0, 0), (1567, 0), (1567, 1), (900, 400), (77, 767)):
        angle = position / np.power(10000, 2 * (channel // 2) / 768)
        expected = np.sin(angle) if channel % 2 == 0 else np.cos(angle)
        assert table[position, channel] == np.float32(expected)


def test_videomae_masks_the_same_number_of_patches_in_every_frame():
    config = configurations.VideoMAEConfig(**VIDEO)
    assert (config.num_patches, config.num_kept) == (24, 2 * (12 - 7))
    noise = tube_noise(np.random.default_rng(0).random((3, 12)), 2)
    model = random_model("videomae", "pretrain", VIDEO)
    pixels = random_inputs(config, videos=3)[0]
    for model_inputs in (torch.from_numpy(noise), None):
        mask = model(pixels, model_inputs).mask.unflatten(1, (2, 12))
        assert torch.equal(mask[:, 0], mask[:, 1])
        assert mask.sum((1, 2)).tolist() == [14.0] * 3


def test_videomae_accepts_a_mask_as_noise():
    case = "videomae_pretrain_tiny"
    model, model_inputs = loaded(case), tensors(inputs(case))
    with torch.no_grad():
        by_noise = model(**model_inputs)
        by_mask = model(
            model_inputs["pixel_values"], torch.from_numpy(golden(case)["mask"]).float()
        )
    assert torch.equal(by_noise.logits, by_mask.logits)


def test_videomae_reconstruction_shows_what_is_visible_and_puts_normalized_patches_back():
    for flag in (False, True):
        model = random_model("videomae", "pretrain", {**VIDEO, "norm_pix_loss": flag})
        pixels, noise = random_inputs(model.config)
        with torch.no_grad():
            output = model(pixels, noise)
        hidden = model.config.num_patches - model.config.num_kept
        ids = output.mask.argsort(dim=1, stable=True)[:, -hidden:]
        perfect = model.target(pixels).take_along_dim(ids[..., None], dim=1)
        assert distance(model.reconstruct(pixels, perfect, output.mask), pixels) <= LIMIT
        shown = model.patchify(model.reconstruct(pixels, output.logits, output.mask))
        visible = output.mask == 0
        assert distance(shown[visible], model.patchify(pixels)[visible]) <= LIMIT
        assert distance(shown[~visible], model.patchify(pixels)[~visible]) > 0.1


def test_videomae_decodes_only_the_tokens_of_the_version_2_decoder_mask():
    fields = {**VIDEO, "image_size": (8, 8), "patch_size": 2, "num_frames": 6, "tubelet_size": 3}
    model = random_model("videomae", "pretrain", fields)
    config = model.config
    pixels, noise = random_inputs(config)
    cells = running_cells(config.grid_shape, phase=1)
    assert len(cells) == config.num_patches // 2
    ids = torch.from_numpy(cells).expand(2, -1)
    with torch.no_grad():
        output = model(pixels, noise, ids_decode=ids)
        errors = (output.logits - model.target(pixels)[:, cells]).square().mean(-1)
    counted = output.mask[:, cells]
    assert 0 < counted.sum() < counted.numel()
    assert output.logits.shape == (2, len(cells), config.patch_dim)
    assert distance(output.loss, (errors * counted).sum() / counted.sum()) <= LIMIT
    every = model(pixels, noise, ids_decode=output.mask.argsort(dim=1, stable=True)[:, -18:])
    assert output.mask.sum(1).tolist() == [18.0, 18.0]
    assert torch.equal(every.logits, model(pixels, noise).logits)


def test_running_cells_move_by_one_position_per_time_step():
    masks = np.zeros((4, 4, 4), bool)
    masks.flat[running_cells((4, 4, 4), phase=0)] = True
    assert masks[0, :2, :2].flatten().tolist() == [False, True, True, False]
    assert masks[1, :2, :2].flatten().tolist() == [True, True, False, False]
    assert masks.sum() == 32
    assert (masks.sum(0) == 2).all()


def test_videomae_options_work_as_documented():
    """Each option equals a model without it whose weights are chosen to match."""
    pixels, noise = random_inputs(configurations.VideoMAEConfig(**VIDEO))
    plain = random_model("videomae", "pretrain", VIDEO)
    scaled = model_of("videomae", "pretrain", {**VIDEO, "layer_scale_init_value": 0.1}).double()
    state = plain.state_dict()
    for name in scaled.state_dict().keys() - state.keys():
        assert name.endswith(("gamma_1", "gamma_2"))
        factor = torch.rand(scaled.state_dict()[name].shape, dtype=torch.float64) + 0.5
        position = "attn.proj" if name.endswith("gamma_1") else "mlp.fc2"
        state[name] = 1 / factor
        for kind in ("weight", "bias"):
            scaled_name = name.rpartition(".")[0] + f".{position}.{kind}"
            value = state[scaled_name]
            state[scaled_name] = value * (factor[:, None] if kind == "weight" else factor)
    scaled.load_state_dict(state)
    with torch.no_grad():
        assert distance(scaled(pixels, noise).logits, plain(pixels, noise).logits) <= LIMIT

    without = model_of("videomae", "pretrain", {**VIDEO, "qkv_bias": False}).double()
    state = {n: v for n, v in plain.state_dict().items() if not n.endswith(("q_bias", "v_bias"))}
    without.load_state_dict(state)
    with torch.no_grad():
        before = plain(pixels, noise).logits
        for name, parameter in plain.named_parameters():
            if name.endswith(("q_bias", "v_bias")):
                parameter.zero_()
        assert distance(without(pixels, noise).logits, plain(pixels, noise).logits) <= LIMIT
        assert distance(without(pixels, noise).logits, before) > 1e-3


def test_videomae_classifier_reads_the_first_token_or_the_mean():
    pixels, _ = random_inputs(configurations.VideoMAEConfig(**VIDEO))
    for pooled in (True, False):
        model = random_model("videomae", "classify", {**VIDEO, "use_mean_pooling": pooled})
        with torch.no_grad():
            output = model(pixels, torch.tensor([1, 4]), output_taps=True)
            tokens = output.taps["encoder.blocks.1.output"]
            if pooled:
                read = model.fc_norm(tokens.mean(1))
                assert torch.equal(output.taps["head.norm"][:, 0], read)
            else:
                read = model.norm(tokens[:, 0])
            assert distance(output.logits, model.head(read)) <= LIMIT
            log_probabilities = output.logits.log_softmax(-1)
        loss = -(log_probabilities[0, 1] + log_probabilities[1, 4]) / 2
        assert distance(output.loss, loss) <= LIMIT


def test_videomae_encoder_equals_that_of_the_pretraining_model():
    model = random_model("videomae", "pretrain", VIDEO)
    encoder = model_of("videomae", "encoder", {**VIDEO, "use_mean_pooling": False}).double()
    encoder.load_state_dict(model.encoder.state_dict())
    pixels, noise = random_inputs(model.config)
    with torch.no_grad():
        alone, whole = encoder(pixels, noise), model(pixels, noise, output_taps=True)
    assert torch.equal(alone.last_hidden_state, whole.taps["encoder.norm"])
    assert not hasattr(model_of("videomae", "encoder", VIDEO), "norm")


def test_videomae_final_norms_have_an_epsilon_of_their_own():
    fields = {**VIDEO, "layer_norm_eps": 1e-6, "final_layer_norm_eps": 1e-5}
    norms = {
        name: module.eps
        for task in ("pretrain", "classify")
        for name, module in model_of("videomae", task, fields).named_modules()
        if isinstance(module, torch.nn.LayerNorm)
    }
    assert {name for name, eps in norms.items() if eps == 1e-5} == {"decoder.norm", "fc_norm"}
    assert set(norms.values()) == {1e-5, 1e-6}


def test_wrong_shapes_and_fields_are_refused():
    model = random_model("videomae", "pretrain", VIDEO)
    pixels, noise = random_inputs(model.config)
    with pytest.raises(ValueError, match=r"pixel_values must have shape \(N, 2, 6, 8, 12\)"):
        model(pixels.transpose(1, 2), noise)
    with pytest.raises(ValueError, match=r"noise must have shape \(2, 24\)"):
        model(pixels, noise[:, :12])
    for field, value, message in (
        ("num_frames", 7, "tubelet_size must divide num_frames"),
        ("image_std", [1.0, 0.0], "positive number for each"),
        ("image_mean", [1.0], "for each of the 2 channels"),
        ("layer_scale_init_value", -1, "must be 0 or a positive number"),
        ("decoder_num_attention_heads", 3, "must divide decoder_hidden_size"),
    ):
        with pytest.raises(ValueError, match=message):
            configurations.VideoMAEConfig(**{**VIDEO, field: value})
    config = configurations.VideoMAEConfig(**VIDEO, image_mean=[0.5, 0.4])
    assert configurations.VideoMAEConfig.from_dict(config.to_dict()) == config


# --- MAE-ST ---


def test_predicted_frames_equal_those_selected_by_pytorch():
    for frames in range(2, 65):
        for tubelet in (t for t in (1, 2, 4) if frames % t == 0):
            for predicted in range(1, frames + 1):
                if tubelet * predicted % frames:
                    continue
                config = configurations.MAESTConfig(
                    num_frames=frames, tubelet_size=tubelet, pred_t_dim=predicted
                )
                expected = torch.linspace(0, frames - 1, predicted).long().tolist()
                assert list(config.predicted_frames) == expected, (frames, predicted)


def test_mae_st_joint_positions_can_be_the_sum_of_separate_ones():
    for cls_embed in (True, False):
        separate = random_model("mae_st", "pretrain", {**VIDEO, "cls_embed": cls_embed})
        fields = {**VIDEO, "cls_embed": cls_embed, "sep_pos_embed": False}
        joint = model_of("mae_st", "pretrain", fields).double()
        state = {n: v for n, v in separate.state_dict().items() if "pos_embed" not in n}
        tables = dict(separate.named_parameters())
        for prefix in ("", "decoder_"):
            spatial, temporal = (
                tables[f"{prefix}pos_embed_{kind}"][0] for kind in ("spatial", "temporal")
            )
            rows = [at + position for at in temporal for position in spatial]  # place by place
            if cls_embed:
                rows = [tables[f"{prefix}pos_embed_class"][0, 0], *rows]
            state[f"{prefix}pos_embed"] = torch.stack(rows)[None].detach()
        joint.load_state_dict(state)
        pixels, noise = random_inputs(separate.config)
        with torch.no_grad():
            assert distance(joint(pixels, noise).logits, separate(pixels, noise).logits) <= LIMIT


def test_mae_st_class_tokens_and_biases_are_omitted_by_the_options():
    for fields, absent in (({"cls_embed": False}, "cls_token"), ({"qkv_bias": False}, ".q.bias")):
        names = [*model_of("mae_st", "pretrain", {**VIDEO, **fields}).state_dict()]
        assert not [name for name in names if name.endswith(absent)]
        assert [*model_of("mae_st", "pretrain", VIDEO).state_dict()] != names
    model = random_model("mae_st", "pretrain", {**VIDEO, "cls_embed": False})
    output = model(*random_inputs(model.config), output_taps=True)
    visible, patches = model.config.num_kept, model.config.num_patches
    assert output.taps["encoder.blocks.0.output"].shape == (2, visible, 12)
    assert output.taps["decoder.norm"].shape == (2, patches, 10)


def test_mae_st_without_biases_is_one_with_zero_biases():
    model = random_model("mae_st", "pretrain", VIDEO)
    without = model_of("mae_st", "pretrain", {**VIDEO, "qkv_bias": False}).double()
    own = without.state_dict().keys()
    without.load_state_dict({n: v for n, v in model.state_dict().items() if n in own})
    with torch.no_grad():
        for name in model.state_dict().keys() - own:
            model.get_parameter(name).zero_()
        model_inputs = random_inputs(model.config)
        assert distance(without(*model_inputs).logits, model(*model_inputs).logits) <= LIMIT


def test_mae_st_classifier_always_ignores_the_first_token():
    for cls_embed in (True, False):
        model = random_model("mae_st", "classify", {**VIDEO, "cls_embed": cls_embed})
        with torch.no_grad():
            output = model(random_inputs(model.config)[0], output_taps=True)
            tokens = output.taps["encoder.blocks.1.output"]
            assert tokens.shape[1] == model.config.num_patches + cls_embed
            expected = model.head(model.norm(tokens[:, 1:].mean(1)))
        assert distance(output.logits, expected) <= LIMIT


def test_mae_st_encoder_equals_that_of_the_pretraining_model():
    model = random_model("mae_st", "pretrain", VIDEO)
    encoder = model_of("mae_st", "encoder", VIDEO).double()
    own = encoder.state_dict().keys()
    encoder.load_state_dict({n: v for n, v in model.state_dict().items() if n in own})
    model_inputs = random_inputs(model.config)
    with torch.no_grad():
        alone, whole = encoder(*model_inputs), model(*model_inputs, output_taps=True)
    assert alone.last_hidden_state.shape == (2, model.config.num_kept, 12)
    assert torch.equal(alone.last_hidden_state, whole.taps["encoder.norm"])


def test_mae_st_reconstructs_the_predicted_frames():
    fields = {**VIDEO, "norm_pix_loss": True, "pred_t_dim": 2}
    model = random_model("mae_st", "pretrain", fields)
    pixels, _ = random_inputs(model.config)
    patches = model.patchify(pixels)
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    perfect = (patches - mean) / (variance + 1e-6).sqrt()
    assert model.config.predicted_frames == (0, 5)
    assert distance(model.reconstruct(pixels, perfect), pixels[:, :, [0, 5]]) <= LIMIT
    with pytest.raises(ValueError, match="whole number of frames"):
        configurations.MAESTConfig(**{**VIDEO, "pred_t_dim": 3})


# --- Prithvi ---


def test_prithvi_positions_equal_those_in_the_files():
    for case in ("prithvi_v1_tiny", "prithvi_v2_tl_tiny"):
        fresh = model_of("prithvi", "pretrain", configuration(case)).state_dict()
        for name in ("encoder.pos_embed", "decoder.decoder_pos_embed"):
            assert distance(fresh[name], checkpoint(case)[name]) <= 1e-7, name


def test_prithvi_features_of_everything_equal_the_original():
    for case in (name for name, (family, _) in CASES.items() if family == "prithvi"):
        fields = {**configuration(case), "mask_ratio": 0.0}
        encoder = model_of("prithvi", "encoder", fields)
        state = checkpoint(case).items()
        own = {n.removeprefix("encoder."): v for n, v in state if n.startswith("encoder.")}
        encoder.load_state_dict(own)
        model_inputs = tensors(inputs(case))
        del model_inputs["noise"]
        with torch.no_grad():
            result = encoder.double().eval()(**model_inputs).last_hidden_state
        assert distance(result, golden(case)["f64/features_unmasked"]) <= LIMIT, case


def test_prithvi_coordinates_can_be_left_out_and_are_refused_where_not_embedded():
    case = "prithvi_v2_tl_tiny"
    model, model_inputs = loaded(case), tensors(inputs(case))
    names = ("temporal_coords", "location_coords")
    outputs = {}
    with torch.no_grad():
        for left_out in ((), names[:1], names[1:], names):
            remaining = {
                name: value for name, value in model_inputs.items() if name not in left_out
            }
            outputs[left_out] = model(**remaining).logits
        plain = model_of("prithvi", "pretrain", {**configuration(case), "coords_encoding": []})
        own = plain.state_dict().keys()
        plain.load_state_dict({n: v for n, v in checkpoint(case).items() if n in own})
        pixels, noise = model_inputs["pixel_values"], model_inputs["noise"]
        assert torch.equal(plain.double()(pixels, noise).logits, outputs[names])
    values = list(outputs.values())
    assert all(distance(a, b) > 1e-3 for i, a in enumerate(values) for b in values[:i])
    with pytest.raises(ValueError, match="does not embed temporal_coords"):
        plain(pixels, noise, temporal_coords=model_inputs["temporal_coords"])
    with pytest.raises(ValueError, match=r"location_coords must have shape \(2, 2\)"):
        model(pixels, noise, location_coords=model_inputs["location_coords"][:1])
    with pytest.raises(ValueError, match="list with no items other than time and location"):
        configurations.PrithviConfig(coords_encoding=["weather"])
    with pytest.raises(ValueError, match="must be a multiple of 4"):
        configurations.PrithviConfig(
            coords_encoding=["time"], hidden_size=50, num_attention_heads=5
        )


def test_prithvi_in_float32_computes_coordinates_as_well_as_in_float64():
    case = "prithvi_v2_tl_tiny"
    model, model_inputs = loaded(case), tensors(inputs(case))
    embedding = model.encoder.temporal_embed_enc
    with torch.no_grad():
        exact = embedding(model_inputs["temporal_coords"])
        rounded = embedding.float()(model_inputs["temporal_coords"])
    assert rounded.dtype == torch.float32
    assert distance(rounded, exact) <= 2e-7


def test_prithvi_accepts_images_of_one_time_step():
    fields = {**VIDEO, "num_frames": 1, "tubelet_size": 1}
    model = random_model("prithvi", "pretrain", fields)
    pixels, noise = random_inputs(model.config)
    with torch.no_grad():
        whole, single = model(pixels, noise), model(pixels[:, :, 0], noise)
    assert torch.equal(whole.logits, single.logits)
    assert torch.equal(whole.loss, model.forward_loss(pixels[:, :, 0], single.logits, single.mask))


# --- sizes ---


@pytest.mark.parametrize(
    ("family", "task", "fields", "names", "numbers"),
    [
        ("videomae", "pretrain", {}, 218, 94_210_944),
        ("videomae", "classify", {}, 162, None),
        (
            "mae_st",
            "pretrain",
            {
                "hidden_size": 768,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "intermediate_size": 3072,
                "pred_t_dim": 8,
            },
            275,
            None,
        ),
    ],
)
def test_base_models_have_as_many_parameters_as_the_files(family, task, fields, names, numbers):
    with torch.device("meta"):
        state = model_of(family, task, fields).state_dict()
    assert len(state) == names
    if numbers:
        assert sum(tensor.numel() for tensor in state.values()) == numbers
