"""The model family VideoMAE (Tong et al. 2022, arXiv:2203.12602; version 2: arXiv:2303.16727)."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from mae_convert.families.clips import EVEN, Clips
from mae_convert.families.configuration import Configuration
from mae_convert.families.evidence import Evidence
from mae_convert.families.family import Family, Fields, Shapes
from mae_convert.families.pixel_patches import Statistics, of_channels, statistics_of_patches
from mae_convert.families.transformers_fields import Classes
from mae_convert.families.videomae import schema as canonical
from mae_convert.families.videomae.layouts import LAYOUTS
from mae_convert.families.videomae.layouts.keras import CLASSES as KERAS_CLASSES
from mae_convert.families.videomae.layouts.transformers import ARCHITECTURES
from mae_convert.families.videomae.layouts.transformers import FIELDS as OF_TRANSFORMERS
from mae_convert.families.videomae.official import CARD, OFFICIAL
from mae_convert.layouts.config_fields import READ
from mae_convert.layouts.transforms import Schema
from reference_models.configuration import VideoMAEConfig

MODELS: Mapping[str, Mapping[str, str]] = {
    "torch": {
        "pretrain": "reference_models.pytorch.videomae:VideoMAEForPreTraining",
        "encoder": "reference_models.pytorch.videomae:VideoMAEModel",
        "classify": "reference_models.pytorch.videomae:VideoMAEForVideoClassification",
    },
    "keras": KERAS_CLASSES,
    "transformers": {task: f"transformers:{name}" for task, name in ARCHITECTURES.items()},
}
MODEL_LAYOUTS = {"torch": "original", "keras": "keras", "transformers": "transformers"}
NATIVE_LOADERS = {
    ("videomae", "torch"): "facebook",
    ("videomae, fine-tuned", "torch"): "facebook",
    ("videomae, keras", "tensorflow"): "keras",
    ("videomae, keras", "jax"): "keras",
    ("videomae, transformers", "transformers"): "transformers-video",
}
READ_FIELDS = dict.fromkeys((*OF_TRANSFORMERS, "qv_bias"), READ)
TRANSFORMERS_CLASSES = {
    "pretrain": Classes(("videomae",), (ARCHITECTURES["pretrain"],), READ_FIELDS),
    "encoder": Classes(("videomae",), tuple(ARCHITECTURES.values()), READ_FIELDS),
    "classify": Classes(("videomae",), (ARCHITECTURES["classify"],), READ_FIELDS),
}
# Names of the authors' factory functions, which their programs store in checkpoints.
FACTORY = re.compile(r"(pretrain_videomae|vit)_(small|base|large|huge|giant)_patch\d+_\d+")
HEADS = {"small": (384, 6), "base": (768, 12), "large": (1024, 16), "huge": (1280, 16)}
HEADS["giant"] = (1408, 16)
ARGUMENTS: Mapping[str, tuple[str, type]] = {
    "image_size": ("input_size", int),
    "num_frames": ("num_frames", int),
    "mask_ratio": ("mask_ratio", float),
    "norm_pix_loss": ("normlize_target", bool),
}
LIKE = "as in the authors' pre-training on Kinetics-400 (on Something-Something V2, one frame in 2)"
DEVIATION_FLOOR = 1e-6


class VideoMAE(Family):
    """Masked autoencoders of videos with tube masks, and classifiers fine-tuned from them."""

    name = "videomae"
    title = "VideoMAE, masked autoencoders of videos (Tong et al. 2022)"
    configuration_class = VideoMAEConfig
    layouts = LAYOUTS
    models = MODELS
    model_layouts = MODEL_LAYOUTS
    native_loaders = NATIVE_LOADERS
    transformers_classes = TRANSFORMERS_CLASSES
    encoder_prefixes: ClassVar[Mapping[str, str]] = {"videomae": "encoder."}
    official = OFFICIAL
    has_key_bias = False
    predicts_removed_only = True
    positions = "computed"
    card = CARD
    clips = Clips(EVEN, LIKE, stride=4)
    image_processors = ("VideoMAEImageProcessor", "VideoMAEFeatureExtractor")

    def schema(self, config: VideoMAEConfig, task: str) -> Schema:
        """Return the name and shape of every canonical tensor of a model, in canonical order."""
        return canonical.schema(config, task)

    def geometry(self, shapes: Shapes) -> dict[str, Any]:
        """Return the configuration fields that follow from the tensors' shapes."""
        return canonical.geometry(shapes)

    def expected(self, geometry: Fields, task: str, names: Iterable[str]) -> Schema:
        """Return the canonical tensor names and shapes of a model with the sizes in `geometry`.

        See `Family.expected`.
        """
        return canonical.expected(geometry, task, names)

    def argument(self, name: str, evidence: Evidence) -> Any:
        """Return the value of a field in the training arguments, or None if it is missing."""
        stored = evidence.training_args
        if name == "num_attention_heads":
            match = FACTORY.fullmatch(str(stored.get("model", "")))
            width, heads = HEADS[match[2]] if match else (0, 0)
            return heads if width == evidence.geometry["hidden_size"] else None
        argument, kind = ARGUMENTS.get(name, ("", int))
        value = stored.get(argument)
        return value if type(value) is kind else None

    def derived(self, values: Fields, evidence: Evidence) -> dict[str, Any]:
        """Return fields that follow from other fields and from the tensors."""
        scale = evidence.config.get("layer_scale_init_value") or 1e-5
        fields: dict[str, Any] = {
            "layer_scale_init_value": scale if evidence.geometry["layer_scale"] else 0.0,
            "image_mean": values["image_mean"],
            "image_std": values["image_std"],
        }
        if "use_mean_pooling" not in evidence.geometry:
            fields["use_mean_pooling"] = False  # pre-training models have the encoder's norm
        return fields

    def function_fields(self, model: VideoMAEConfig, task: str) -> dict[str, Any]:
        """Return the fields that change the model's outputs and do not follow from its tensors."""
        fields = super().function_fields(model, task)
        if task == "pretrain":
            fields["decoder_norm_eps"] = float(model.decoder_norm_eps)
        if task == "classify" and model.use_mean_pooling:
            fields["fc_norm_eps"] = float(model.fc_norm_eps)
        return fields

    def new_head_fields(self, model: VideoMAEConfig, num_labels: int) -> dict[str, Any]:
        """Return the new values of the fields that change when an encoder gets a classifier head.

        The input of the head is the mean of all tokens, as in the authors' fine-tuning, because
        there is no class token.
        """
        return {**super().new_head_fields(model, num_labels), "use_mean_pooling": True}

    def compared_fields(self, tasks: set[str]) -> tuple[str, ...]:
        """Return the configuration fields that a verification of ``tasks`` compares, in order."""
        fields = (*super().compared_fields(tasks), "num_frames", "tubelet_size")
        if tasks == {"classify"}:
            fields += ("num_labels", "use_mean_pooling")
        return (*fields, "final_layer_norm_eps") if tasks != {"encoder"} else fields

    def warnings(self, configuration: Configuration, layout: str) -> Iterator[str]:
        """Return warnings about a configuration."""
        model = configuration.model
        if (model.hidden_size, model.num_attention_heads) == (384, 16):
            yield (
                "the model has 16 attention heads, as in the small models that transformers'"
                " conversion script wrote; the authors' small model has 6 attention heads and"
                " therefore computes a different function"
                + ("" if layout == "transformers" else "; if this is their model, specify 6 heads")
            )

    def warnings_of_values(self, statistics: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
        """Yield a warning if the biases of queries and values are zero in every block.

        See `Family.warnings_of_values` for the argument.
        """
        biases = [s for n, s in statistics.items() if n.endswith((".q.bias", ".v.bias"))]
        if biases and all(s["min"] == s["max"] == 0 for s in biases):
            yield (
                "the biases of queries and values are zero in every block: transformers from"
                " version 5.0 until its pull request 48675 loaded these biases as zeros and saved"
                " the zeros; if it saved this file, use the file from which it loaded the model"
            )

    def noise(self, config: VideoMAEConfig, batch: int, generator: "np.random.Generator") -> Any:
        """Return noise (batch, L) that removes the same patches at every time step.

        The values for a video are all distinct. The patches with the lowest noise remain visible.
        """
        time, rows, columns = config.grid_shape
        patches, total = rows * columns, config.num_patches
        ranks = generator.permuted(np.tile(np.arange(patches), (batch, 1)), axis=1)
        by_time = ranks[:, None, :] * time + np.arange(time)[:, None]  # (N, time, patches)
        return ((by_time.reshape(batch, total) + 0.5) / total).astype(np.float32)

    def target_statistics(self, pixels: np.ndarray, config: VideoMAEConfig) -> Statistics:
        """Return the mean and the deviation with which predictions are converted to pixels.

        Like the inputs of the model, the pixels ``prediction * deviation + mean`` are normalized
        with the image mean and std of the configuration. The predictions themselves are pixels
        from 0 to 1 or, with ``norm_pix_loss``, pixels that are normalized separately for each
        channel of a patch.
        """
        center, scale = (of_channels(v, config) for v in (config.pixel_mean, config.pixel_std))
        if not config.norm_pix_loss:
            return -center / scale, 1 / scale
        mean, variance = statistics_of_patches(pixels, config, per_channel=True)
        # Statistics of pixels from 0 to 1: mean x scale + center is their mean.
        return mean, np.sqrt(variance) + DEVIATION_FLOOR / scale

    def ratio_that_keeps(self, visible: int, config: VideoMAEConfig) -> float:
        """Return a mask ratio with which `visible` patches remain visible."""
        time, rows, columns = config.grid_shape
        patches, of_time = rows * columns, visible // time
        return 0.0 if of_time == patches else (patches - of_time + 0.5) / patches

    def decoder_tokens(self, config: VideoMAEConfig) -> int | None:
        """Return None: the number of tokens of the decoder is not fixed.

        The decoder's last norm gets only the removed patches, whose number depends on the mask.
        """
        return None

    def pooling_in_words(self, model: VideoMAEConfig) -> str:
        """Return a description of the input of a classifier's head."""
        return "the mean of all patches" if model.use_mean_pooling else "the first patch"

    def target_in_words(self, model: VideoMAEConfig) -> str:
        """Return instructions for converting a predicted patch to pixels, as a sentence."""
        if not model.norm_pix_loss:
            return "removed patches are predicted as pixel values from 0 to 1"
        return (
            "the predictions of removed patches are normalized separately for each channel: to"
            " display a patch, multiply each channel by its standard deviation in the original"
            " patch, sqrt(unbiased variance) + 1e-6, and add its mean in the original patch (the"
            " model predicts neither of them); the results are pixel values from 0 to 1"
        )


VIDEOMAE = VideoMAE()
