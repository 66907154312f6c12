"""The image MAE (He et al. 2021, arXiv:2111.06377) as a family of models."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mae_convert.families.canonical import BATCH_NORM
from mae_convert.families.configuration import Missing, check_config
from mae_convert.families.evidence import PREPROCESSING, Evidence, FieldValue
from mae_convert.families.family import UNSPECIFIED, UNSPECIFIED_OF_TASK, Family, Fields, Shapes
from mae_convert.families.mae import fields, relatives
from mae_convert.families.mae.layouts import LAYOUTS, timm_fields
from mae_convert.families.mae.model_classes import PYTORCH_CLASSES, TENSORFLOW_CLASSES
from mae_convert.families.mae.official import ADVICE, CARD, LICENSE, OFFICIAL, Official, candidates
from mae_convert.families.mae.schema import batch_norm_schema, geometry, schema
from mae_convert.families.mae.training_arguments import conventions_by_names
from mae_convert.families.position_embeddings import POSITION_EMBEDDINGS, PositionTable
from mae_convert.families.transformers_fields import Classes
from mae_convert.formats import Container
from mae_convert.formats.contents import KERAS
from mae_convert.layouts.transforms import Schema
from reference_models.configuration import ViTMAEConfig

KERAS_BACKENDS = ("tensorflow", "jax")
LAYOUT_SYNONYMS = {"original": "facebook"}
MODELS = {
    framework: {task: f"{module}:{name}" for task, name in classes.items()}
    for framework, module, classes in (
        ("torch", "reference_models.pytorch.mae", PYTORCH_CLASSES),
        ("keras", "reference_models.keras.mae", TENSORFLOW_CLASSES),
        ("transformers", "transformers", PYTORCH_CLASSES),
    )
}
# An encoder may be read from a file of a model for another task.
TRANSFORMERS_CLASSES = {
    "pretrain": Classes(("vit_mae",), (PYTORCH_CLASSES["pretrain"],)),
    "encoder": Classes(
        ("vit_mae", "vit"), (*PYTORCH_CLASSES.values(), "ViTModel", "ViTForMaskedImageModeling")
    ),
    "classify": Classes(("vit",), (PYTORCH_CLASSES["classify"],)),
}
MODEL_LAYOUTS = {
    "torch": "facebook",
    "keras": "keras",
    "transformers": "transformers",
    "timm": "timm",
}
NATIVE_LOADERS: Mapping[tuple[str, str], str] = {
    ("facebook", "torch"): "facebook",
    ("timm", "torch"): "facebook",  # the tables with the names of the original code
    **{("transformers-tf", f): "transformers-tf" for f in KERAS_BACKENDS},
    **{
        ("transformers-tf, names without a model prefix", f): "transformers-tf, shards"
        for f in KERAS_BACKENDS
    },
    **{("transformers, names of version 4", f): "transformers" for f in KERAS_BACKENDS},
    **{("keras", f): "keras" for f in KERAS_BACKENDS},
    ("transformers, names of version 4", "transformers"): "transformers",
    ("transformers, names saved by version 5", "transformers"): "transformers",
    ("transformers-tf", "transformers"): "transformers-tf",
    ("timm", "timm"): "timm",
}


class ImageMAE(Family):
    """Masked autoencoders of images, and classifiers fine-tuned from them."""

    name = "mae"
    title = "masked autoencoders of images (He et al. 2021)"
    configuration_class = ViTMAEConfig
    layouts = LAYOUTS
    layout_synonyms = LAYOUT_SYNONYMS
    models = MODELS
    model_layouts = MODEL_LAYOUTS
    native_loaders = NATIVE_LOADERS
    transformers_classes = TRANSFORMERS_CLASSES
    official = OFFICIAL
    catalog_advice = ADVICE
    whole_checkpoints = (
        "full checkpoints with the decoder are facebook/vit-mae-* on the Hub, and the files named "
        "mae_visualize_vit_*.pth or *_full.pth at https://github.com/facebookresearch/mae"
    )
    positions = "stored"
    fixed_positions = "rows and columns"
    may_lack_class_position = True
    card = CARD
    takes_images = True
    has_hypotheses = True

    def position_tables(self, config: ViTMAEConfig) -> Mapping[str, PositionTable]:
        """Return the structure of each position embedding that is stored, by canonical name."""
        return dict.fromkeys(POSITION_EMBEDDINGS, PositionTable())

    def schema(self, config: ViTMAEConfig, task: str) -> Schema:
        """Return the name and shape of every canonical tensor."""
        return schema(config, task)

    def geometry(self, shapes: Shapes) -> dict[str, Any]:
        """Return the configuration fields that follow from the shapes of canonical tensors."""
        return geometry(shapes)

    def expected(self, geometry: Fields, task: str, names: Iterable[str]) -> Schema:
        """Return the canonical tensor names and shapes of a model with the sizes in `geometry`.

        ``names`` are the canonical names of the checkpoint's tensors. The tensors of a batch norm
        before the head are included if ``names`` contains such tensors.
        """
        left_out = ("num_patches", "num_attention_heads")
        fixed = {name: value for name, value in geometry.items() if name not in left_out}
        patch = geometry["patch_size"]
        height, width = (patch, patch) if isinstance(patch, int) else patch
        config = ViTMAEConfig(
            **fixed,
            image_size=(geometry["num_patches"] * height, width),
            num_attention_heads=1,
            decoder_num_attention_heads=1,
        )
        probe = any(name.startswith(BATCH_NORM) for name in names)
        return schema(config, task) | (batch_norm_schema(config.hidden_size) if probe else {})

    def candidates(self, model: ViTMAEConfig, task: str) -> list[Official]:
        """Return the official files whose tensors have the names and shapes of a model's tensors.

        See `Family.candidates`.
        """
        return candidates(model, task)

    def without_decoder(
        self, shapes: Shapes
    ) -> tuple[tuple[Any, str] | None, Shapes, dict[str, str]]:
        """Separate the tensors of an unsupported decoder; see `Family.without_decoder`."""
        return relatives.without_decoder(shapes)

    def explain(self, shapes: Shapes, config: Fields | None, adapter: Fields | None) -> str | None:
        """Return a message that identifies an unsupported model, or None; see `Family.explain`."""
        return relatives.explain(shapes, config, adapter)

    def relative(
        self, by_key: tuple[Any, str] | None, arguments: Fields, recorded: Any, fields: Fields
    ) -> Any:
        """Return the related model that a checkpoint belongs to, or None; see `Family.relative`."""
        return relatives.name_relative(by_key, arguments, recorded, fields)

    def conventions_by_names(self, names: Iterable[str]) -> Fields:
        """Return the fields that are equal in all models with these tensor names, with values."""
        return conventions_by_names(list(names))

    def unread(
        self, container: Container, layout: str, task: str, dtypes: Iterable[np.dtype]
    ) -> Iterable[str]:
        """Return fields of ``config.json`` that a library may use but mae-convert does not use.

        See `Family.unread` for the arguments.
        """
        config = container.config or {}
        beside = container.config_source == "config.json" and KERAS not in config
        if beside and layout == "timm" and "architecture" in config:
            return timm_fields.unknown_in_config(config)
        return super().unread(container, layout, task, dtypes)

    def unspecified_fields(self, task: str) -> tuple[str, ...]:
        """Return the fields that a task needs but that are not stored in tensors."""
        pooling = ("global_pool",) if task == "classify" else ()
        return (*UNSPECIFIED, *UNSPECIFIED_OF_TASK[task], *pooling, *PREPROCESSING)

    def values_of(self, name: str, task: str, evidence: Evidence) -> Iterator[FieldValue]:
        """Yield the values that ``evidence`` gives for a field, in order of priority.

        See `Family.values_of`.
        """
        return fields.values_of(name, evidence, self.of_official(name, task, evidence))

    def missing(self, name: str, evidence: Evidence) -> Missing:
        """Return the description of a field without a value.

        The description says why ``evidence`` gives no value, and how to specify a value.
        """
        return fields.missing(name, evidence)

    def placeholder(self, name: str, evidence: Evidence) -> Any:
        """Return a valid value for a missing field; it must not be used for computations."""
        return fields.placeholder(name, evidence)

    def check(self, task: str, evidence: Evidence) -> None:
        """Refuse a configuration that contradicts the tensors."""
        check_config(task, evidence)
        fields.check_pooling(task, evidence)
        size = evidence.flags.get("image_size") or evidence.config_value("image_size")
        if size is not None:
            fields.check_image_size(size, evidence)
            fields.check_position_tables(size, evidence)

    def derived(self, values: Fields, evidence: Evidence) -> dict[str, Any]:
        """Return ``fc_norm`` for a pooled classifier, and no fields for other models.

        The value is False if there are no ``fc_norm`` tensors: the model then applies its final
        norm before the pooling.
        """
        if values.get("global_pool") != "avg":
            return {}
        return {"fc_norm": None if "global_pool" in evidence.geometry else False}

    def function_fields(self, model: ViTMAEConfig, task: str) -> dict[str, Any]:
        """Return the fields that change the model's outputs and do not follow from its tensors."""
        pooling = {"global_pool": model.global_pool} if task == "classify" else {}
        return {**super().function_fields(model, task), **pooling}

    def official_like(self, model: ViTMAEConfig, task: str) -> tuple[str, str] | None:
        """Return a description of the official files that have a model's tensor names and shapes.

        Returns:
            The description and the licence of the files; None if there are no such files.
        """
        names = " or ".join(official.file for official in candidates(model, task))
        return (f"{names}, with the same tensor names and shapes", LICENSE) if names else None

    def new_head_fields(self, model: Any, num_labels: int) -> dict[str, Any]:
        """Return the new values of the fields that change when an encoder gets a head, by name."""
        fields = super().new_head_fields(model, num_labels)
        return {**fields, "global_pool": "token", "fc_norm": None}

    def pooling_in_words(self, model: ViTMAEConfig) -> str:
        """Return a description of the input of a classifier's head."""
        return "the class token" if model.global_pool == "token" else "the mean of all patches"

    def compared_fields(self, tasks: set[str]) -> tuple[str, ...]:
        """Return the configuration fields that a verification of ``tasks`` compares, in order."""
        classifier = ("global_pool", "num_labels", "fc_norm") if tasks == {"classify"} else ()
        return (*super().compared_fields(tasks), *classifier)


MAE = ImageMAE()
