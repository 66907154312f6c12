"""transformers' Trainer and pipelines accept the PyTorch models like its own."""

import json

import numpy as np
import pytest
import torch
from arrays import FLOAT32_LIMIT, assert_near, distance
from hub_state import Account
from paths import GOLDEN
from PIL import Image

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.models import (
    AutoImageProcessor,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
)

pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
transformers = pytest.importorskip("transformers")

PRETRAIN = GOLDEN / "transformers_tf_pretrain_tiny_v4pt"
CLASSIFIER = GOLDEN / "transformers_tf_classifier_tiny_v4pt"


class Images(torch.utils.data.Dataset):
    """Eight images of noise, with labels where a number of classes is given."""

    def __init__(self, classes=None):
        pixels = np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype("float32")
        self.pixels, self.classes = torch.from_numpy(pixels), classes

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        labels = {"labels": index % self.classes} if self.classes else {}
        return {"pixel_values": self.pixels[index], **labels}


def trainer_for(model, folder, data, *, optimizers=(None, None), evaluate=True, **changes):
    arguments = transformers.TrainingArguments(
        **{
            "output_dir": str(folder),
            "max_steps": 2,
            "save_steps": 1,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            **changes,
        }
    )
    processor = AutoImageProcessor.from_pretrained(PRETRAIN)
    return transformers.Trainer(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=data if evaluate else None,
        processing_class=processor,
        optimizers=optimizers,
    )


def same_weights(a, b):
    states = [model.state_dict() for model in (a, b)]
    assert list(states[0]) == list(states[1])
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_pre_training_is_trained_evaluated_saved_and_resumed(tmp_path):
    """As run_mae.py does it; the saved directories are read by every reader."""
    model = ViTMAEForPreTraining.from_pretrained(PRETRAIN, norm_pix_loss=True, mask_ratio=0.5)
    options = {"label_names": ["pixel_values"], "gradient_checkpointing": True}
    if hasattr(transformers.TrainingArguments, "activation_checkpointing"):
        options = {"label_names": ["pixel_values"], "activation_checkpointing": True}
    trainer = trainer_for(model, tmp_path, Images(), **options)
    trainer.train()
    assert model.is_gradient_checkpointing
    assert trainer.state.total_flos > 0
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.save_model()

    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["norm_pix_loss"] is True
    assert saved["mask_ratio"] == 0.5
    again = ViTMAEForPreTraining.from_pretrained(tmp_path)
    assert again.config.norm_pix_loss
    assert same_weights(again, model)
    assert open_checkpoint(tmp_path).configuration.model.norm_pix_loss
    reference, report = transformers.ViTMAEForPreTraining.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values())
    assert reference.config.norm_pix_loss

    # A run that stops after one step and is resumed gives the weights of an uninterrupted run.
    fresh = ViTMAEForPreTraining.from_pretrained(PRETRAIN, norm_pix_loss=True, mask_ratio=0.5)
    resumed = trainer_for(fresh, tmp_path / "resumed", Images(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.state.global_step == 2
    whole = ViTMAEForPreTraining.from_pretrained(tmp_path / "checkpoint-2").state_dict()
    assert_near(fresh.state_dict(), whole, 1e-5)


def test_a_classifier_is_trained_evaluated_and_its_best_state_loaded(tmp_path):
    model = ViTForImageClassification.from_pretrained(
        PRETRAIN, id2label={0: "cat", 1: "dog"}, hidden_dropout_prob=0.1
    )
    trainer = trainer_for(
        model,
        tmp_path,
        Images(2),
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    trainer.train()
    best = ViTForImageClassification.from_pretrained(trainer.state.best_model_checkpoint)
    assert same_weights(model, best)
    assert best.config.id2label == {0: "cat", 1: "dog"}
    predicted = trainer.predict(Images(2))
    assert predicted.predictions.shape == (8, 2)
    assert "test_loss" in predicted.metrics
    assert trainer.predict(Images()).predictions.shape == (8, 2)


def test_a_trainer_makes_a_model_from_a_configuration(tmp_path):
    config = ViTMAEConfig.from_pretrained(PRETRAIN, gradient_checkpointing=True)
    model = ViTMAEForPreTraining.from_config(config)
    assert model.is_gradient_checkpointing
    assert ViTMAEModel.from_pretrained(PRETRAIN, config=config).is_gradient_checkpointing
    trainer = trainer_for(model, tmp_path, Images(), evaluate=False, max_steps=1)
    trainer.train()
    again = ViTMAEForPreTraining.from_pretrained(tmp_path / "checkpoint-1")
    assert same_weights(again, model)


def test_names_of_transformers_are_loaded_into_a_model():
    for real in (transformers.ViTMAEForPreTraining, transformers.ViTMAEModel):
        ours = {"ViTMAEForPreTraining": ViTMAEForPreTraining, "ViTMAEModel": ViTMAEModel}
        model = ours[real.__name__].from_pretrained(PRETRAIN)
        expected = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            for value in model.parameters():
                value.zero_()
        loading_info = model.load_state_dict(real.from_pretrained(PRETRAIN).state_dict())
        assert not loading_info.missing_keys
        assert not loading_info.unexpected_keys
        torch.testing.assert_close(dict(model.state_dict()), expected, rtol=0, atol=0)
        with pytest.raises(RuntimeError, match="Missing key"):
            model.load_state_dict({"vit.embeddings.cls_token": torch.zeros(1, 1, 32)})


def test_pipelines_take_models_and_image_processor():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    processor = AutoImageProcessor.from_pretrained(PRETRAIN)
    classifier = ViTForImageClassification.from_pretrained(CLASSIFIER)
    classify = transformers.pipeline(
        "image-classification", model=classifier, image_processor=processor
    )
    pixels = processor(images=image, return_tensors="pt")
    expected = classifier(**pixels).logits[0].softmax(-1).detach()
    best = classify(image, top_k=3)
    for entry in best:
        label = classifier.config.label2id[entry["label"]]
        assert entry["score"] == pytest.approx(float(expected[label]))

    encoder = ViTMAEModel.from_pretrained(PRETRAIN, mask_ratio=0.0)
    extract = transformers.pipeline(
        "image-feature-extraction", model=encoder, image_processor=processor
    )
    features = torch.tensor(extract(image))
    assert distance(features, encoder(**pixels).last_hidden_state) < FLOAT32_LIMIT


def test_a_trained_model_is_pushed(tmp_path, hub, monkeypatch):
    hub.state.accounts["hf_writer"] = Account("someone")
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    model = ViTMAEForPreTraining.from_pretrained(PRETRAIN, norm_pix_loss=True)
    options = {"push_to_hub": True, "hub_model_id": "someone/trained", "hub_strategy": "end"}
    trainer = trainer_for(model, tmp_path, Images(), evaluate=False, max_steps=1, **options)
    trainer.train()
    trainer.push_to_hub(dataset="noise")
    again = ViTMAEForPreTraining.from_pretrained("someone/trained")
    assert same_weights(again, model)
    assert again.config.norm_pix_loss
