"""Runs scripts for transformers' TensorFlow classes in a process without PyTorch.

    python models_worker.py FOLDER quick|slow

Every function whose name begins with ``check_`` here (quick) or in ``keras_training``,
``keras_methods`` and ``keras_serving`` (slow, except those in their QUICK) is called, and
``FOLDER/checks.json`` contains the outcome: null, or a traceback. Keras runs on
``$KERAS_BACKEND``.
"""

import json
import sys
import tempfile
import threading
import traceback
from functools import cache
from pathlib import Path

import keras
import numpy as np
from arrays import FLOAT32_LIMIT, FLOAT64_LIMIT, distance
from keras import ops
from paths import DATA, DEMO, GOLDEN
from PIL import Image

from mae_convert import load_model, save_model
from mae_convert.errors import MaeConvertError
from mae_convert.models import (
    AutoImageProcessor,
    TFViTForImageClassification,
    TFViTMAEForPreTraining,
    TFViTMAEModel,
    ViTMAEConfig,
)

BACKEND = keras.backend.backend()
HEADS = {"num_attention_heads": 4, "decoder_num_attention_heads": 3}
CASES = {
    "pretrain": (TFViTMAEForPreTraining, "transformers_tf_pretrain_tiny"),
    "encoder": (TFViTMAEModel, "transformers_tf_encoder_tiny"),
    "classify": (TFViTForImageClassification, "transformers_tf_classifier_tiny"),
}
if BACKEND == "tensorflow":
    import tensorflow as tf

    # Two devices on one processor, to train on; it has to be configured before the first is used.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
EVERYTHING = {"output_hidden_states": True, "output_attentions": True}
SIZE = (48, 64)


def model_of(task, **options):
    cls, case = CASES[task]
    return cls.from_pretrained(GOLDEN / case, **options)


@cache
def unchanged_model_of(task):
    """Return a model that checks share, so that it is loaded and traced once."""
    return model_of(task)


