"""Runs the Keras models in a separate process, in which no other framework is imported.

    python keras_worker.py FOLDER quick|slow

``FOLDER/jobs.json`` lists models to run with specified weights and inputs; their results are
written to ``FOLDER/<job>.<mode>.npz``. Then every function here whose name begins with ``check_``
(quick) or ``long_check_`` (slow) is called, and ``FOLDER/checks.json`` has the traceback of each
that failed.
"""

import importlib
import json
import sys
import tempfile
import traceback
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
from arrays import FLOAT32_LIMIT, FLOAT64_LIMIT, distance
from keras import ops
from paths import DATA

from reference_models.keras import (
    TFViTForImageClassification,
    TFViTMAEForPreTraining,
    TFViTMAEModel,
    ViTMAEConfig,
)

MODELS = {
    "pretrain": TFViTMAEForPreTraining,
    "encoder": TFViTMAEModel,
    "classify": TFViTForImageClassification,
}
BACKEND = keras.backend.backend()
TINY = ViTMAEConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    image_size=(8, 12),
    patch_size=(4, 3),
    num_channels=2,
    decoder_hidden_size=12,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=3,
    decoder_intermediate_size=20,
    mask_ratio=0.5,
    num_labels=5,
)


# --- jobs: weights and inputs in, arrays out ---


def set_weights(model, weights):
    """Assign every variable its value by path, and check that the names are the same."""
    variables = {variable.path.split("/", 1)[1]: variable for variable in model.weights}
    assert len(variables) == len(model.weights), "two variables share a path"
    assert variables.keys() == weights.keys(), sorted(variables.keys() ^ weights.keys())
    for name, variable in variables.items():
        assert tuple(variable.shape) == weights[name].shape, name
        variable.assign(weights[name])


def compiled(function, mode):
    if mode == "eager":
        return function
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function, jit_compile=mode == "xla")


def flatten(output):
    """Return the arrays of an output by name; tuples are numbered and taps keep their names."""
    arrays = {}
    for name, value in output._asdict().items():
        if isinstance(value, tuple):
            arrays |= {f"{name}.{index}": item for index, item in enumerate(value)}
        elif isinstance(value, dict):
            arrays |= {f"{name}/{tap}": item for tap, item in value.items()}
        elif value is not None:
            arrays[name] = value
    return {name: ops.convert_to_numpy(value) for name, value in arrays.items()}


def run(job, folder):
    model = MODELS[job["task"]](job["config"], dtype=job["dtype"])
    set_weights(model, dict(np.load(folder / job["weights"])))
    inputs = dict(np.load(folder / job["inputs"]))
    flags = dict.fromkeys(("output_hidden_states", "output_attentions", "output_taps"), True)
    for mode in job["modes"]:
        function = compiled(lambda arrays: model(**arrays, **flags), mode)
        output = function(inputs)
        arrays = flatten(output)
        if job["task"] == "pretrain":
            pixels = inputs["pixel_values"]
            arrays["loss_norm_pix"] = ops.convert_to_numpy(
                model.forward_loss(pixels, output.logits, output.mask, norm_pix_loss=True)
            )
            arrays["reconstruction"] = ops.convert_to_numpy(
                model.reconstruct(pixels, output.logits)
            )
        np.savez(folder / f"{job['name']}.{mode}.npz", **arrays)


# --- checks ---


def random_model(task, config=TINY, dtype="float64"):
    model = MODELS[task](config, dtype=dtype)
    random = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(random.normal(size=variable.shape, scale=0.3))
    return model


def random_inputs(config=TINY, images=2):
    random = np.random.default_rng(1)
    pixels = random.normal(size=(images, config.num_channels, *config.image_hw))
    return pixels, random.random((images, config.num_patches))


def arguments(task):
    return random_inputs()[:1] if task == "classify" else random_inputs()


def replace(**fields):
    return ViTMAEConfig.from_dict({**TINY.to_dict(), **fields})


def equal(a, b):
    return np.array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))


