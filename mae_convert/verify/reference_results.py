"""Reference results that third parties published for official checkpoints.

A reference result is a corner of the logits, [0, :3, :3], for a known image and known noise, to
four decimals. It proves far less than a comparison with the source, but it was computed
independently from the original weights.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.image_files import open_image
from mae_convert.checkpoint.preprocessing import BILINEAR, Preprocessing
from mae_convert.errors import MaeConvertError
from mae_convert.families.configuration import Configuration
from mae_convert.runtime.running import DEFAULT_DTYPES, Request, Run, run_together
from mae_convert.runtime.sides import Side, choose_side

Corner = tuple[tuple[float, ...], ...]
SEED = 2


@dataclass(frozen=True)
class PublishedTruth:
    """A result that someone published for one checkpoint.

    Attributes:
        source: the checkpoint, as a command takes it.
        image: address of the image.
        noise: which program's generator made the noise, from `SEED`: "torch" or "numpy".
        corner: logits [0, :3, :3].
        absolute: allowed difference, to which ``relative`` times the value is added.
        relative: see ``absolute``.
        layer_norm_eps: what it was computed with, where that is not what the checkpoint has.
        where: who published it.
        image_size: side of the image as the model takes it.
    """

    source: str
    picture: str
    noise: str
    corner: Corner
    absolute: float
    relative: float
    layer_norm_eps: float | None
    where: str
    image_size: int = 224
    what: str = "logits [0, :3, :3]"

    def allowed(self) -> np.ndarray:
        """Return the allowed difference of each value, (3, 3)."""
        return self.absolute + self.relative * np.abs(np.array(self.corner))


FOX = (
    "https://user-images.githubusercontent.com/11435359/"
    "147738734-196fd92f-9260-48d5-ba7e-bf103d29364d.jpg"
)
CATS = (
    "https://raw.githubusercontent.com/huggingface/transformers/v4.57.6/"
    "tests/fixtures/tests_samples/COCO/000000039769.png"
)
# What the script that converted the checkpoints for transformers compares, with its epsilon.
_SCRIPT_CORNERS: Mapping[str, Corner] = {
    "mae_visualize_vit_base": (
        (-0.9192, -0.8481, -1.1259), (-1.1349, -1.0034, -1.2599), (-1.1757, -1.0429, -1.2726),
    ),
    "mae_visualize_vit_large": (
        (-0.7309, -0.7128, -1.0169), (-1.0161, -0.9058, -1.1878), (-1.0478, -0.9411, -1.1911),
    ),
    "mae_visualize_vit_huge": (
        (-1.1599, -0.9199, -1.2221), (-1.1952, -0.9269, -1.2307), (-1.2143, -0.9337, -1.2262),
    ),
}  # fmt: skip

PUBLISHED: Mapping[str, PublishedTruth] = {
    **{
        name: PublishedTruth(
            name, FOX, "torch", corner, 1e-4, 0.0, 1e-12,
            "transformers, convert_vit_mae_to_pytorch.py",
        )
        for name, corner in _SCRIPT_CORNERS.items()
    },
    "facebook/vit-mae-base": PublishedTruth(
        "hf://facebook/vit-mae-base", CATS, "numpy",
        ((-0.0548, -1.7023, -0.9325), (0.3721, -0.5670, -0.2233), (0.8235, -1.3878, -0.3524)),
        1e-4, 1e-4, None, "transformers, test_modeling_vit_mae.py",
    ),
}  # fmt: skip


def published_names() -> list[str]:
    """Return the names of all checkpoints with reference results, of images and of videos."""
    from mae_convert.verify.reference_results_videos import PUBLISHED_VIDEOS

    return [*PUBLISHED, *PUBLISHED_VIDEOS]


def published_named(name: str) -> PublishedTruth:
    """Return the reference result for a checkpoint.

    Raises:
        MaeConvertError: there is none.
    """
    if name not in PUBLISHED:
        raise MaeConvertError(
            f"there are no reference results for {name!r}; there are some for "
            f"{', '.join(published_names())}"
        )
    return PUBLISHED[name]


def published_noise(truth: PublishedTruth, patches: int) -> np.ndarray:
    """Return noise (1, L) float32 with the same patch order as the reference result's noise.

    PyTorch's generator is MT19937 too; a float32 is 24 of its bits.
    """
    generator = np.random.RandomState(SEED)
    if truth.noise == "torch":
        bits = generator.randint(0, 2**32, size=patches, dtype=np.uint32)
        values = (bits & 0xFFFFFF).astype(np.float64)
    else:
        values = generator.uniform(size=patches)
    ranks = np.argsort(np.argsort(values, kind="stable"))
    return ((ranks[None] + 0.5) / patches).astype(np.float32)


class Truth(Protocol):
    """A published result, of a model of images or of videos, as a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def source(self) -> str:
        """The checkpoint, as a command takes it."""

    @property
    def corner(self) -> Corner:
        """The published values."""

    @property
    def what(self) -> str:
        """Which of the model's results they are."""

    @property
    def where(self) -> str:
        """Who published them."""

    @property
    def layer_norm_eps(self) -> float | None:
        """What they were computed with, where that is not what the checkpoint has."""

    def allowed(self) -> np.ndarray:
        """Return the allowed difference of each value."""


