"""Determine, from weights and images, configuration fields that a checkpoint does not specify."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mae_convert.checkpoint.checkpoint import Checkpoint, require_images
from mae_convert.checkpoint.clip_inputs import clips_below, frames_of
from mae_convert.checkpoint.image_files import images_in, open_image
from mae_convert.checkpoint.preprocessing import MODES
from mae_convert.diagnose.infer.decision import Decision, Inference
from mae_convert.diagnose.infer.field_search import HEADS, Search, heads_decision
from mae_convert.diagnose.infer.grid import grid_decision, has_grid
from mae_convert.diagnose.infer.head_structure import HeadStructure, head_structure
from mae_convert.diagnose.infer.losses import Crops, make_clips, make_crops
from mae_convert.errors import ConfigurationError
from mae_convert.families.evidence import PREPROCESSING

EMBEDDED_IMAGES = Path(__file__).parents[2] / "data" / "demo"
FIELDS = (*HEADS, "image_size", "norm_pix_loss", *PREPROCESSING)
MOST_CLIP_CROPS = 8
FEWEST_IMAGES = 3
"""Minimum number of images: with fewer, random differences between images hide differences between
candidates."""


@dataclass(frozen=True)
class InferenceOptions:
    """The options of an experiment that determines unspecified configuration fields."""

    images: Path | None = None
    """A folder of images that are similar to the training data; None for the four photographs that
    are part of mae-convert."""

    framework: str = "torch"
    """The framework: torch, tensorflow or jax; "" to use only the weights and run no model."""

    device: str | None = None
    """The device on which the model runs; default: the CPU."""

    crops: int = 32
    """The number of crops of each image, each with its own mask; for clips, which take longer, at
    most `MOST_CLIP_CROPS`."""

    seed: int = 0
    """The seed of the random crops, masks and bootstrap samples."""


def infer(checkpoint: Checkpoint, options: InferenceOptions | None = None) -> Inference:
    """Determine by experiment the fields that a checkpoint does not specify.

    Args:
        checkpoint: opened with ``incomplete=True``; missing and assumed fields are tested.
        options: the images, and how to run the model; None for the defaults of `InferenceOptions`.

    Raises:
        ConfigurationError: there are too few images.
        MaeConvertError: an image cannot be read, the model cannot be run, or the preprocessing of
            images is not known for the model's family.
    """
    require_images(checkpoint, "the search for missing fields")
    options = options or InferenceOptions()
    images = _images(checkpoint, options)
    fields = open_fields(checkpoint)
    structures = {name: structure_of(checkpoint, name) for name in HEADS if name in fields}
    grid: dict[str, Decision] = {}
    if "image_size" in fields:
        grid["image_size"] = grid_decision(checkpoint)
        if grid["image_size"].decided:
            size = {"image_size": grid["image_size"].value}
            checkpoint = checkpoint.specified(size, "experiment")
    if not fields:
        return Inference({})
    if reason := _why_not_run(checkpoint, options):
        return Inference(_without_model(fields, structures, reason) | grid)
    crops = _crops(images, checkpoint, options)
    search = Search(checkpoint, structures, fields, crops, options.framework, options.device)
    return Inference(search.run() | grid, len(images), crops.noise.shape[1], options.framework)


def open_fields(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the missing or assumed fields that an experiment can determine."""
    configuration = checkpoint.configuration
    missing = {missing.field for missing in configuration.missing}
    open_ = missing | set(configuration.assumptions)
    if not has_grid(checkpoint):  # the grid shape is tested with learned position embeddings only
        open_ -= {"image_size"}
    return tuple(name for name in FIELDS if name in open_)


def with_inferred(checkpoint: Checkpoint, inference: Inference) -> Checkpoint:
    """Return a copy of a checkpoint with the field values that an experiment determined.

    The evidence of the experiment is added to the configuration.
    """
    for name, value in inference.decided().items():
        checkpoint = checkpoint.specified({name: value}, inference.source_of(name))
    configuration, decisions = checkpoint.configuration, inference.decisions
    missing = tuple(
        replace(entry, reason=f"{entry.reason}; the experiment was inconclusive: {decision.reason}")
        if (decision := decisions.get(entry.field))
        else entry
        for entry in configuration.missing
    )
    evidence = inference.as_json() if decisions else None
    configuration = replace(configuration, missing=missing, inferred=evidence)
    return replace(checkpoint, configuration=configuration)