def result(output):
    return ops.convert_to_numpy(getattr(output, "logits", getattr(output, "last_hidden_state", 0)))


def refusal(function, *inputs):
    try:
        function(*inputs)
    except ValueError as error:
        return str(error)
    raise AssertionError("not refused")


def check_only_requested_outputs_are_returned():
    for task in MODELS:
        model = random_model(task)
        plain = model(*arguments(task))
        assert (plain.hidden_states, plain.attentions, plain.taps) == (None, None, None)
        full = model(
            *arguments(task), output_hidden_states=True, output_attentions=True, output_taps=True
        )
        assert distance(result(plain), result(full)) < FLOAT64_LIMIT
        states = [full.taps["encoder.embedding"]]
        states += [full.taps[f"encoder.blocks.{index}.output"] for index in range(2)]
        assert len(full.hidden_states) == 3
        assert all(map(equal, full.hidden_states, states))


def check_configuration_round_trip():
    for task, cls in MODELS.items():
        model = random_model(task, replace(global_pool="avg"))
        config = json.loads(json.dumps(model.get_config()))
        again = cls.from_config(config)
        assert again.get_config() == config
        assert again.config == model.config
        assert again.variable_dtype == "float64"
        assert [v.path for v in again.weights] == [v.path for v in model.weights]


def check_saved_keras_files_restore_the_model():
    with tempfile.TemporaryDirectory() as folder:
        for task, cls in MODELS.items():
            model = random_model(task)
            model.save(f"{folder}/{task}.keras")
            again = keras.models.load_model(f"{folder}/{task}.keras")
            assert type(again) is cls
            before, after = (result(m(*arguments(task))) for m in (model, again))
            assert distance(after, before) < FLOAT64_LIMIT

            model.save_weights(f"{folder}/{task}.weights.h5")
            fresh = cls(TINY, dtype="float64")
            fresh.load_weights(f"{folder}/{task}.weights.h5")
            assert all(map(equal, fresh.weights, model.weights))


def check_archives_of_earlier_versions_are_loaded():
    folder = DATA / "keras_archives"
    expected = dict(np.load(folder / "expected.npz"))
    for task, cls in MODELS.items():
        model = keras.models.load_model(folder / f"reference_models_{task}.keras")
        assert type(model) is cls
        with zipfile.ZipFile(folder / f"reference_models_{task}.keras") as archive:
            saved = json.loads(archive.read("config.json"))
        # Keras imports this module if the classes are not registered yet.
        assert vars(importlib.import_module(saved["module"]))[saved["class_name"]] is cls
        names = ("pixel_values",) if task == "classify" else ("pixel_values", "noise")
        measured = result(model(*(expected[name] for name in names)))
        assert distance(measured, expected[f"reference_models_{task}"]) < FLOAT32_LIMIT


def check_paths_in_weight_files_are_the_frozen_ones():
    frozen = json.loads((DATA / "keras_weight_paths.json").read_text())
    config = ViTMAEConfig.from_dict(frozen["config"])
    for name, expected in frozen["paths"].items():
        task, _, pool = name.partition("_")
        fields = {**config.to_dict(), "global_pool": pool or "token"}
        with tempfile.TemporaryDirectory() as folder:
            MODELS[task](fields).save_weights(f"{folder}/model.weights.h5")
            weight_names = weight_paths(f"{folder}/model.weights.h5")
        assert weight_names == expected, sorted(weight_names.items() ^ expected.items())


def weight_paths(path):
    paths = {}

    def note(name, item):
        if isinstance(item, h5py.Dataset):
            paths[name] = list(item.shape)

    with h5py.File(path) as file:
        file.visititems(note)
    return paths


def check_layers_without_bias_have_none():
    paths = [
        variable.path for variable in random_model("pretrain", replace(qkv_bias=False)).weights
    ]
    assert not [path for path in paths if path.endswith(("query/bias", "key/bias", "value/bias"))]
    assert len(paths) == len(random_model("pretrain").weights) - 3 * 3