def inputs_of(task, size=(32, 32), dtype="float32"):
    random = np.random.default_rng(0)
    pixels = random.normal(size=(2, 3, *size)).astype(dtype)
    noise = random.random((2, size[0] * size[1] // 64)).astype("float32")
    return {"pixel_values": pixels, **({} if task == "classify" else {"noise": noise})}


def numbers(value):
    return ops.convert_to_numpy(value)


def flat(outputs):
    """Return the arrays of an output by name; tuples are numbered."""
    arrays = {}
    for name, value in outputs.items():
        if isinstance(value, tuple):
            arrays |= {f"{name}.{index}": numbers(item) for index, item in enumerate(value)}
        else:
            arrays[name] = numbers(value)
    return arrays


def refusal(function, *inputs, **named):
    try:
        function(*inputs, **named)
    except (MaeConvertError, ValueError, NotImplementedError) as error:
        return str(error)
    raise AssertionError("not refused")


# --- load_model and save_model ---


def check_layers_created_concurrently_by_another_thread_are_initialized():
    loaded, wrong = threading.Event(), []

    def make_layers():
        while not loaded.is_set():
            layer = keras.layers.Dense(64)
            layer.build((None, 64))
            kernel = np.asarray(layer.kernel)  # uniform in ±0.2165
            if not (0.1 < kernel.std() < 0.15 and np.abs(kernel).max() < 0.22):
                wrong.append(kernel)

    other = threading.Thread(target=make_layers)
    other.start()
    try:
        model_of("pretrain")
        load_model(GOLDEN / CASES["pretrain"][1], BACKEND)
    finally:
        loaded.set()
        other.join()
    assert not wrong, wrong[0]


def check_any_checkpoint_gives_the_results_of_the_original():
    golden = dict(np.load(GOLDEN / "pretrain_tiny" / "golden.npz"))
    for source in (
        "pretrain_tiny/checkpoint.pth",
        "transformers_tf_pretrain_tiny_v4pt",
        "transformers_tf_pretrain_tiny",
        "lightly_pretrain_tiny/model.safetensors",
    ):
        model = load_model(GOLDEN / source, BACKEND, dtype="float64", **HEADS)
        outputs = model(golden["imgs"].astype("float64"), golden["noise"])
        assert distance(numbers(outputs.logits), golden["f64/pred"]) < FLOAT64_LIMIT, source
        assert distance(numbers(outputs.loss), golden["f64/loss"]) < FLOAT64_LIMIT, source


def check_dtypes_tasks_sizes_and_heads():
    path = GOLDEN / "pretrain_tiny" / "checkpoint.pth"
    assert load_model(path, BACKEND, **HEADS).variable_dtype == "float32"
    mixed = load_model(path, BACKEND, "encoder", "mixed_bfloat16", "cpu", image_size=48, **HEADS)
    assert (mixed.compute_dtype, mixed.variable_dtype) == ("bfloat16", "float32")
    assert mixed.encoder.embeddings.position_embeddings.shape == (1, 37, 32)
    half = load_model(path, BACKEND, dtype="bfloat16", **HEADS)
    assert {weight.dtype for weight in half.weights} == {"bfloat16"}
    classifier = load_model(path, BACKEND, num_labels=5, **HEADS)
    assert classifier(inputs_of("classify")["pixel_values"]).logits.shape == (2, 5)
    other = {"tensorflow": "jax", "jax": "tensorflow"}[BACKEND]
    words = refusal(load_model, path, other, **HEADS)
    assert f"KERAS_BACKEND={other}" in words or "not installed" in words, words
    if BACKEND == "tensorflow":
        assert 'device="cpu"' in refusal(load_model, path, BACKEND, device="cuda", **HEADS)


def check_a_model_is_saved_in_any_layout():
    model = load_model(GOLDEN / "pretrain_tiny" / "checkpoint.pth", BACKEND, **HEADS)
    model.decoder.prediction.bias.assign(model.decoder.prediction.bias + 1.0)
    with tempfile.TemporaryDirectory() as folder:
        for layout, suffix in {"facebook": ".pth", "transformers": "", "keras": ".keras"}.items():
            target = Path(folder) / f"{layout}{suffix}"
            save_model(model, target, layout)
            again = load_model(target, BACKEND)
            assert all(
                np.array_equal(numbers(a), numbers(b))
                for a, b in zip(again.weights, model.weights, strict=True)
            ), layout


# --- the examples like those of transformers' documentation ---


def check_the_documented_encoder_example():
    image_processor = AutoImageProcessor.from_pretrained(DEMO / "checkpoint.pth")
    model = TFViTMAEModel.from_pretrained(DEMO / "checkpoint.pth")

    kind = "tf" if BACKEND == "tensorflow" else "np"
    inputs = image_processor(images=Image.open(DEMO / "chelsea.jpg"), return_tensors=kind)
    outputs = model(**inputs)

    shape = (1, 1 + model.config.num_kept, model.config.hidden_size)
    assert outputs.last_hidden_state.shape == shape
    assert model(inputs).last_hidden_state.shape == shape
    assert model(inputs["pixel_values"]).last_hidden_state.shape == shape


def check_the_documented_pretraining_example():
    image_processor = AutoImageProcessor.from_pretrained(DEMO / "checkpoint.pth")
    model = TFViTMAEForPreTraining.from_pretrained(DEMO / "checkpoint.pth")

    kind = "tf" if BACKEND == "tensorflow" else "np"
    inputs = image_processor(images=Image.open(DEMO / "chelsea.jpg"), return_tensors=kind)
    outputs = model(**inputs)
    loss, mask, ids_restore = outputs.loss, outputs.mask, outputs.ids_restore

    assert 0 < float(loss) < 1.1
    assert float(ops.sum(mask)) == model.config.num_patches - model.config.num_kept
    assert sorted(numbers(ids_restore)[0]) == list(range(model.config.num_patches))
    assert model.unpatchify(outputs.logits).shape == (1, *model.config.image_hw, 3)


# --- the same numbers as the real TensorFlow classes ---


def check_every_output_equals_that_of_the_transformers_class():
    for task, (_, case) in CASES.items():
        golden = dict(np.load(GOLDEN / case / "golden.npz"))
        named = {"pixel_values": golden.pop("imgs")}
        if task != "classify":
            named["noise"] = golden.pop("noise")
        result = flat(unchanged_model_of(task)(named, **EVERYTHING))
        assert len(golden) > (8 if task == "pretrain" else 0)
        golden |= {"loss": golden["loss"][0]} if "loss" in golden else {}  # there of shape (1,)
        for name, expected in golden.items():
            assert distance(result[name], expected) < FLOAT32_LIMIT, (task, name)


def check_other_sizes_give_the_same_result_as_a_conversion_with_image_size():
    for task in CASES:
        model, inputs = model_of(task, dtype="float64"), inputs_of(task, SIZE, "float64")
        result = flat(model(**inputs, interpolate_pos_encoding=True, **EVERYTHING))
        with tempfile.TemporaryDirectory() as folder:
            wide = Path(folder) / "wide.weights.h5"
            save_model(model, wide, "keras")
            converted = load_model(wide, BACKEND, image_size=SIZE)
        expected = converted(**inputs, **EVERYTHING)._asdict()
        expected = {name: value for name, value in expected.items() if value is not None}
        for name, value in flat(expected).items():
            assert distance(result[name], value) < FLOAT64_LIMIT, (task, name)
        assert "interpolate_pos_encoding=True" in refusal(model, **inputs)
    model, inputs = unchanged_model_of("pretrain"), inputs_of("pretrain", SIZE)
    outputs = model(**inputs, interpolate_pos_encoding=True)
    pixels = inputs["pixel_values"]
    loss = model.forward_loss(pixels, outputs.logits, outputs.mask, interpolate_pos_encoding=True)
    assert np.array_equal(numbers(loss), numbers(outputs.loss))
    patches = model.patchify(pixels, interpolate_pos_encoding=True)
    images = pixels.transpose(0, 2, 3, 1)  # (N, H, W, C), as in transformers
    assert np.array_equal(numbers(model.unpatchify(patches, SIZE)), images)
    again = model.patchify(images, interpolate_pos_encoding=True)
    assert np.array_equal(numbers(again), numbers(patches))
    mixed = model_of("pretrain", dtype="mixed_bfloat16")
    mixed(**inputs, interpolate_pos_encoding=True)


# --- model tests like those of transformers ---


def check_outputs_by_attribute_index_tuple_and_dictionary():
    for task in CASES:
        model, inputs = unchanged_model_of(task), inputs_of(task)
        outputs = model(**inputs, **EVERYTHING)
        as_tuple = model(**inputs, **EVERYTHING, return_dict=False)
        assert type(as_tuple) is tuple
        assert len(as_tuple) == len(outputs) == len(outputs.to_tuple()) == len(dict(outputs))
        for index, (name, value) in enumerate(outputs.items()):
            for other in (outputs[index], outputs[name], getattr(outputs, name)):
                assert other is value
        plain = model(**inputs)
        assert plain.hidden_states is plain.attentions is None
        assert "pixel_values" in refusal(model)
        words = refusal(model, **inputs, head_mask=np.ones(4, "float32"))
        assert "head_mask" in words


def check_hidden_states_and_attentions_have_their_shapes():
    for task in CASES:
        model = model_of(task)
        model.config.update({"output_hidden_states": True, "output_attentions": True})
        outputs = model(**inputs_of(task))
        tokens = 1 + (16 if task == "classify" else 4)
        assert [tuple(x.shape) for x in outputs.hidden_states] == [(2, tokens, 32)] * 4
        assert [tuple(x.shape) for x in outputs.attentions] == [(2, 4, tokens, tokens)] * 3
        assert all(np.allclose(numbers(x).sum(-1), 1, atol=1e-6) for x in outputs.attentions)


def check_same_noise_gives_the_same_output_and_no_noise_is_random():
    model, inputs = unchanged_model_of("pretrain"), inputs_of("pretrain")
    first, second = flat(model(**inputs)), flat(model(**inputs))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    pixels = inputs["pixel_values"]
    drawn = [numbers(model(pixels).ids_restore) for _ in range(2)]
    assert not np.array_equal(*drawn)


def check_encoder_can_be_frozen_by_its_name_in_transformers():
    ours, path = CASES["pretrain"]
    model = ours.from_pretrained(GOLDEN / path)
    model.vit.trainable = False
    remaining = {variable.path.split("/")[1] for variable in model.trainable_variables}
    assert remaining == {"decoder"}, remaining


def check_saved_and_loaded_it_is_the_same():
    for task, (cls, _) in CASES.items():
        model, inputs = model_of(task), inputs_of(task)
        model.encoder.norm.beta.assign(model.encoder.norm.beta + 0.5)
        expected = numbers(model(**inputs)[0])
        with tempfile.TemporaryDirectory() as folder:  # it exists and is empty
            model.save_pretrained(folder)
            assert {p.name for p in Path(folder).iterdir()} >= {"config.json", "tf_model.h5"}
            again = cls.from_pretrained(folder)
            assert distance(numbers(again(**inputs)[0]), expected) < FLOAT32_LIMIT
            assert again.config == model.config
            model.save(f"{folder}/model.keras")
            model.compile_blocks = False  # single operations, as in the reference model below
            archived = keras.models.load_model(f"{folder}/model.keras")
            assert type(archived) is cls
            assert archived.config.to_dict() == model.config.to_dict()
            assert distance(numbers(archived(**inputs)[0]), expected) < FLOAT32_LIMIT
            assert (
                np.array_equal(
                    numbers(
                        load_model(f"{folder}/model.keras", BACKEND)(**inputs)[
                            int(task != "encoder")
                        ]
                    ),
                    numbers(model(**inputs)["logits" if task != "encoder" else 0]),
                )
                or task == "pretrain"
            )


def check_archives_of_earlier_versions_are_loaded():
    folder = DATA / "keras_archives"
    expected = dict(np.load(folder / "expected.npz"))
    for task, (cls, _) in CASES.items():
        model = keras.models.load_model(folder / f"mae_convert_{task}.keras")
        assert type(model) is cls
        names = ("pixel_values",) if task == "classify" else ("pixel_values", "noise")
        outputs = model(**{name: expected[name] for name in names})
        measured = outputs.last_hidden_state if task == "encoder" else outputs.logits
        measured = ops.convert_to_numpy(measured)
        assert distance(measured, expected[f"mae_convert_{task}"]) < FLOAT32_LIMIT


def check_the_configuration_can_be_set():
    model, inputs = model_of("pretrain", mask_ratio=0.5, norm_pix_loss=True), inputs_of("pretrain")
    assert float(ops.sum(model(**inputs).mask)) == 16
    normalized = float(model(**inputs).loss)
    model.config.norm_pix_loss = False
    assert float(model(**inputs).loss) != normalized
    model.config.mask_ratio = 0.0
    outputs = model(**inputs)
    assert outputs.loss is None
    assert outputs[0] is outputs.logits
    in_order = np.tile(np.arange(16.0), (2, 1))
    assert np.array_equal(numbers(model(inputs["pixel_values"]).ids_restore), in_order)
    fresh = TFViTMAEModel(ViTMAEConfig.from_pretrained(GOLDEN / CASES["pretrain"][1]))
    assert fresh.num_parameters() > fresh.num_parameters(only_trainable=True)
    words = refusal(TFViTMAEForPreTraining.from_pretrained, GOLDEN / CASES["encoder"][1])
    assert "decoder" in words, words


def check_loss_of_a_classifier_depends_on_the_kind_of_labels():
    inputs = inputs_of("classify")
    one = model_of("classify", num_labels=1, ignore_mismatched_sizes=True)
    loss = one(**inputs, labels=np.array([0.5, -1.5], "float32")).loss
    assert np.isclose(float(loss), (0.25 + 2.25) / 2)
    several = model_of("classify", num_labels=4, ignore_mismatched_sizes=True)
    loss = several(**inputs, labels=np.eye(4, dtype="float32")[:2]).loss
    assert np.isclose(float(loss), np.log(2))
    loss = several(**inputs, labels=np.array([1, 3])).loss
    assert np.isclose(float(loss), np.log(4))


def outcome(check):
    try:
        check()
    except Exception:
        return traceback.format_exc()
    return None


def main(folder, speed):
    import keras_methods
    import keras_serving
    import keras_training

    assert "torch" not in sys.modules, "two frameworks in one process"
    checks, prefix = {}, {"quick": "check_", "slow": "long_check_"}[speed]
    for names in map(vars, (sys.modules[__name__], keras_training, keras_methods, keras_serving)):
        checks |= {name: check for name, check in names.items() if name.startswith(prefix)}
    outcomes = {name: outcome(check) for name, check in checks.items()}
    (folder / "checks.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