def with_inferred_of(target: Checkpoint, source: Checkpoint, inference: Inference) -> Checkpoint:
    """Return `target` with its missing or assumed fields set to the values inferred for `source`.

    `inference` is the result of the experiment on `source`.
    """
    decided = inference.decided()
    for name in open_fields(target):
        if name in decided:
            where = f"{inference.source_of(name)} on {source.name}"
            target = target.specified({name: decided[name]}, where)
    return target


def structure_of(checkpoint: Checkpoint, name: str) -> HeadStructure:
    """Return the head structure in the attention weights of the encoder or the decoder."""
    part = "decoder" if name.startswith("decoder") else "encoder"
    model = checkpoint.configuration.model
    count = model.decoder_num_hidden_layers if part == "decoder" else model.num_hidden_layers

    def query_and_key(index: int) -> tuple[np.ndarray, np.ndarray]:
        layer = f"{part}.blocks.{index}.attention"
        query, key = (checkpoint.tensors[f"{layer}.{which}.weight"].load() for which in "qk")
        return query.astype(np.float32), key.astype(np.float32)

    return head_structure([partial(query_and_key, index) for index in range(count)])


def _why_not_run(checkpoint: Checkpoint, options: InferenceOptions) -> str:
    """Return why the model cannot be run; "" if it can be run."""
    channels = checkpoint.configuration.model.num_channels
    if checkpoint.task != "pretrain":
        return (
            "the experiment reconstructs images, and this model has no decoder (task "
            f"{checkpoint.task})"
        )
    if "image_size" in {missing.field for missing in checkpoint.configuration.missing}:
        return "the shape of the grid of patches is unknown"
    if checkpoint.family.clips is not None and checkpoint.family.clips.measured:
        if options.images is None:
            return (
                f"mae-convert includes no samples with {channels} bands; specify a folder of "
                "samples"
            )
    elif channels not in MODES:
        return f"mae-convert cannot read images with {channels} channels"
    return "" if options.framework else "no framework is installed"


def _images(
    checkpoint: Checkpoint, options: InferenceOptions
) -> list[Image.Image] | list[np.ndarray]:
    """Return the images of an experiment.

    Without a folder of images, the result contains the four photographs of mae-convert. If a folder
    is specified for a model of videos or of series of images, the result contains one array of
    frames for each clip in the folder.

    Raises:
        ConfigurationError: there are too few images or clips.
    """
    clips = checkpoint.family.clips is not None and options.images is not None
    images: list[Image.Image] | list[np.ndarray]
    if clips:
        assert options.images is not None
        images = frames_of(clips_below(options.images, checkpoint), checkpoint)
    else:
        images = [open_image(path) for path in images_in(options.images or EMBEDDED_IMAGES)]
    if len(images) < FEWEST_IMAGES:
        raise ConfigurationError(
            options.images or EMBEDDED_IMAGES,
            f" has {len(images)} {'clips' if clips else 'images'}, but the experiment needs at "
            f"least {FEWEST_IMAGES}",
            hint="add files that are similar to the training data",
        )
    return images


def _crops(
    images: list[Image.Image] | list[np.ndarray],
    checkpoint: Checkpoint,
    options: InferenceOptions,
) -> Crops:
    """Return the random crops of images or clips on which the model is run."""
    family, model = checkpoint.family, checkpoint.configuration.model
    count = options.crops if family.clips is None else min(options.crops, MOST_CLIP_CROPS)
    frames = [image for image in images if isinstance(image, np.ndarray)]
    if frames:
        return make_clips(frames, family, model, crops=count, seed=options.seed)
    still_images = [image for image in images if isinstance(image, Image.Image)]
    return make_crops(still_images, family, model, crops=count, seed=options.seed)


def _without_model(
    fields: Sequence[str], structures: Mapping[str, HeadStructure], reason: str
) -> dict[str, Decision]:
    return {
        name: heads_decision(name, structures[name], {}, None, reason)
        if name in structures
        else Decision(name, None, None, "", reason, ())
        for name in fields
        if name != "image_size"
    }
