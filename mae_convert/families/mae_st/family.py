"""MAE-ST (Feichtenhofer et al. 2022, arXiv:2205.09113) as a family of models."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mae_convert.errors import ConfigurationError
from mae_convert.families.canonical import square_grid
from mae_convert.families.checkpoint_options import named
from mae_convert.families.clips import SPREAD, Clips
from mae_convert.families.configuration import Missing, missing_heads
from mae_convert.families.evidence import SQUARE, Evidence, FieldValue
from mae_convert.families.family import Family, Fields, Shapes
from mae_convert.families.mae_st import schema as canonical
from mae_convert.families.mae_st.layouts import LAYOUTS
from mae_convert.families.mae_st.layouts.keras import CLASSES
from mae_convert.families.mae_st.official import CARD, OFFICIAL
from mae_convert.families.position_embeddings import PositionTable
from mae_convert.layouts.transforms import Schema
from reference_models.configuration import MAESTConfig

MODELS: Mapping[str, Mapping[str, str]] = {
    "torch": {
        "pretrain": "reference_models.pytorch.mae_st:MAESTForPreTraining",
        "encoder": "reference_models.pytorch.mae_st:MAESTModel",
        "classify": "reference_models.pytorch.mae_st:MAESTForVideoClassification",
    },
    "keras": CLASSES,
}
MODEL_LAYOUTS = {"torch": "original", "keras": "keras"}
NATIVE_LOADERS = {
    **{(table.name, "torch"): "facebook" for table in LAYOUTS["original"].tables},
    **{(t.name, f): "keras" for t in LAYOUTS["keras"].tables for f in ("tensorflow", "jax")},
}
# The arguments in the authors' training programs and in the official files, by field.
ARGUMENTS: Mapping[str, tuple[str, type]] = {
    "mask_ratio": ("mask_ratio", float),
    "norm_pix_loss": ("norm_pix_loss", bool),
    "num_frames": ("num_frames", int),
}
LIKE = "as in the authors' pre-training on Kinetics"


class MAEST(Family):
    """Spatio-temporal masked autoencoders, and classifiers that are fine-tuned from them."""

    name = "mae_st"
    title = "MAE-ST, spatio-temporal masked autoencoders (Feichtenhofer et al. 2022)"
    configuration_class = MAESTConfig
    layouts = LAYOUTS
    models = MODELS
    model_layouts = MODEL_LAYOUTS
    native_loaders = NATIVE_LOADERS
    official = OFFICIAL
    positions = "stored"
    card = CARD
    clips = Clips(SPREAD, LIKE, stride=4, frame_rate=30)
    has_key_bias = False  # query, key and value all have biases, or none of them

    def position_tables(self, config: MAESTConfig) -> Mapping[str, PositionTable]:
        """Return the structure of each position embedding that is resampled, by canonical name.

        If patches and time steps have separate position embeddings, the embeddings of the patches
        are resampled as in an image model (the authors' program does not resample them). Joint
        position embeddings are resampled for each time step.
        """
        if config.sep_pos_embed:
            kind, table = "spatial", PositionTable(first=0)
        else:
            kind, table = "joint", PositionTable(config.class_tokens, config.grid_shape[0])
        return {f"{part}.{kind}_position_embedding": table for part in ("encoder", "decoder")}

    def schema(self, config: MAESTConfig, task: str) -> Schema:
        """Return the name and shape of every canonical tensor of a model, in canonical order."""
        return canonical.schema(config, task)

    def geometry(self, shapes: Shapes) -> dict[str, Any]:
        """Return the configuration fields that follow from the tensors' shapes."""
        return canonical.geometry(shapes)

    def expected(self, geometry: Fields, task: str, names: Iterable[str]) -> Schema:
        """Return the canonical tensor names and shapes of a model with the sizes in `geometry`.

        See `Family.expected`.
        """
        return canonical.expected(geometry, task)

    def values_of(self, name: str, task: str, evidence: Evidence) -> Iterator[FieldValue]:
        """Yield the values that ``evidence`` gives for a field, in order of priority.

        See `Family.values_of`.
        """
        yield from super().values_of(name, task, evidence)
        if name == "image_size" and (grid := square_grid(_patches_per_time(evidence))):
            patch = evidence.geometry["patch_size"]
            height, width = (patch, patch) if isinstance(patch, int) else patch
            size = (grid[0] * height, grid[1] * width)
            yield FieldValue(size[0] if size[0] == size[1] else size, "square grid", SQUARE)

    def argument(self, name: str, evidence: Evidence) -> Any:
        """Return the value of a field in the training arguments, or None if it is missing."""
        argument, kind = ARGUMENTS.get(name, ("", int))
        value = evidence.training_args.get(argument)
        return value if type(value) is kind else None

    def missing(self, name: str, evidence: Evidence) -> Missing:
        """Return the description of a missing field."""
        if name != "image_size":
            return missing_heads(name, evidence)
        reason = f"{_patches_per_time(evidence)} patches per time step do not form a square grid"
        return Missing(name, "the image size", named(name), reason)

    def placeholder(self, name: str, evidence: Evidence) -> Any:
        """Return a valid value for a missing field; it must not be used for computations."""
        if name != "image_size":
            return 1
        patch = evidence.geometry["patch_size"]
        height, width = (patch, patch) if isinstance(patch, int) else patch
        return _patches_per_time(evidence) * height, width

    def derived(self, values: Fields, evidence: Evidence) -> dict[str, Any]:
        """Return the number of predicted frames; check the image size and the number of frames.

        Raises:
            ConfigurationError: the image size and the number of frames result in a number of
                patches that differs from the number of position embeddings.
        """
        measured, frames = evidence.geometry, values["num_frames"]
        size, patch = values["image_size"], measured["patch_size"]
        sides = zip(*((s, s) if isinstance(s, int) else s for s in (size, patch)), strict=True)
        rows, columns = (side // length for side, length in sides)
        steps = frames // measured["tubelet_size"]
        patches = measured.get("num_patches", measured.get("spatial_patches", 0) * steps)
        if rows * columns * steps != patches:
            raise ConfigurationError(
                f"an image size of {size} and {frames} frames result in {rows * columns * steps}"
                f" patches, but the tensors have position embeddings for {patches} patches",
                hint="specify the image size and the number of frames of the training",
            )
        if "predicted_length" not in measured:
            return {}
        predicted = measured["predicted_length"] * frames // measured["tubelet_size"]
        return {"pred_t_dim": None if predicted == frames else predicted}

    def compared_fields(self, tasks: set[str]) -> tuple[str, ...]:
        """Return the configuration fields that a verification of ``tasks`` compares, in order."""
        own = ("num_frames", "tubelet_size", "sep_pos_embed", "cls_embed")
        more = {"pretrain": ("pred_t_dim",), "classify": ("num_labels",)}
        task = next(iter(tasks)) if len(tasks) == 1 else ""
        return (*super().compared_fields(tasks), *own, *more.get(task, ()))

    def prediction_shapes(self, config: MAESTConfig) -> tuple[int, tuple[int, ...]]:
        """Return the number of values of a predicted patch, and the shape of a reconstruction."""
        return config.prediction.patch_dim, config.prediction.pixel_shape

    def prediction(self, config: MAESTConfig) -> Any:
        """Return the sizes of the predicted videos, which may have fewer frames than the input.

        See `Family.prediction`.
        """
        return config.prediction

    def predicted_frames(self, config: MAESTConfig) -> tuple[int, ...]:
        """Return the indices of the predicted frames of a clip."""
        return config.predicted_frames

    def predicted_pixels(self, pixel_values: np.ndarray, config: MAESTConfig) -> np.ndarray:
        """Return the frames of the input that the decoder predicts, (N, C, frames, H, W)."""
        return pixel_values[:, :, list(config.predicted_frames)]

    def decoder_tokens(self, config: MAESTConfig) -> int:
        """Return the number of tokens of the decoder: the patches and, if any, the class token."""
        return config.class_tokens + int(config.num_patches)


def _patches_per_time(evidence: Evidence) -> int:
    """Return the number of patches of a time step."""
    geometry = evidence.geometry
    if "spatial_patches" in geometry:
        return int(geometry["spatial_patches"])
    frames = evidence.flags.get("num_frames") or evidence.config_value("num_frames")
    frames = frames or evidence.conventions["num_frames"]
    return int(geometry["num_patches"] // max(frames // geometry["tubelet_size"], 1))


MAE_ST = MAEST()
