"""Reference results that third parties published for official checkpoints.

A reference result consists of nine logits, ``logits[0, :3, :3]``, for a specific image and noise,
with four decimals. It proves far less than a verification of the checkpoint against its source, but
it was computed independently from the original weights.
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
class ReferenceResult:
    """A published result for one checkpoint.

    Attributes:
        source: the checkpoint, as an argument of the command line.
        image: the URL of the image.
        noise: the library whose random number generator, with the seed `SEED`, made the noise:
            "torch" or "numpy".
        corner: the published values, logits [0, :3, :3].
        absolute: absolute tolerance.
        relative: tolerance relative to each value, which is added to the absolute tolerance.
        layer_norm_eps: the LayerNorm epsilon with which the values were computed; None if it is
            the LayerNorm epsilon of the checkpoint.
        where: the publisher of the result, for messages.
        image_size: side length of the model's input image in pixels.
        what: a phrase for messages that names the published elements.
    """

    source: str
    image: str
    noise: str
    corner: Corner
    absolute: float
    relative: float
    layer_norm_eps: float | None
    where: str
    image_size: int = 224
    what: str = "logits [0, :3, :3]"

    def allowed(self) -> np.ndarray:
        """Return the allowed difference of each value of ``corner``, (3 patches, 3 values)."""
        return self.absolute + self.relative * np.abs(np.array(self.corner))


FOX = (
    "https://user-images.githubusercontent.com/11435359/"
    "147738734-196fd92f-9260-48d5-ba7e-bf103d29364d.jpg"
)
CATS = (
    "https://raw.githubusercontent.com/huggingface/transformers/v4.57.6/"
    "tests/fixtures/tests_samples/COCO/000000039769.png"
)
# The values, and the epsilon, of transformers' conversion script.
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

REFERENCE_RESULTS: Mapping[str, ReferenceResult] = {
    **{
        name: ReferenceResult(
            name, FOX, "torch", corner, 1e-4, 0.0, 1e-12,
            "transformers, convert_vit_mae_to_pytorch.py",
        )
        for name, corner in _SCRIPT_CORNERS.items()
    },
    "facebook/vit-mae-base": ReferenceResult(
        "hf://facebook/vit-mae-base", CATS, "numpy",
        ((-0.0548, -1.7023, -0.9325), (0.3721, -0.5670, -0.2233), (0.8235, -1.3878, -0.3524)),
        1e-4, 1e-4, None, "transformers, test_modeling_vit_mae.py",
    ),
}  # fmt: skip


def reference_result_names() -> list[str]:
    """Return the names of all checkpoints with reference results, for images and for videos."""
    from mae_convert.verify.reference_results_videos import VIDEO_REFERENCE_RESULTS

    return [*REFERENCE_RESULTS, *VIDEO_REFERENCE_RESULTS]


def reference_result_of(name: str) -> ReferenceResult:
    """Return the reference result for a checkpoint of the image MAE.

    Raises:
        MaeConvertError: there is no reference result for the checkpoint.
    """
    if name not in REFERENCE_RESULTS:
        raise MaeConvertError(
            f"there are no reference results for {name!r}",
            hint=f"reference results exist for {', '.join(reference_result_names())}",
        )
    return REFERENCE_RESULTS[name]


def reference_noise(reference: ReferenceResult, patches: int) -> np.ndarray:
    """Return noise (1, L) float32 that orders the patches like the noise of a reference result.

    PyTorch's CPU generator is MT19937, as is NumPy's `RandomState`; PyTorch makes a random float32
    from the lowest 24 bits of each 32-bit number.
    """
    generator = np.random.RandomState(SEED)
    if reference.noise == "torch":
        bits = generator.randint(0, 2**32, size=patches, dtype=np.uint32)
        values = (bits & 0xFFFFFF).astype(np.float64)
    else:
        values = generator.uniform(size=patches)
    ranks = np.argsort(np.argsort(values, kind="stable"))
    return ((ranks[None] + 0.5) / patches).astype(np.float32)


class PublishedValues(Protocol):
    """The attributes that `ReferenceResult` and `VideoReferenceResult` have in common."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def source(self) -> str:
        """The checkpoint, as an argument of the command line."""

    @property
    def corner(self) -> Corner:
        """The published values of the logits; `what` names these elements of the logits."""

    @property
    def what(self) -> str:
        """A phrase that names the published elements, such as "logits [0, :3, :3]"."""

    @property
    def where(self) -> str:
        """The publisher of the values, for messages."""

    @property
    def layer_norm_eps(self) -> float | None:
        """The LayerNorm epsilon of the published computation; None for the checkpoint's epsilon."""

    def allowed(self) -> np.ndarray:
        """Return the allowed difference of each value."""