def check_without_noise_a_mask_is_sampled():
    model, (pixels, _) = random_model("pretrain"), random_inputs(images=8)
    modes = ["eager"] if BACKEND == "jax" else ["eager", "graph", "xla"]
    for mode in modes:
        function = compiled(lambda x: model(x).mask, mode)
        first, second = (ops.convert_to_numpy(function(pixels)) for _ in range(2))
        assert first.sum(1).tolist() == [TINY.num_patches - TINY.num_kept] * 8
        assert len(np.unique(first, axis=0)) > 1
        assert not equal(first, second), mode


def check_equal_noise_keeps_the_first_patches():
    model, (pixels, noise) = random_model("encoder"), random_inputs()
    for mode in ("eager", "graph", "xla"):
        output = compiled(model, mode)(pixels, np.zeros_like(noise))
        assert equal(output.ids_restore, [list(range(8))] * 2), mode
        assert equal(output.mask[0], [0, 0, 0, 0, 1, 1, 1, 1])


def check_nothing_masked_keeps_the_order_of_the_noise():
    model, (pixels, noise) = random_model("pretrain", replace(mask_ratio=0.0)), random_inputs()
    in_order = np.tile(np.arange(8.0), (2, 1))
    shuffled, straight = model(pixels, noise), model(pixels, in_order)
    assert shuffled.loss is None
    assert not ops.convert_to_numpy(shuffled.mask).any()
    assert distance(result(shuffled), result(straight)) < FLOAT64_LIMIT
    assert equal(shuffled.ids_restore, np.argsort(np.argsort(noise, axis=1), axis=1))


def check_masked_pixels_do_not_reach_the_encoder():
    model, (pixels, noise) = random_model("pretrain"), random_inputs()
    before = model(pixels, noise)
    changed = ops.convert_to_numpy(model.patchify(pixels)).copy()
    changed[ops.convert_to_numpy(before.mask) == 1] = np.nan
    assert equal(model(model.unpatchify(changed), noise).logits, before.logits)


def check_reconstruct_puts_normalized_patches_back():
    model = random_model("pretrain", replace(norm_pix_loss=True))
    pixels, noise = random_inputs()
    patches = ops.convert_to_numpy(model.patchify(pixels))
    assert equal(model.unpatchify(patches), pixels)
    deviation = np.sqrt(patches.var(-1, keepdims=True, ddof=1) + 1e-6)
    perfect = (patches - patches.mean(-1, keepdims=True)) / deviation
    assert distance(model.reconstruct(pixels, perfect), pixels) < FLOAT64_LIMIT

    output = model(pixels, noise)
    assert equal(output.loss, model.forward_loss(pixels, output.logits, output.mask, True))
    pasted = ops.convert_to_numpy(
        model.patchify(model.reconstruct(pixels, output.logits, output.mask))
    )
    visible = ops.convert_to_numpy(output.mask) == 0
    assert equal(pasted[visible], patches[visible])
    assert not equal(pasted[~visible], patches[~visible])


def check_wrong_shapes_are_refused():
    model, (pixels, noise) = random_model("pretrain"), random_inputs()
    expected = "pixel_values must have shape (N, 2, 8, 12)"
    for wrong in (pixels[:, :1], pixels[..., :-3], pixels[0], pixels.transpose(0, 1, 3, 2)):
        assert expected in refusal(model, wrong, noise)
        assert expected in refusal(random_model("classify"), wrong)
    for wrong in (noise[:1], noise[:, :7], noise[0]):
        assert "noise must have shape (2, 8)" in refusal(model, pixels, wrong)
    assert "patches must have shape (N, 8, 24)" in refusal(
        model.unpatchify, model.patchify(pixels)[:, 1:]
    )


