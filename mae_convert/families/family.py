"""The interface of a model family: fields, names and methods to override.

Generic code (recognition, configuration, conversion, runs, verdicts) uses this interface and refers
to no family by name. A family is a subclass of `Family` with one instance, which
`mae_convert.families.families` returns; other packages register their families with the entry point
``mae_convert.families``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from typing import Any, ClassVar, Self

import numpy as np

from mae_convert.errors import ConfigurationError, LayoutError, Option
from mae_convert.families import keras_layouts, layout_names, transformers_fields, unknown_layout
from mae_convert.families.canonical import check_task
from mae_convert.families.clips import BILINEAR, Clips
from mae_convert.families.configuration import Configuration, Missing, check_config, missing_heads
from mae_convert.families.evidence import OFFICIAL, PREPROCESSING, Evidence, FieldValue
from mae_convert.families.official_models import Card
from mae_convert.families.pixel_patches import VARIANCE_FLOOR, Statistics, statistics_of_patches
from mae_convert.families.position_embeddings import BICUBIC, PositionTable
from mae_convert.families.transformers_fields import Classes
from mae_convert.formats import Container
from mae_convert.formats.contents import KERAS
from mae_convert.layouts.layout import Layout
from mae_convert.layouts.transforms import Schema, Shape

Fields = Mapping[str, Any]
Shapes = Mapping[str, Shape]
# Required fields that are not stored in the tensors of a masked autoencoder: for all tasks, and
# further fields for each task.
UNSPECIFIED = ("num_attention_heads", "layer_norm_eps", "hidden_act", "image_size")
UNSPECIFIED_OF_TASK: Mapping[str, tuple[str, ...]] = {
    "pretrain": ("decoder_num_attention_heads", "mask_ratio", "norm_pix_loss"),
    "encoder": ("mask_ratio",),
    "classify": (),
}
GEOMETRY = (
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
)
DECODER_FIELDS = (
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_intermediate_size",
    "decoder_num_attention_heads",
    "norm_pix_loss",
    "decoder_layer_norm_eps",
)
BICUBIC_FILTER = 3  # Pillow's number of the filter, as in preprocessor_config.json
# Two names of one function.
ACTIVATION_SYNONYMS = {"gelu_pytorch_tanh": "gelu_new", "swish": "silu"}


class Family(ABC):
    """A family of models.

    Attributes:
        name: the name of the family in reports and records, and the name of its package.
        title: a description in one line.
        configuration_class: a subclass of `reference_models.configuration.Configuration`.
        layouts: the layouts by their names on the command line.
        layout_synonyms: the names of layouts by their synonyms.
        models: for "torch", "keras" and "transformers", a mapping from the task to "module:Class"
            of the reference model or, for "transformers", of the library's model. The values are
            strings so that no framework is imported.
        model_layouts: the layout of the reference model by framework: "torch", or "keras" for both
            backends of Keras.
        native_loaders: the loaders by (name of a mapping table, framework). Each loads tensors with
            the names of the table into the framework's model without using the table (see
            `mae_convert.runtime.sides`).
        transformers_classes: the classes of transformers for each task; empty if the family has no
            layout of transformers.
        encoder_prefixes: the prefix that pre-training models have before the names of an encoder's
            tensors, by the name of the mapping table.
        official: published models, as `mae_convert.families.official_models` describes them.
        catalog_advice: purposes, names and notes of the official files, which ``mae-convert
            catalog`` prints.
        whole_checkpoints: a clause for messages about a missing decoder: which official checkpoints
            contain one.
        has_key_bias: whether attention with query and value biases also has a key bias.
        predicts_removed_only: whether the decoder predicts removed patches only.
        positions: how position embeddings are adapted to another image size: "stored" embeddings
            (`position_tables`) are resampled, "computed" embeddings are computed by the model and
            not stored; None if the size cannot be changed.
        resampling: how stored embeddings are resampled: ``BICUBIC`` or ``CORNERS_ALIGNED`` of
            `mae_convert.families.position_embeddings`.
        fixed_positions: the fixed embedding that initializes stored embeddings, named by its axes
            (a key of ``FIXED`` in `mae_convert.families.position_embeddings`); None if stored
            embeddings are initialized at random.
        may_lack_class_position: whether some programs store position embeddings without a row for
            the class token, under the names that others use for embeddings with this row.
        additional_inputs: names of possible inputs besides pixels and noise; the configuration of a
            model specifies which of them it takes.
        takes_images: whether each sample is one image, not a video or a series of images.
        card: the description for model cards; None if model cards contain only the `title`.
        clips: the preprocessing of videos or series of images; None for images.
        has_hypotheses: whether `mae_convert.diagnose` can test hypotheses by running changed
            models.
        image_processors: names of transformers' image processors with the same preprocessing,
            besides the image processors for ViT.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    configuration_class: ClassVar[type[Any]]
    layouts: Mapping[str, Layout]
    layout_synonyms: ClassVar[Mapping[str, str]] = {}
    models: ClassVar[Mapping[str, Mapping[str, str]]]
    model_layouts: ClassVar[Mapping[str, str]]
    native_loaders: ClassVar[Mapping[tuple[str, str], str]] = {}
    transformers_classes: ClassVar[Mapping[str, Classes]] = {}
    encoder_prefixes: ClassVar[Mapping[str, str]] = {}
    official: ClassVar[tuple[Any, ...]] = ()
    catalog_advice: ClassVar[tuple[tuple[tuple[str, str], ...], str] | None] = None
    whole_checkpoints: ClassVar[str] = ""
    has_key_bias: ClassVar[bool] = True
    predicts_removed_only: ClassVar[bool] = False
    may_lack_class_position: ClassVar[bool] = False
    positions: ClassVar[str | None] = None
    resampling: ClassVar[str] = BICUBIC
    fixed_positions: ClassVar[str | None] = None
    additional_inputs: ClassVar[tuple[str, ...]] = ()
    takes_images: ClassVar[bool] = False
    card: ClassVar[Card | None] = None
    clips: ClassVar[Clips | None] = None
    has_hypotheses: ClassVar[bool] = False
    image_processors: ClassVar[tuple[str, ...]] = ()

    def with_layouts(self, layouts: Iterable[Layout]) -> Self:
        """Return a copy of the family with additional layouts; existing names are not replaced."""
        family = copy(self)
        further = {row.name: row for row in layouts if row.name not in self.layouts}
        family.layouts = {**self.layouts, **further}
        return family

    # Names and shapes

    @abstractmethod
    def schema(self, config: Any, task: str) -> Schema:
        """Return the name and shape of every canonical tensor of a model, in canonical order."""

    @abstractmethod
    def geometry(self, shapes: Shapes) -> dict[str, Any]:
        """Return the configuration fields that follow from the shapes of canonical tensors.

        ``num_patches`` is added if position embeddings are stored.

        Raises:
            LayoutError: a tensor that determines a field is missing or has a wrong number of axes.
        """

    @abstractmethod
    def expected(self, geometry: Fields, task: str, names: Iterable[str]) -> Schema:
        """Return the canonical tensor names and shapes of a model with the sizes in `geometry`.

        Args:
            geometry: the result of the method `geometry`.
            task: the task of the model.
            names: the canonical names of the checkpoint's tensors, which determine the optional
                tensors.

        Raises:
            ValueError: no model has these sizes.
        """

    def position_tables(self, config: Any) -> Mapping[str, PositionTable]:
        """Return the structure of each table of position embeddings, by canonical tensor name."""
        return {}

    def layout(self, name: str) -> Layout:
        """Return a layout by its name on the command line.

        Raises:
            LayoutError: the family has no layout with this name.
        """
        name = self.layout_synonyms.get(name, name)
        if name not in self.layouts and name in layout_names():
            raise LayoutError(
                f"models of the family {self.name} cannot be written as {name}",
                hint=f"their layouts are {', '.join(self.layouts)}",
            )
        if name not in self.layouts:
            raise unknown_layout(name, self.layouts)
        return self.layouts[name]

    def model_layout(self, framework: str) -> str:
        """Return the layout of the reference model in a framework.

        Raises:
            LayoutError: the framework has no such model.
        """
        if framework not in self.model_layouts:
            raise LayoutError(
                f"{framework} has no model of the family {self.name}", hint="choose another"
            )
        return self.model_layouts[framework]

    def check_task(self, task: str, available: str) -> None:
        """Raise ConfigurationError if a checkpoint for task `available` does not suit `task`."""
        whole, heads = self.whole_checkpoints, self.has_classifiers
        check_task(task, available, whole=whole, heads=heads)

    @property
    def has_classifiers(self) -> bool:
        """Whether the family has a model for classification."""
        return any("classify" in models for models in self.models.values())

    # Related models: published models that are similar to the models of the family

    def without_decoder(
        self, shapes: Shapes
    ) -> tuple[tuple[Any, str] | None, Shapes, dict[str, str]]:
        """Separate the tensors of an unsupported decoder, so that only the encoder is read.

        Returns:
            The related model that has this decoder (see `relative`) and the name of the tensor
            that identifies it, or None if there is no unsupported decoder; the shapes of the
            remaining tensors; and the reason for dropping each dropped tensor, by name.
        """
        return None, shapes, {}

    def explain(self, shapes: Shapes, config: Fields | None, adapter: Fields | None) -> str | None:
        """Return a message that identifies a known model that is not supported.

        The result is None if the checkpoint is not of such a model.

        Args:
            shapes: the names and shapes of the checkpoint's tensors.
            config: the checkpoint's ``config.json``, or None if there is no such file.
            adapter: the checkpoint's ``adapter_config.json``, or None if there is no such file.
        """
        return None

    def relative(
        self, by_key: tuple[Any, str] | None, arguments: Fields, recorded: Any, fields: Fields
    ) -> Any:
        """Return the related model to which a checkpoint belongs, or None.

        A related model is a published model with the tensor shapes of the family, but with
        different training or preprocessing (for the image MAE, for example, AudioMAE).

        Args:
            by_key: the related model that `without_decoder` found, with the name of the tensor
                that identifies it; None if it found no related model.
            arguments: the training arguments in the checkpoint.
            recorded: the related model in the checkpoint's conversion record, or None.
            fields: the result of `geometry`, and the ``task``.
        """
        return None

    def conventions_by_names(self, names: Iterable[str]) -> Fields:
        """Return the values that all models with these tensor names have in common, by field."""
        return {}

    def unread(
        self, container: Container, layout: str, task: str, dtypes: Iterable[np.dtype]
    ) -> Iterable[str]:
        """Return fields of ``config.json`` that a library may use but mae-convert does not use.

        Args:
            container: the content of the checkpoint.
            layout: the name of the checkpoint's layout.
            task: the checkpoint's task.
            dtypes: the dtypes of the checkpoint's tensors.

        Raises:
            ConfigurationError: with this configuration, a library would compute other outputs than
                mae-convert.
        """
        config: Mapping[str, Any] = container.config or {}
        if KERAS in config:
            return keras_layouts.unknown_in_config(config[KERAS], self.configuration_class)
        if container.config_source != "config.json":
            return ()  # a configuration inside a file, which only this project reads
        if self.transformers_classes and layout.startswith("transformers"):
            transformers_fields.check_config(config, container.weights_file, dtypes)
            return transformers_fields.unknown_in_config(config, self.transformers_classes[task])
        return ()

    # Configuration

    def unspecified_fields(self, task: str) -> tuple[str, ...]:
        """Return the fields that a task needs but that are not stored in tensors."""
        frames = () if self.clips is None else ("num_frames",)
        return (*UNSPECIFIED, *frames, *UNSPECIFIED_OF_TASK[task], *PREPROCESSING)

    def optional_fields(self, task: str) -> tuple[str, ...]:
        """Return the fields whose values may be None."""
        return ("decoder_layer_norm_eps",) if task == "pretrain" else ()

    def values_of(self, name: str, task: str, evidence: Evidence) -> Iterator[FieldValue]:
        """Yield values for a field that no configuration specifies, in order of priority.

        The sources are, for example, training arguments and official models. If they yield no
        value, a convention of the layout is used.
        """
        yield FieldValue(self.argument(name, evidence), "training arguments")
        if name in ("num_attention_heads", "decoder_num_attention_heads", "image_size"):
            yield from self.of_official(name, task, evidence)

    def of_official(self, name: str, task: str, evidence: Evidence) -> Iterator[FieldValue]:
        """Yield a field's values in the official models that have the same task and sizes.

        The sizes are those in ``evidence.geometry``; the number of classes is ignored.
        """
        for official in self.official:
            model = official.model
            if official.task == task and self._has_geometry(model, task, evidence.geometry):
                source = f"official {official.model_name} with the same shapes"
                yield FieldValue(getattr(model, name), source, OFFICIAL)

    def _has_geometry(self, model: Any, task: str, geometry: Fields) -> bool:
        """Return whether a model has the sizes in `geometry`; the number of classes is ignored."""
        if any(getattr(model, n) != geometry[n] for n in ("hidden_size", "num_hidden_layers")):
            return False
        own = self.geometry(self.schema(model, task))
        return all(
            own.get(name, getattr(model, name, None)) == value
            for name, value in geometry.items()
            if name != "num_labels"
        )

    def candidates(self, model: Any, task: str) -> list[Any]:
        """Return the official files whose tensors have the names and shapes of a model's tensors.

        Args:
            model: the configuration of the model.
            task: the task of the model and of the official files.
        """
        files = [o for o in self.official if o.task == task and o.file]
        shapes = self.schema(model, task) if files else {}
        return [o for o in files if self.schema(o.model, task) == shapes]

    def argument(self, name: str, evidence: Evidence) -> Any:
        """Return the value of a field in the training arguments of a checkpoint.

        The result is None if the arguments do not contain the field.
        """
        return None

    def missing(self, name: str, evidence: Evidence) -> Missing:
        """Return the description of a missing field.

        Args:
            name: the name of the field.
            evidence: the evidence about the fields of the checkpoint.
        """
        return missing_heads(name, evidence)

    def placeholder(self, name: str, evidence: Evidence) -> Any:
        """Return a valid value for a missing field; it must not be used for computations."""
        return 1

    def check(self, task: str, evidence: Evidence) -> None:
        """Raise an error if sources of fields contradict each other.

        Raises:
            ConfigurationError: two sources of the evidence contradict each other.
        """
        check_config(task, evidence)

    def derived(self, values: Fields, evidence: Evidence) -> dict[str, Any]:
        """Return the values of fields that follow from other fields, by name.

        Args:
            values: all resolved fields by name, with ``image_mean`` and ``image_std``.
            evidence: the available evidence, such as tensor shapes and the stored configuration.
        """
        return {}

    def function_fields(self, model: Any, task: str) -> dict[str, Any]:
        """Return the values of the fields that affect the outputs and do not follow from tensors.

        Dropout (inactive in evaluation), the mask ratio (an argument of a run), and mean and
        standard deviation of pixels (part of the preprocessing) are not included.
        """
        fields = {
            "hidden_act": ACTIVATION_SYNONYMS.get(model.hidden_act, model.hidden_act),
            "image_size": model.image_hw,
            "layer_norm_eps": float(model.layer_norm_eps),
            "num_attention_heads": model.num_attention_heads,
        }
        if task == "pretrain":
            fields["decoder_layer_norm_eps"] = float(model.decoder_eps)
            fields["decoder_num_attention_heads"] = model.decoder_num_attention_heads
            fields["norm_pix_loss"] = model.norm_pix_loss
        if self.clips is not None:
            fields["num_frames"] = model.num_frames
        return fields

    def compared_fields(self, tasks: set[str]) -> tuple[str, ...]:
        """Return the configuration fields that a verification compares, in the order of a report.

        Args:
            tasks: the tasks of the two sides.
        """
        fields: tuple[str, ...] = (*GEOMETRY, "num_attention_heads", "layer_norm_eps", "hidden_act")
        if tasks == {"pretrain"}:
            fields += DECODER_FIELDS
        return (*fields, "mask_ratio") if tasks <= {"pretrain", "encoder"} else fields

    def new_head_fields(self, model: Any, num_labels: int) -> dict[str, Any]:
        """Return the new values of the fields that change when an encoder gets a classifier head.

        Args:
            model: the configuration of the encoder.
            num_labels: number of classes of the head.

        Raises:
            ConfigurationError: the family has no classifiers.
        """
        if not self.has_classifiers:
            raise ConfigurationError(
                f"models of the family {self.name} have no classifier head",
                hint=("leave out ", Option("num_labels")),
            )
        return {"num_labels": num_labels}

    def pooling_in_words(self, model: Any) -> str:
        """Return a description of the input of a classifier's head."""
        return "the mean of all patches"

    def target_in_words(self, model: Any) -> str:
        """Return instructions for converting a predicted patch to pixels, as a sentence."""
        pixels = "image_std and image_mean convert them to pixel values"
        if not model.norm_pix_loss:
            return f"predicts pixels that are not normalized per patch; {pixels}"
        return (
            "predicts patches normalized by their own mean and standard deviation: to display a "
            "patch, multiply it by the standard deviation of the original patch (sqrt(unbiased "
            "variance + 1e-6)) and add the mean of the original patch (the model predicts neither "
            f"of them); then {pixels}"
        )

    def warnings(self, configuration: Configuration, layout: str) -> Iterable[str]:
        """Return warnings about a configuration.

        Args:
            configuration: the configuration with the sources of its fields.
            layout: the layout of the file.
        """
        return ()

    def warnings_of_values(self, statistics: Mapping[str, Mapping[str, float]]) -> Iterable[str]:
        """Return warnings about the values of tensors.

        Args:
            statistics: numbers such as ``min`` and ``max`` for each tensor, by canonical name.
        """
        return ()

    # Runs

    def noise(self, config: Any, batch: int, generator: "np.random.Generator") -> np.ndarray:
        """Return noise (batch, L) float32 whose values are all distinct."""
        patches = config.num_patches
        ranks = generator.permuted(np.tile(np.arange(patches), (batch, 1)), axis=1)
        return ((ranks + 0.5) / patches).astype(np.float32)

    def additional_shapes(self, config: Any) -> Mapping[str, Shape]:
        """Return the shape of one sample of each input besides pixels and noise, by name."""
        return {}

    def draw_additional(
        self, config: Any, batch: int, generator: "np.random.Generator"
    ) -> dict[str, np.ndarray]:
        """Return random float32 values (batch, ...) for inputs besides pixels and noise, by name.

        Args:
            config: the configuration of the model.
            batch: the number of images or clips.
            generator: the random number generator.
        """
        return {}

    def prediction_shapes(self, config: Any) -> tuple[int, tuple[int, ...]]:
        """Return the number of values of a predicted patch, and the shape of a reconstruction."""
        return int(config.patch_dim), tuple(config.pixel_shape)

    def decoder_tokens(self, config: Any) -> int | None:
        """Return the number of tokens of the decoder, or None if it depends on the mask."""
        return 1 + int(config.num_patches)

    # Model cards

    def about(self) -> Card:
        """Return the description of the family for a model card."""
        return self.card or Card(self.title[:1].upper() + self.title[1:], "", (self.name,))

    def inputs_in_words(self, model: Any) -> str:
        """Return a phrase about the inputs of a model, capitalised to begin a sentence."""
        (height, width), patch = model.image_hw, " x ".join(map(str, model.patch_shape))
        frames = "" if self.clips is None else f"{model.num_frames} frames of "
        return (
            f"{'Images' if self.clips is None else 'Clips'} of {frames}{height} x {width} pixels"
            f" with {model.num_channels} channels, patches of {patch}"
        )

    def official_like(self, model: Any, task: str) -> tuple[str, str] | None:
        """Return a description of the official weights of which a model may be a copy.

        Returns:
            The description and the licence of the weights; None if there are no such weights.
        """
        licences = self.about().licences
        return next(iter(licences.items()), None)

    # Pixels

    def preprocessing(self, model: Any, settings: Fields) -> dict[str, Any]:
        """Return the default fields of ``preprocessor_config.json``, except mean and std.

        The caller replaces these fields by the settings of the checkpoint, if there are any.

        Args:
            model: the configuration.
            settings: the settings of the checkpoint. If they include a crop, the fields are for
                BitImageProcessor, because ViTImageProcessor cannot crop in transformers 4.
        """
        if self.clips is not None:
            return self.clips.preprocessing(model.image_hw)
        crops = settings.get("do_center_crop") or "shortest_edge" in (settings.get("size") or ())
        height, width = model.image_hw
        return {
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_processor_type": "BitImageProcessor" if crops else "ViTImageProcessor",
            "resample": BILINEAR
            if settings
            else BICUBIC_FILTER,  # the default of readers of the file
            "rescale_factor": 1 / 255,
            "size": {"height": height, "width": width},
        }

    @property
    def colours(self) -> tuple[int, int, int]:
        """The indices of the red, green and blue channels of an input."""
        return self.clips.colours if self.clips is not None else (0, 1, 2)

    def prediction(self, config: Any) -> Any:
        """Return an object with the sizes of the images or videos that a decoder predicts.

        The object has the attributes of `reference_models.configuration.base.PatchGeometry`.
        """
        return config

    def predicted_pixels(self, pixel_values: np.ndarray, config: Any) -> np.ndarray:
        """Return the part of inputs (N, C, [T,] H, W) that a decoder predicts."""
        return pixel_values

    def predicted_frames(self, config: Any) -> tuple[int, ...]:
        """Return the indices of the predicted frames of a clip."""
        return tuple(range(config.num_frames))

    def target_statistics(self, pixels: np.ndarray, config: Any) -> Statistics:
        """Return the mean and the deviation that convert a prediction to pixels.

        Args:
            pixels: the result of `predicted_pixels`, (N, C, [T,] H, W).
            config: the configuration of the model.

        Returns:
            Mean and deviation, float64, that broadcast to the result of
            `mae_convert.families.pixel_patches.cut`: prediction x deviation + mean are pixels that
            are normalized like the inputs.
        """
        if not config.norm_pix_loss:
            return np.float64(0), np.float64(1)  # type: ignore[return-value]
        shapes = self.prediction(config)
        mean, variance = statistics_of_patches(pixels, shapes, per_channel=False)
        return mean, np.sqrt(variance + VARIANCE_FLOOR)

    def ratio_that_keeps(self, visible: int, config: Any) -> float:
        """Return a mask ratio that leaves ``visible`` patches of an input visible."""
        return 0.0 if visible == config.num_patches else 1 - (visible + 0.5) / config.num_patches

    def features(self, hidden: np.ndarray, config: Any) -> dict[str, np.ndarray]:
        """Split the output of an encoder, which was run without masking, into features.

        Args:
            hidden: the output (N, tokens, D).
            config: the configuration of the model.

        Returns:
            ``tokens`` (N, L, D), the features of the L patches, and ``cls`` (N, D), the features
            of the class token, if the encoder has a class token.
        """
        first = hidden.shape[1] - config.num_patches
        tokens = {"tokens": hidden[:, first:]}
        return {"cls": hidden[:, 0], **tokens} if first == 1 else tokens
