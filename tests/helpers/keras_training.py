"""Training and saving with Keras; the checks run in the process of ``models_worker.py``."""

import subprocess
import sys
import tempfile

import keras
import numpy as np
import pytest
from arrays import FLOAT32_LIMIT, distance
from keras import ops
from paths import GOLDEN

from mae_convert import load_model
from mae_convert.models import TFViTForImageClassification, TFViTMAEForPreTraining
from mae_convert.models.export import export_encoder
from mae_convert.models.fine_tuning import LayerDecayAdamW, fine_tuning_optimizer, layer_of

PRETRAIN = GOLDEN / "transformers_tf_pretrain_tiny"
CLASSIFIER = GOLDEN / "transformers_tf_classifier_tiny"
BACKEND = keras.backend.backend()
UNIT_ROUNDOFF = 2.0**-24


def arrays(images=8):
    random = np.random.default_rng(0)
    pixels = random.normal(size=(images, 3, 32, 32)).astype("float32")
    return pixels, random.random((images, 16)).astype("float32")


def masked(images=8):
    pixels, noise = arrays(images)
    return {"pixel_values": pixels, "noise": noise}


def dataset(data, batch=4):
    if BACKEND == "jax":
        return data if isinstance(data, tuple) else (data,)
    import tensorflow as tf

    return (tf.data.Dataset.from_tensor_slices(data).batch(batch, drop_remainder=True),)


def trained(model, data=None, epochs=2, optimizer=None, **compiled):
    """Train a model on fixed noise without shuffling and return its losses."""
    model.compile(optimizer=optimizer or keras.optimizers.SGD(0.1), **compiled)
    feed = dataset(masked() if data is None else data)
    options = {"batch_size": 4, "shuffle": False} if BACKEND == "jax" else {}
    return model.fit(*feed, epochs=epochs, verbose=0, **options).history["loss"]


def values(model):
    return [ops.convert_to_numpy(weight) for weight in model.weights]