@dataclass(frozen=True)
class ReferenceComparison:
    """The comparison of a checkpoint's logits with a reference result."""

    reference: PublishedValues
    """The reference result."""

    checkpoint: str
    """The checkpoint as specified by the user."""

    framework: str
    """The framework that ran the checkpoint."""

    corners: Mapping[str, np.ndarray]
    """For each dtype, the computed logits that are compared: the first three values of the first
    three patches, (3, 3), or the first three classes of a classifier, (1, 3)."""

    share: Mapping[str, float]
    """For each dtype, the largest ratio of a value's difference to its tolerance. A ratio of at
    most 1 passes; NaN does not pass."""

    @property
    def passed(self) -> bool:
        """Whether every value is within the tolerance."""
        return all(share <= 1 for share in self.share.values())


def compare_with_reference(
    checkpoint: Checkpoint, reference: ReferenceResult, image: Path, side: Side
) -> ReferenceComparison:
    """Run a checkpoint on the image and noise of a reference result and compare the logits.

    Args:
        checkpoint: the pre-training model of the reference result, or a conversion of it.
        reference: the reference result.
        image: the downloaded image.
        side: how to run the checkpoint.

    Raises:
        MaeConvertError: the checkpoint has another task or image size, or the run failed.
        MissingRequirementError: no framework that can run the checkpoint is installed.
    """
    model = checkpoint.configuration.model
    if checkpoint.task != "pretrain" or model.image_hw != (reference.image_size,) * 2:
        raise MaeConvertError(
            f"{checkpoint.name} is a model for the task {checkpoint.task} and images of "
            f"{model.image_hw[0]} x {model.image_hw[1]}; the reference results for "
            f"{reference.source} are from a pre-training model for "
            f"{reference.image_size} x {reference.image_size}",
            hint=f"specify the checkpoint of {reference.source}",
        )
    side = choose_side(checkpoint, side)
    if reference.layer_norm_eps is not None:
        model = replace(model, layer_norm_eps=reference.layer_norm_eps)
    configuration = replace(checkpoint.configuration, model=model)
    pixels = _preprocessing(reference, configuration)(open_image(image))[None]
    inputs = {"pixel_values": pixels, "noise": reference_noise(reference, model.num_patches)}
    prepared = replace(checkpoint, configuration=configuration)
    (trace,) = run_together([Run(prepared, side, Request(taps=False))], inputs)
    corners = {dtype: trace.arrays[f"{dtype}/logits"][0, :3, :3] for dtype in DEFAULT_DTYPES}
    return ReferenceComparison(
        reference, checkpoint.name, str(side.framework), corners,
        {dtype: share_of_allowed(corner, reference) for dtype, corner in corners.items()},
    )  # fmt: skip


def _preprocessing(reference: ReferenceResult, configuration: Configuration) -> Preprocessing:
    """Return the preprocessing that the publisher used, which resizes images bilinearly."""
    return Preprocessing(
        channels=3,
        resize=(reference.image_size, reference.image_size),
        shortest_edge=None,
        resample=BILINEAR,
        crop=None,
        rescale=1 / 255,
        mean=configuration.image_mean,
        std=configuration.image_std,
    )


def share_of_allowed(corner: np.ndarray, reference: PublishedValues) -> float:
    """Return the maximum of ``abs(computed - published) / tolerance`` over the published values.

    A result of at most 1 passes.

    Args:
        corner: the computed values, with the shape of ``reference.corner``.
        reference: the published values and their tolerances.
    """
    distance = np.abs(corner.astype(np.float64) - np.array(reference.corner))
    return float(np.max(distance / reference.allowed()))


def comparison_json(result: ReferenceComparison) -> dict[str, Any]:
    """Return a comparison as plain data."""
    return {
        "passed": result.passed,
        "checkpoint": result.checkpoint,
        "framework": result.framework,
        "published": asdict(result.reference),
        "measured": {dtype: corner.tolist() for dtype, corner in result.corners.items()},
        "share_of_allowed": dict(result.share),
    }