@dataclass(frozen=True)
class PublishedResult:
    """How a checkpoint's logits compare with a published result."""

    truth: Truth
    """The published result."""

    checkpoint: str
    """The checkpoint that was run, as the user specified it."""

    framework: str
    """The runner."""

    corners: Mapping[str, np.ndarray]
    """The computed values, by dtype."""

    share: Mapping[str, float]
    """The largest distance by dtype, as a share of what is allowed; NaN is not within it."""

    @property
    def passed(self) -> bool:
        """Whether every value is within the tolerance."""
        return all(share <= 1 for share in self.share.values())


def check_published(
    checkpoint: Checkpoint, truth: PublishedTruth, image: Path, side: Side
) -> PublishedResult:
    """Run a checkpoint on the image and the noise of a published result, and compare.

    Args:
        checkpoint: the pre-training model that the result is of, or what became of it.
        truth: the published result.
        image: the file at ``truth.image``.
        side: how to run it.

    Raises:
        MaeConvertError: the checkpoint is no model that the result can be of, or the run failed.
        MissingRequirementError: no framework to run it with.
    """
    model = checkpoint.configuration.model
    if checkpoint.task != "pretrain" or model.image_hw != (truth.image_size,) * 2:
        raise MaeConvertError(
            f"{checkpoint.name} is a model for the task {checkpoint.task} and images of "
            f"{model.image_hw[0]} x {model.image_hw[1]}; the reference results for {truth.source} "
            f"are from a pre-training model for {truth.image_size} x {truth.image_size}"
        )
    side = choose_side(checkpoint, side)
    if truth.layer_norm_eps is not None:
        model = replace(model, layer_norm_eps=truth.layer_norm_eps)
    configuration = replace(checkpoint.configuration, model=model)
    pixels = _preprocessing(truth, configuration)(open_image(image))[None]
    inputs = {"pixel_values": pixels, "noise": published_noise(truth, model.num_patches)}
    prepared = replace(checkpoint, configuration=configuration)
    (trace,) = run_together([Run(prepared, side, Request(taps=False))], inputs)
    corners = {dtype: trace.arrays[f"{dtype}/logits"][0, :3, :3] for dtype in DEFAULT_DTYPES}
    return PublishedResult(
        truth, checkpoint.name, str(side.framework), corners,
        {dtype: share_of_allowed(corner, truth) for dtype, corner in corners.items()},
    )  # fmt: skip


def _preprocessing(truth: PublishedTruth, configuration: Configuration) -> Preprocessing:
    """Return the preprocessing of the image processor of that time, which resized bilinearly."""
    return Preprocessing(
        channels=3,
        resize=(truth.image_size, truth.image_size),
        shortest_edge=None,
        resample=BILINEAR,
        crop=None,
        rescale=1 / 255,
        mean=configuration.image_mean,
        std=configuration.image_std,
    )


def share_of_allowed(corner: np.ndarray, truth: Truth) -> float:
    """Return the largest difference of the values, relative to the tolerance."""
    distance = np.abs(corner.astype(np.float64) - np.array(truth.corner))
    return float(np.max(distance / truth.allowed()))


def published_json(result: PublishedResult) -> dict[str, Any]:
    """Return a result as plain data."""
    return {
        "passed": result.passed,
        "checkpoint": result.checkpoint,
        "framework": result.framework,
        "published": asdict(result.truth),
        "measured": {dtype: corner.tolist() for dtype, corner in result.corners.items()},
        "share_of_allowed": dict(result.share),
    }