def long_check_any_number_of_images_when_compiled():
    if BACKEND != "tensorflow":
        return
    import tensorflow as tf

    model = random_model("pretrain")
    signature = [tf.TensorSpec((None, 2, 8, 12), "float64"), tf.TensorSpec((None, 8), "float64")]
    for jit in (False, True):
        function = tf.function(model, input_signature=signature, jit_compile=jit)
        for images in (1, 3):
            inputs = random_inputs(images=images)
            eager = result(model(*inputs))
            assert distance(result(function(*inputs)), eager) < FLOAT64_LIMIT


def long_check_dropout_is_active_in_training_only():
    for field in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        for task in MODELS:
            model, plain = random_model(task, replace(**{field: 0.4})), random_model(task)
            inputs = arguments(task)
            assert distance(result(model(*inputs)), result(plain(*inputs))) < FLOAT64_LIMIT
            first, second = (result(model(*inputs, training=True)) for _ in range(2))
            assert not equal(first, second), (field, task)


def check_fixed_positions_are_not_trained():
    names = {
        task: {v.path.split("/")[-1] for v in random_model(task).non_trainable_weights}
        for task in MODELS
    }
    assert names == {
        "pretrain": {"position_embeddings", "decoder_pos_embed"},
        "encoder": {"position_embeddings"},
        "classify": set(),
    }


def long_check_a_few_steps_lower_the_loss():
    if BACKEND != "tensorflow":
        return
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    for task, more in (("pretrain", random_inputs()[1]), ("classify", np.array([1, 4]))):
        model, optimizer = MODELS[task](TINY), keras.optimizers.SGD(0.05, momentum=0.9)
        optimizer.build(model.trainable_weights)

        @tf.function
        def step(pixels, more, model=model, optimizer=optimizer):
            with tf.GradientTape() as tape:
                loss = model(pixels, more, training=True).loss
            gradients = tape.gradient(loss, model.trainable_weights)
            assert all(gradient is not None for gradient in gradients)
            optimizer.apply_gradients(zip(gradients, model.trainable_weights, strict=True))
            return loss

        losses = [float(step(random_inputs()[0], more)) for _ in range(60)]
        assert losses[-1] < 0.5 * losses[0], (task, losses[0], losses[-1])


def check_low_precision_sorts_by_the_full_noise():
    config = replace(image_size=(64, 48), mask_ratio=0.75)
    noise = 0.5 + np.arange(256)[None, ::-1] * 1e-6  # all equal in bfloat16
    pixels = random_inputs(config, images=1)[0]
    for dtype in ("bfloat16", "mixed_bfloat16"):
        output = random_model("pretrain", config, dtype)(pixels, noise)
        assert output.logits.dtype == "bfloat16"
        assert output.loss.dtype == "float32"
        assert equal(output.mask[0], [1] * 192 + [0] * 64)


def check_initial_values_follow_the_paper():
    keras.utils.set_random_seed(0)
    config = replace(hidden_size=256, decoder_hidden_size=96, initializer_range=0.5)
    model = MODELS["pretrain"](config)
    values = {v.path.split("/", 1)[1]: ops.convert_to_numpy(v) for v in model.weights}
    assert 0.4 < values["vit/embeddings/cls_token"].std() < 0.6
    assert 0.3 < values["decoder/mask_token"].std() < 0.7
    for name, value in values.items():
        if name.endswith("kernel"):
            inputs, outputs = value.size // value.shape[-1], value.shape[-1]
            joint = 3 if name.split("/")[-2] in ("query", "key", "value") else 1
            bound = (6 / (inputs + joint * outputs)) ** 0.5
            assert 0.95 * bound < np.abs(value).max() <= bound * (1 + 1e-6), name
        if name.endswith("bias"):
            assert not value.any()


def outcome(check):
    try:
        check()
    except Exception:
        return traceback.format_exc()
    return None


def main(folder, speed):
    for job in json.loads((folder / "jobs.json").read_text()):
        run(job, folder)
    prefix = {"quick": "check_", "slow": "long_check_"}[speed]
    checks = {name: check for name, check in globals().items() if name.startswith(prefix)}
    outcomes = {name: outcome(check) for name, check in checks.items()}
    (folder / "checks.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
