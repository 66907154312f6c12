"""Methods and names of transformers' TensorFlow models; the checks run in ``models_worker.py``."""

import keras
import numpy as np
import pytest
from arrays import FLOAT32_LIMIT, distance
from keras_training import CLASSIFIER, PRETRAIN, arrays, masked

from mae_convert.models import TFViTForImageClassification, TFViTMAEForPreTraining, TFViTMAEModel

CLASSES = {
    TFViTMAEModel: PRETRAIN,
    TFViTMAEForPreTraining: PRETRAIN,
    TFViTForImageClassification: CLASSIFIER,
}


def models():
    return [cls.from_pretrained(path) for cls, path in CLASSES.items()]


def inputs_of(model, images=2):
    return (
        masked(images) if hasattr(model, "seed_generator") else {"pixel_values": arrays(images)[0]}
    )


def long_check_images_of_any_size_are_cut_to_whole_patches():
    for model in models():
        pixels = np.random.default_rng(0).normal(size=(2, 3, 31, 45)).astype("float32")
        options = {"interpolate_pos_encoding": True}
        if isinstance(model, TFViTMAEForPreTraining):
            with pytest.raises(ValueError, match="not a multiple of the patch size"):
                model(pixels, **options)
            continue
        if isinstance(model, TFViTMAEModel):
            options["noise"] = arrays(2)[1][:, :15]
        result, expected = model(pixels, **options), model(pixels[:, :, :24, :40], **options)
        assert distance(result[0], expected[0]) < FLOAT32_LIMIT
        with pytest.raises(ValueError, match="not a multiple of the patch size"):
            model(pixels[:, :, :7], interpolate_pos_encoding=True)


def check_the_encoder_has_the_names_of_transformers():
    for model in models():
        given = inputs_of(model)
        view = model.vit
        outputs = view(**given, output_hidden_states=True, output_attentions=True)
        tokens = 17 if isinstance(model, TFViTForImageClassification) else 5
        assert outputs.last_hidden_state.shape == (2, tokens, 32)
        assert len(outputs.hidden_states) == 4
        assert len(outputs.attentions) == 3
        if isinstance(model, TFViTMAEModel):
            expected = model(**given).last_hidden_state
            assert distance(outputs[0], expected) < FLOAT32_LIMIT
        assert [layer.name for layer in view.encoder.layer] == [
            "layer_._0",
            "layer_._1",
            "layer_._2",
        ]
        assert view.layernorm is model.encoder.norm
        assert view.weights == model.encoder.weights
        count = len(model.trainable_variables)
        view.encoder.layer[0].trainable = False
        assert len(model.trainable_variables) == count - 16
        view.trainable = False
        assert not model.encoder.trainable
        larger = np.zeros((1, 3, 48, 32), "float32")
        assert view(larger, interpolate_pos_encoding=True, return_dict=False)[0].shape[2] == 32


def check_a_dropout_of_the_encoder_is_active_in_training_only():
    for cls in (TFViTMAEForPreTraining, TFViTForImageClassification):
        model = cls.from_pretrained(CLASSES[cls], hidden_dropout_prob=0.5)
        given = inputs_of(model)
        calls = [model.vit(**given, training=training)[0] for training in (False, False, True)]
        assert distance(calls[1], calls[0]) < FLOAT32_LIMIT < distance(calls[2], calls[0])


def long_check_a_model_is_built_once():
    for model in models():
        weights = [id(weight) for weight in model.weights]
        model.build()
        model.build(input_shape=(None, 3, 32, 32))
        model.build_in_name_scope()
        assert [id(weight) for weight in model.weights] == weights
        model(model.dummy_inputs)
        assert tuple(model.input_signature["pixel_values"].shape) == (None, 3, 32, 32)
        assert isinstance(model.get_input_embeddings(), keras.layers.Layer)
        assert model.get_output_embeddings() is None
        again = type(model).from_config(model.config)
        assert [w.shape for w in again.weights] == [w.shape for w in model.weights]
        assert type(model).from_config(model.get_config()).name == model.name


class Table:
    """Has the method of ``datasets.Dataset`` that is called, which returns its options."""

    column_names = ("path", "pixel_values", "label")

    def to_tf_dataset(self, **options):
        rows = [{"path": "a", "pixel_values": np.ones((3, 2, 2)), "label": n} for n in range(2)]
        return options, options["collate_fn"](rows, **options["collate_fn_args"])


def check_a_data_set_is_prepared_with_the_columns_of_the_model():
    for model in models():
        options, batch = model.prepare_tf_dataset(Table(), batch_size=2)
        assert options["columns"] == "pixel_values"
        classes = isinstance(model, TFViTForImageClassification)
        assert options["label_cols"] == ("labels" if classes else None)
        assert (options["batch_size"], options["shuffle"], options["drop_remainder"]) == (
            2,
            True,
            True,
        )
        assert batch["pixel_values"].shape == (2, 3, 2, 2)
        assert batch["labels"].tolist() == [0, 1]
        assert not model.prepare_tf_dataset(Table(), shuffle=False)[0]["drop_remainder"]
        with pytest.raises(TypeError, match=r"directly to fit\(\)"):
            model.prepare_tf_dataset([1, 2])


def check_class_labels_may_be_floating_point():
    model = TFViTForImageClassification.from_pretrained(CLASSIFIER)
    pixels = arrays(2)[0]
    losses = [model(pixels, labels=np.array([1, 3], dtype)).loss for dtype in ("int64", "float32")]
    assert float(losses[0]) == float(losses[1])
    assert float(model.hf_compute_loss(np.array([1, 3]), model(pixels).logits)) == float(losses[0])