def long_check_fit_trains_further_without_a_loss_of_compile():
    model = TFViTMAEForPreTraining.from_pretrained(PRETRAIN)
    before = values(model)
    losses = trained(model, epochs=20, optimizer=keras.optimizers.AdamW(1e-2))
    assert losses[-1] < 0.8 * losses[0], losses
    fixed = ("position_embeddings", "decoder_pos_embed")
    for weight, old, new in zip(model.weights, before, values(model), strict=True):
        assert np.array_equal(old, new) == weight.path.endswith(fixed), weight.path
    plain = load_model(PRETRAIN, BACKEND)  # the reference model itself, which generates its noise
    pixels = arrays()[0]
    plain.compile(optimizer=keras.optimizers.AdamW(1e-2))
    history = plain.fit(pixels, batch_size=4, epochs=15, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert plain.evaluate(pixels, verbose=0) > 0
    assert plain.predict(pixels, batch_size=3, verbose=0)["logits"].shape == (8, 16, 192)
    result = model.predict(masked(), batch_size=3, verbose=0)
    assert result.logits.shape == (8, 16, 192)
    assert result.loss is None


def long_check_fit_needs_no_loss_in_compile():
    pixels, _ = arrays(2)
    labels = np.array([1, 3])
    model = TFViTForImageClassification.from_pretrained(PRETRAIN, num_labels=4)
    expected = np.log(4)  # the loss of a head of zeros
    eager = {"run_eagerly": BACKEND == "tensorflow"}
    for metrics, inputs in ((None, pixels), (["accuracy"], {"pixel_values": pixels})):
        model.compile(keras.optimizers.SGD(0.0), metrics=metrics, **eager)
        history = model.fit(inputs, labels, verbose=0).history
        assert np.isclose(history["loss"][0], expected), history
        assert ("accuracy" in history) == (metrics is not None)
    assert np.isclose(model.evaluate(pixels, labels, verbose=0)[0], expected)
    with pytest.raises(ValueError, match="pass a loss to compile"):
        model.fit(pixels, labels, sample_weight=labels, verbose=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss=loss, **eager)
    assert np.isclose(model.fit(pixels, labels, verbose=0).history["loss"][0], expected)

    masked = TFViTMAEForPreTraining.from_pretrained(PRETRAIN)
    masked.compile("adam")
    for data in ((pixels,), (pixels, labels), ({"pixel_values": pixels}, labels)):
        assert masked.fit(*data, verbose=0).history["loss"][0] > 0


def long_check_fine_tuning_learns_with_a_rate_for_each_layer():
    model = TFViTForImageClassification.from_pretrained(PRETRAIN, num_labels=2)
    pixels, _ = arrays(16)
    labels = np.arange(16) % 2
    pixels[labels == 1] += 1
    optimizer = fine_tuning_optimizer(
        model, batch_size=8, steps_per_epoch=2, epochs=30, base_learning_rate=0.3
    )
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(*dataset((pixels, labels), 8), epochs=30, verbose=0).history
    assert history["accuracy"][-1] == 1.0, history["accuracy"]
    assert history["loss"][-1] < 0.2 < history["loss"][0]
    rates = [float(optimizer._learning_rate(step)) for step in (0, 5, 10, 60)]
    peak = 0.3 * 8 / 256
    assert np.allclose(rates, [0, peak / 2, peak, 0], atol=1e-6), rates
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.get_config() == optimizer.get_config()


def check_learning_rate_and_decay_of_each_variable_follow_the_paper():
    model = TFViTForImageClassification.from_pretrained(PRETRAIN, num_labels=3)
    layers = {layer_of(weight.path, 3) for weight in model.weights}
    assert layers == {0, 1, 2, 3, 4}
    rate, factor = 1e-2, 0.5
    for gradient, decay in ((1.0, 0.0), (0.0, 0.1)):
        for weight in model.weights:
            weight.assign(ops.ones(weight.shape))
        optimizer = LayerDecayAdamW(rate, depth=3, layer_decay=factor, decay=decay)
        gradients = [ops.full(weight.shape, gradient) for weight in model.trainable_weights]
        optimizer.apply(gradients, model.trainable_weights)
        for weight in model.trainable_weights:
            own = rate * factor ** (4 - layer_of(weight.path, 3))
            free = len(weight.shape) == 1 or weight.path.endswith(
                ("cls_token", "position_embeddings")
            )
            expected = 1 - own if gradient else 1 - own * decay * (not free)
            value = ops.convert_to_numpy(weight)
            assert distance(value, np.full_like(value, expected)) < FLOAT32_LIMIT, weight.path


def long_check_mixed_precision_trains_and_keeps_float32_weights():
    exact = trained(TFViTMAEForPreTraining.from_pretrained(PRETRAIN))
    for policy in ("mixed_bfloat16", "mixed_float16"):
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            model = TFViTMAEForPreTraining.from_pretrained(PRETRAIN)
        finally:
            keras.config.set_dtype_policy(before)
        assert model(masked()).logits.dtype == policy.removeprefix("mixed_")
        losses = trained(model)
        assert {weight.dtype for weight in model.weights} == {"float32"}
        assert distance(losses, exact) < 0.02, (policy, losses, exact)


def long_check_xla_and_eager_train_as_a_graph_does():
    results = {}
    for name, options in {
        "graph": {"jit_compile": False},
        "xla": {"jit_compile": True},
        "eager": {"run_eagerly": True},
    }.items():
        model = TFViTMAEForPreTraining.from_pretrained(PRETRAIN)
        results[name] = trained(model, **options), values(model)
    for name in ("xla", "eager"):
        assert distance(results[name][0], results["graph"][0]) < 1e-5, name
        for one, other in zip(results[name][1], results["graph"][1], strict=True):
            assert distance(one, other) < 1e-4, name


def program_of_a_block(model):
    """Return the JAX program of a block, as text."""
    import jax

    tokens = np.ones((1, 5, 32), "float32")
    block = model.encoder.block_0
    return str(jax.make_jaxpr(block)(tokens))


def long_check_gradient_checkpointing_recomputes_and_does_not_change_the_gradients():
    results, calls = {}, []
    block = type(TFViTMAEForPreTraining.from_pretrained(PRETRAIN).encoder.block_0)
    original = block.call
    block.call = lambda self, *given, **named: calls.append(1) or original(self, *given, **named)
    try:
        for enabled in (False, True):
            model = TFViTMAEForPreTraining.from_pretrained(PRETRAIN)
            if enabled:
                model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing == enabled
            calls.clear()
            options = {"run_eagerly": True} if BACKEND == "tensorflow" else {}
            results[enabled] = trained(model, epochs=1, **options), values(model), len(calls)
            shown = model(masked(), output_attentions=True)
            assert len(shown.attentions) == 3
    finally:
        block.call = original
    if BACKEND == "jax":  # traces a block once, and recomputes the compiled function
        assert "remat" in program_of_a_block(model)
    else:
        assert results[True][2] > results[False][2], "nothing was recomputed"
    assert distance(results[True][0], results[False][0]) < FLOAT32_LIMIT
    for one, other in zip(results[True][1], results[False][1], strict=True):
        assert distance(one, other) < 1e-5


def long_check_two_replicas_train_as_one():
    if BACKEND != "tensorflow":
        return
    import tensorflow as tf

    devices = [device.name for device in tf.config.list_logical_devices("CPU")]
    strategy = tf.distribute.MirroredStrategy(
        devices, cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    assert strategy.num_replicas_in_sync == 2
    with strategy.scope():
        together = TFViTMAEForPreTraining.from_pretrained(PRETRAIN)
        losses = trained(together)
    alone = TFViTMAEForPreTraining.from_pretrained(PRETRAIN)
    assert distance(losses, trained(alone)) < 1e-5
    for one, other in zip(values(together), values(alone), strict=True):
        assert distance(one, other) < 1e-4


def long_check_model_is_saved_during_training_and_continues():
    model = TFViTMAEForPreTraining.from_pretrained(PRETRAIN, mask_ratio=0.5)
    trained(model, optimizer=keras.optimizers.AdamW(1e-3))
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        again = keras.models.load_model(f"{folder}/model.keras")
        assert again.config.to_dict() == model.config.to_dict()
        feed = dataset(masked())
        options = {"batch_size": 4, "shuffle": False} if BACKEND == "jax" else {}
        histories = [m.fit(*feed, verbose=0, **options).history["loss"] for m in (model, again)]
        assert distance(*histories) < FLOAT32_LIMIT


LOADER = """
import sys
sys.modules["mae_convert"] = sys.modules["reference_models"] = None  # cannot be imported
import numpy as np, tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
inputs = dict(np.load(sys.argv[2]))
outputs = loaded.signatures["serving_default"](**{n: tf.constant(x) for n, x in inputs.items()})
np.savez(sys.argv[3], **{name: value.numpy() for name, value in outputs.items()})
"""


def in_another_process(folder, inputs):
    np.savez(f"{folder}/in.npz", **inputs)
    arguments = [f"{folder}/program", f"{folder}/in.npz", f"{folder}/out.npz"]
    subprocess.run([sys.executable, "-c", LOADER, *arguments], check=True, capture_output=True)
    return dict(np.load(f"{folder}/out.npz"))


def long_check_a_saved_model_runs_without_this_project():
    if BACKEND != "tensorflow":
        return
    import tensorflow as tf

    model, inputs = TFViTMAEForPreTraining.from_pretrained(PRETRAIN), masked(3)
    signature = {
        "pixel_values": tf.TensorSpec((None, 3, 32, 32), "float32", "pixel_values"),
        "noise": tf.TensorSpec((None, 16), "float32", "noise"),
    }
    with tempfile.TemporaryDirectory() as folder:
        model.export(f"{folder}/program", input_signature=[signature], verbose=False)
        result = in_another_process(folder, inputs)
    expected = model(inputs)
    assert set(result) == {"loss", "logits", "mask", "ids_restore"}
    for name, value in expected.items():  # a compiler may sum in another order
        assert distance(result[name], ops.convert_to_numpy(value)) < 16 * UNIT_ROUNDOFF, name


def long_check_the_encoder_alone_runs_elsewhere():
    if BACKEND != "tensorflow":
        return
    import tensorflow as tf

    model, pixels = load_model(PRETRAIN, BACKEND), arrays(3)[0]
    wide = load_model(PRETRAIN, BACKEND, "encoder", "float64", mask_ratio=0.0)
    in_order = np.tile(np.arange(16.0), (3, 1))
    exact = ops.convert_to_numpy(wide(pixels.astype("float64"), in_order).last_hidden_state)
    with tempfile.TemporaryDirectory() as folder:
        export_encoder(model, f"{folder}/program")
        result = in_another_process(folder, {"pixel_values": pixels})["last_hidden_state"]
        # The verification's own limit for a side's error in float32.
        assert distance(result, exact) < 64 * UNIT_ROUNDOFF
        export_encoder(model, f"{folder}/model.tflite")
        interpreter = tf.lite.Interpreter(f"{folder}/model.tflite")
        runner = interpreter.get_signature_runner()
        found = runner(pixel_values=pixels)["last_hidden_state"]
        assert distance(found, exact) < 64 * UNIT_ROUNDOFF
        print(f"TFLite: {distance(found, exact) / UNIT_ROUNDOFF:.1f} units of roundoff")
