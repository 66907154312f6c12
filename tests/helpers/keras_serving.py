"""Checks of compiled blocks and of SavedModels, which run in ``models_worker.py``."""

import subprocess
import sys
import tempfile

import keras
import numpy as np
from arrays import FLOAT32_LIMIT, distance
from keras import ops
from keras_methods import inputs_of, models
from keras_training import BACKEND, CLASSIFIER, PRETRAIN, UNIT_ROUNDOFF, arrays, masked

from mae_convert.models import TFViTForImageClassification, TFViTMAEForPreTraining, TFViTMAEModel

EVERYTHING = {"output_hidden_states": True, "output_attentions": True}


def flat(outputs):
    tensors = [(name, value) for name, value in outputs.items()]
    parts = [(n, v if isinstance(v, tuple) else (v,)) for n, v in tensors]
    return {f"{n}.{i}": ops.convert_to_numpy(x) for n, v in parts for i, x in enumerate(v)}


def graphs(model):
    """Return how often the blocks of a model were traced."""
    functions = model._compiled_blocks._functions.values()
    return sum(function.experimental_get_tracing_count() for function in functions)


def check_compiled_blocks_equal_single_operations():
    if BACKEND != "tensorflow":
        return
    for model in models():
        inputs = inputs_of(model)
        compiled = flat(model(**inputs, **EVERYTHING))
        assert graphs(model) > 0
        model.compile_blocks = False
        operations = flat(model(**inputs, **EVERYTHING))
        assert compiled.keys() == operations.keys()
        for name, value in operations.items():
            assert distance(compiled[name], value) < FLOAT32_LIMIT, (type(model).__name__, name)
        assert graphs(model) == (2 if hasattr(model, "decoder") else 1)


def long_check_compiled_blocks_follow_weights_and_configuration():
    if BACKEND != "tensorflow":
        return
    model = TFViTMAEForPreTraining.from_pretrained(PRETRAIN)
    other = TFViTMAEForPreTraining.from_pretrained(PRETRAIN)
    other.compile_blocks = False

    def check(**options):
        result, expected = model(**masked(2), **options), other(**masked(2), **options)
        assert result.logits.shape == expected.logits.shape
        assert distance(result.logits.numpy(), expected.logits.numpy()) < FLOAT32_LIMIT

    check()
    for each in (model, other):
        kernel = each.encoder.block_1.fc1.kernel
        kernel.assign(kernel * 1.5)
    check()
    for each in (model, other):
        each.config.mask_ratio = 0.5
    check()
    for each in (model, other):
        each.encoder.block_2.norm1.epsilon = 0.1
    check()
    for each in (model, other):
        query = each.encoder.block_0.attention.query
        query.enable_lora(2)
        for change in (query.lora_kernel_a, query.lora_kernel_b):
            change.assign(ops.ones(change.shape))
    check()
    for each in (model, other):
        block = each.decoder.block_0
        block.call = lambda tokens, taps=None, call=block.call: call(tokens * 2, taps)
    check()


def long_check_retracing_is_bounded():
    if BACKEND != "tensorflow":
        return
    model = TFViTForImageClassification.from_pretrained(CLASSIFIER)
    for images in (1, 2, 3, 5, 8, 2, 1):
        model(arrays(images)[0])
    assert graphs(model) <= 2, graphs(model)
    for patches in range(1, 19):
        pixels = np.zeros((1, 3, 8, 8 * patches), "float32")
        model(pixels, interpolate_pos_encoding=True)
    assert len(model._compiled_blocks._functions) <= 16


def check_gradients_graphs_and_training_go_through_single_operations():
    if BACKEND != "tensorflow":
        return
    import tensorflow as tf

    model = TFViTMAEForPreTraining.from_pretrained(PRETRAIN)
    with tf.GradientTape() as tape:
        loss = model(**masked(2)).loss
    assert all(g is not None for g in tape.gradient(loss, model.trainable_variables))
    tf.function(lambda pixels: model(pixels).logits)(arrays(2)[0])
    model(**masked(2), training=True)
    model.compile("sgd", run_eagerly=True)
    model(**masked(2))
    model.fit(arrays(2)[0], verbose=0)
    model.predict(arrays(2)[0], verbose=0)
    model.compile("sgd")
    with tf.distribute.OneDeviceStrategy("/CPU:0").scope():
        model(**masked(2))
    symbolic = model(keras.Input((3, 32, 32), batch_size=2), keras.Input((16,), batch_size=2))
    assert symbolic.logits.shape == (2, 16, 192)
    zeros = [(variable, ops.zeros(variable.shape)) for variable in model.trainable_variables]
    with keras.StatelessScope(zeros):
        assert not np.any(model(**masked(2)).logits.numpy())
    assert graphs(model) == 0
    model(**masked(2))
    assert graphs(model) == 2


