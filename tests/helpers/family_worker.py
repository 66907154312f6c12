"""Runs the Keras models of the video families in a separate process.

    python family_worker.py FOLDER quick|slow

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
from pathlib import Path

import keras
import numpy as np
from arrays import FLOAT64_LIMIT, distance
from family_cases import CLASSES, CONFIGS
from keras import ops
from keras_worker import compiled, equal, flatten, set_weights

from reference_models import configuration as configurations
from reference_models.masks import running_cells


def model_class(family, task):
    return getattr(
        importlib.import_module(f"reference_models.keras.{family}"), CLASSES[family][task]
    )


def run(job, folder):
    model = model_class(job["family"], job["task"])(job["config"], dtype="float64")
    set_weights(model, dict(np.load(folder / f"{job['name']}.weights.npz")))
    inputs = dict(np.load(folder / f"{job['name']}.inputs.npz"))
    flags = dict.fromkeys(("output_hidden_states", "output_attentions", "output_taps"), True)
    for mode in job["modes"]:
        output = compiled(lambda arrays: model(**arrays, **flags), mode)(inputs)
        arrays = flatten(output)
        if job["task"] == "pretrain":
            pixels, shown = inputs["pixel_values"], (output.logits, output.mask)
            for name, flag in (("loss", False), ("loss_norm_pix", True)):
                value = model.forward_loss(pixels, *shown, norm_pix_loss=flag)
                arrays[name] = ops.convert_to_numpy(value)
            arrays["target"] = ops.convert_to_numpy(model.patchify(pixels))
            whole = output.logits.shape[1] == model.config.num_patches
            arrays["reconstruction"] = ops.convert_to_numpy(
                model.unpatchify(output.logits) if whole else model.reconstruct(pixels, *shown)
            )
        np.savez(folder / f"{job['name']}.{mode}.npz", **arrays)


FIELDS = {
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "image_size": (8, 8),
    "patch_size": 2,
    "num_channels": 2,
    "num_frames": 4,
    "tubelet_size": 2,
    "decoder_hidden_size": 10,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 14,
    "mask_ratio": 0.6,
    "num_labels": 5,
    "pred_t_dim": 2,
}


def fields_of(family):
    names = configurations.__dict__[CONFIGS[family]].__dataclass_fields__
    return {name: value for name, value in FIELDS.items() if name in names}


def random_model(family, task, **fields):
    model = model_class(family, task)({**fields_of(family), **fields}, dtype="float64")
    random = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(random.normal(size=variable.shape, scale=0.3))
    return model


def arguments(model, task, videos=2):
    random = np.random.default_rng(1)
    pixels = random.normal(size=(videos, *model.config.pixel_shape))
    noise = random.random((videos, model.config.num_patches))
    return (pixels,) if task == "classify" else (pixels, noise)


def main_result(output):
    return ops.convert_to_numpy(getattr(output, "logits", getattr(output, "last_hidden_state", 0)))


def check_saved_keras_files_restore_the_model():
    with tempfile.TemporaryDirectory() as folder:
        for family, tasks in CLASSES.items():
            for task in tasks:
                model = random_model(family, task)
                path = f"{folder}/{family}-{task}"
                model.save(f"{path}.keras")
                again = keras.models.load_model(f"{path}.keras")
                assert type(again) is type(model)
                assert again.config == model.config
                given = arguments(model, task)
                before, after = (main_result(m(*given)) for m in (model, again))
                assert distance(after, before) < FLOAT64_LIMIT


def check_without_noise_a_mask_is_sampled():
    for family in CLASSES:
        model = random_model(family, "encoder")
        pixels = arguments(model, "encoder", videos=6)[0]
        first, second = (ops.convert_to_numpy(model(pixels).mask) for _ in range(2))
        hidden = model.config.num_patches - model.config.num_kept
        assert first.sum(1).tolist() == [hidden] * 6
        assert not equal(first, second)
        if family == "videomae":
            time = model.config.grid_shape[0]
            tubes = first.reshape(6, time, -1)
            assert (tubes == tubes[:, :1]).all()


def long_check_dropout_is_active_in_training_only():
    for family, tasks in CLASSES.items():
        for task in tasks:
            model = random_model(family, task, hidden_dropout_prob=0.4)
            plain = random_model(family, task)
            given = arguments(model, task)
            assert distance(main_result(model(*given)), main_result(plain(*given))) < FLOAT64_LIMIT
            first, second = (main_result(model(*given, training=True)) for _ in range(2))
            assert not np.array_equal(first, second), (family, task)


def long_check_any_number_of_videos_when_compiled():
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    for family in CLASSES:
        model = random_model(family, "pretrain")
        given = arguments(model, "pretrain")
        shapes = [tf.TensorSpec((None, *array.shape[1:]), "float64") for array in given]
        function = tf.function(model, input_signature=shapes)
        result = main_result(function(*given))
        assert distance(result, main_result(model(*given))) < FLOAT64_LIMIT


def check_mixed_precision_computes_in_bfloat16_and_sorts_by_the_full_noise():
    for family in CLASSES:
        model = model_class(family, "pretrain")(fields_of(family), dtype="mixed_bfloat16")
        pixels, noise = arguments(model, "pretrain")
        output = model(pixels, 0.5 + np.argsort(np.argsort(noise, axis=1), axis=1) * 1e-6)
        assert output.logits.dtype == "bfloat16"
        exact = model_class(family, "pretrain")(fields_of(family), dtype="float64")
        assert equal(output.mask, exact(pixels, noise).mask)
        assert output.loss.dtype == "float32"


def check_videomae_decodes_only_the_tokens_of_the_version_2_decoder_mask():
    model = random_model("videomae", "pretrain")
    pixels, noise = arguments(model, "pretrain")
    cells = running_cells(model.config.grid_shape, phase=3)
    output = model(pixels, noise, ids_decode=np.tile(cells, (2, 1)))
    target = ops.convert_to_numpy(model.target(pixels))[:, cells]
    errors = np.square(ops.convert_to_numpy(output.logits) - target).mean(-1)
    counted = ops.convert_to_numpy(output.mask)[:, cells]
    assert 0 < counted.sum() < counted.size
    expected = (errors * counted).sum() / counted.sum()
    assert distance(ops.convert_to_numpy(output.loss), expected) < FLOAT64_LIMIT


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