SERVE = """
import sys, numpy as np, tensorflow as tf
for name in ("mae_convert", "reference_models", "keras", "tf_keras"):
    sys.modules[name] = None  # cannot be imported
folder = sys.argv[1]
inputs = {name: tf.constant(value) for name, value in np.load(folder + "/in.npz").items()}
for number in range(int(sys.argv[2])):
    loaded = tf.saved_model.load(f"{folder}/{number}")
    found = {}
    for name, function in loaded.signatures.items():
        taken = {n: inputs[n] for n in function.structured_input_signature[1]}
        found |= {f"{name}/{n}": value.numpy() for n, value in function(**taken).items()}
    for name in ("reconstruct", "encode_visible"):
        if hasattr(loaded, name) and name not in loaded.signatures:
            outputs = getattr(loaded, name)(inputs["pixel_values"], inputs["noise"])
            found |= {f"{name}/{n}": value.numpy() for n, value in outputs.items()}
    np.savez(f"{folder}/{number}.npz", **found)
"""


def long_check_saved_models_have_useful_signatures_and_need_only_tensorflow():
    if BACKEND != "tensorflow":
        return
    import tensorflow as tf

    trained, fresh = models(), models()
    for model, labels in zip(trained[1:], (None, np.ones(2, "float32")), strict=True):
        model.compile("adam")
        model.fit(inputs_of(model), labels, verbose=0)
    cases = [
        *((model, "export") for model in (*fresh, trained[1])),
        *((model, "save") for model in (fresh[0], *trained[1:])),
        (trained[1], "both"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for number, (model, way) in enumerate(cases):
            target = f"{folder}/{number}"
            if way == "export":
                model.export(target, verbose=False)
            else:
                chosen = model.serving_functions() if way == "both" else None
                tf.saved_model.save(model, target, signatures=chosen)
        np.savez(f"{folder}/in.npz", **masked(3))
        subprocess.run([sys.executable, "-c", SERVE, folder, str(len(cases))], check=True)
        for number, (model, way) in enumerate(cases):
            served = dict(np.load(f"{folder}/{number}.npz"))
            compare_signatures(model, served, aliased=way == "export")


def compare_signatures(model, results, *, aliased):
    """Compare the results of a SavedModel with those of the model."""
    images, noise = arrays(3)
    expected = {}
    if isinstance(model, TFViTForImageClassification):
        expected["serving_default/logits"] = model(images).logits
    else:
        whole = TFViTMAEModel.from_config(model.config)
        whole.encoder.set_weights(model.encoder.get_weights())
        whole.config.mask_ratio, before = 0.0, model.config.mask_ratio
        expected["serving_default/last_hidden_state"] = whole(images).last_hidden_state
        model.config.mask_ratio = before
        outputs = dict(model(images, noise=noise).items())
        name = "encode_visible"
        if isinstance(model, TFViTMAEForPreTraining):
            name = "reconstruct"
            shown = model.reconstruct(images, outputs["logits"], outputs["mask"])
            outputs["reconstruction"] = shown
            assert shown.shape == (3, 32, 32, 3)
        expected |= {f"{name}/{n}": value for n, value in outputs.items()}
    if aliased:  # Keras also names it "serve"
        pairs = [(n, v) for n, v in expected.items() if n.startswith("serving_default")]
        expected |= {n.replace("serving_default", "serve"): value for n, value in pairs}
    assert results.keys() == expected.keys(), (sorted(results), sorted(expected))
    for name, value in expected.items():
        away = distance(results[name], ops.convert_to_numpy(value))
        assert away < 16 * UNIT_ROUNDOFF, (type(model).__name__, name, away)
