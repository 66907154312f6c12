"""Reference results in transformers' conversion script for thirteen VideoMAE models.

A reference result consists of the first three logits of a classifier for a specific clip, or of
nine logits, [0, :3, :3], of a pre-training model for that clip and a specific mask, with four
decimals.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.preprocessing import BILINEAR, Preprocessing
from mae_convert.errors import CheckpointError, MaeConvertError
from mae_convert.files.byte_ranges import ByteFile
from mae_convert.formats.archive import Archive
from mae_convert.runtime.running import DEFAULT_DTYPES, Request, Run, run_together
from mae_convert.runtime.sides import Side, choose_side
from mae_convert.verify.reference_results import Corner, ReferenceComparison, share_of_allowed

CLIP = (
    "https://huggingface.co/datasets/hf-internal-testing/spaghetti-video/resolve/main/"
    "eating_spaghetti.npy"
)
MASK = "https://huggingface.co/hf-internal-testing/bool-masked-pos/resolve/main/bool_masked_pos.pt"
# The script uses this epsilon in all norms except the last one of a decoder or a classifier, which
# has 1e-5.
EPSILON, HEAD_EPSILON = 1e-12, 1e-5
GREY = (0.5, 0.5, 0.5)  # mean and std of the script's image processor


@dataclass(frozen=True)
class VideoReferenceResult:
    """A published result for one checkpoint of a video model."""

    source: str
    """The checkpoint, as an argument of the command line."""

    corner: Corner
    """The published values of the logits; `what` states which elements of the logits these are."""

    task: str = "classify"
    """The task of the model."""

    video: str = CLIP
    """URL of the clip, a NumPy file (T, H, W, 3) uint8."""

    absolute: float = 1e-4
    """Absolute tolerance."""

    layer_norm_eps: float = EPSILON
    """The LayerNorm epsilon of the published computation."""

    where: str = "transformers, convert_videomae_to_pytorch.py"
    """The publisher of the result, for messages: a library and its conversion script."""

    image_size: int = 224
    """Side length of the model's input frames in pixels."""

    @property
    def what(self) -> str:
        """A phrase for messages that names the published elements of the logits."""
        return "logits [:1, :3]" if self.task == "classify" else "logits [0, :3, :3]"

    def allowed(self) -> np.ndarray:
        """Return the allowed difference of each value."""
        return np.full_like(np.array(self.corner), self.absolute)


_LOGITS: Mapping[str, tuple[float, float, float]] = {
    "small-finetuned-kinetics": (-0.9291, -0.4061, -0.9307),
    "small-finetuned-ssv2": (0.2671, -0.4689, -0.8235),
    "large-finetuned-kinetics": (0.0771, 0.0011, -0.3625),
    "huge-finetuned-kinetics": (0.2433, 0.1632, -0.4894),
    "base-short-finetuned-kinetics": (0.6588, 0.0990, -0.2493),
    "base-finetuned-kinetics": (0.3669, -0.0688, -0.2421),
    "base-short-finetuned-ssv2": (-0.0537, -0.1539, -0.3266),
    "base-finetuned-ssv2": (0.1961, -0.8337, -0.6389),
}
_CORNERS: Mapping[str, Corner] = {
    "base": ((0.7739, 0.7968, 0.7089), (0.6701, 0.7487, 0.6209), (0.4287, 0.5158, 0.4773)),
    "base-short": ((0.7994, 0.9612, 0.8508), (0.7401, 0.8958, 0.8302), (0.5862, 0.7468, 0.7325)),
    "large": ((0.7149, 0.7997, 0.6966), (0.6768, 0.7869, 0.6948), (0.5139, 0.6221, 0.5605)),
    "base-short-ssv2": (
        (0.4712, 0.5296, 0.5786),
        (0.2278, 0.2729, 0.4026),
        (0.0352, 0.0730, 0.2506),
    ),
    "base-ssv2": ((0.8131, 0.8727, 0.8546), (0.7366, 0.9377, 0.8870), (0.5935, 0.8874, 0.8564)),
}


def _reference_results() -> Iterator[VideoReferenceResult]:
    """Yield the reference results of the classifiers, then of the pre-training models."""
    for name, logits in _LOGITS.items():
        yield VideoReferenceResult(f"hf://MCG-NJU/videomae-{name}", (logits,))
    for name, corner in _CORNERS.items():
        yield VideoReferenceResult(f"hf://MCG-NJU/videomae-{name}", corner, "pretrain")


VIDEO_REFERENCE_RESULTS: Mapping[str, VideoReferenceResult] = {
    reference.source.removeprefix("hf://"): reference for reference in _reference_results()
}


def compare_video_with_reference(
    checkpoint: Checkpoint,
    reference: VideoReferenceResult,
    frames: Path,
    mask: Path | None,
    side: Side,
) -> ReferenceComparison:
    """Run a model on the clip and mask of a reference result and compare the logits.

    Args:
        checkpoint: the model of the reference result, or a conversion of it.
        reference: the reference result.
        frames: the downloaded clip.
        mask: the downloaded mask for a pre-training model; None for a classifier.
        side: how to run the model.

    Raises:
        MaeConvertError: the checkpoint has another family, task or image size, a downloaded file
            is not valid, or the run failed.
        MissingRequirementError: no framework that can run the checkpoint is installed.
    """
    model = checkpoint.configuration.model
    if (
        checkpoint.family.name != "videomae"
        or checkpoint.task != reference.task
        or model.image_hw != (reference.image_size,) * 2
    ):
        raise MaeConvertError(
            f"{checkpoint.name} is a model of the family {checkpoint.family.name} for the task"
            f" {checkpoint.task} and {model.image_hw[0]} x {model.image_hw[1]} pixels; the"
            f" reference results for {reference.source} are from a VideoMAE for the task"
            f" {reference.task} and {reference.image_size} x {reference.image_size} pixels",
            hint=f"specify the checkpoint of {reference.source}",
        )
    side = choose_side(checkpoint, side)
    model = replace(
        model, layer_norm_eps=reference.layer_norm_eps, final_layer_norm_eps=HEAD_EPSILON
    )
    prepared = replace(checkpoint, configuration=replace(checkpoint.configuration, model=model))
    pixels = _pixels(frames, model.num_frames, reference.image_size)
    removed = np.zeros(model.num_patches) if mask is None else _mask(mask, model)
    ranks = np.argsort(np.argsort(removed, kind="stable"))[None]
    noise = ((ranks + 0.5) / model.num_patches).astype(np.float32)
    request = Request(taps=False, mask_ratio=0.0 if mask is None else None)
    inputs = {"pixel_values": pixels, "noise": noise}
    (trace,) = run_together([Run(prepared, side, request)], inputs)
    logits = {dtype: trace.arrays[f"{dtype}/logits"] for dtype in DEFAULT_DTYPES}
    corners = {
        dtype: array[:1, :3] if mask is None else array[0, :3, :3]
        for dtype, array in logits.items()
    }
    shares = {dtype: share_of_allowed(corner, reference) for dtype, corner in corners.items()}
    return ReferenceComparison(reference, checkpoint.name, str(side.framework), corners, shares)


def _mask(path: Path, model: Any) -> np.ndarray:
    """Read the mask (L,) of removed patches, the only tensor in a PyTorch file.

    Only the bytes of the tensor's storage are read; the pickle in the file is not loaded.

    Raises:
        CheckpointError: the tensor is not a mask that removes as many patches as the model does.
    """
    archive = Archive(ByteFile(path))
    names = [name for name in archive.records if name.endswith("/data/0")]
    values = np.zeros(0, np.uint8)
    if len(names) == 1 and archive.size(names[0]) == model.num_patches:
        values = np.frombuffer(archive.raw(names[0], model.num_patches), np.uint8)
    if (
        values.shape != (model.num_patches,)
        or values.max() > 1
        or values.sum() != model.num_patches - model.num_kept
    ):
        removed = model.num_patches - model.num_kept
        raise CheckpointError(
            path,
            f" is not a mask of {model.num_patches} patches that removes {removed} of them",
            hint="download it again",
        )
    return values


def _pixels(path: Path, count: int, size: int) -> np.ndarray:
    """Return a clip (1, 3, T, H, W), preprocessed as in the publisher's conversion script.

    Args:
        path: the downloaded array of frames.
        count: the number of frames T.
        size: the height and width of the preprocessed frames.

    Raises:
        CheckpointError: the file does not contain this number of frames.
    """
    try:
        frames = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(
            path, f" is not an array of frames ({error})", hint="download it again"
        ) from error
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[::3] != (count, 3):
        raise CheckpointError(
            path,
            f" contains {frames.dtype} of shape {frames.shape}, not {count} frames (H, W, 3)",
            hint="download it again",
        )
    prepare = Preprocessing(
        channels=3,
        resize=None,
        shortest_edge=size,
        resample=BILINEAR,
        crop=(size, size),
        rescale=1 / 255,
        mean=GREY,
        std=GREY,
    )
    return np.stack([prepare(Image.fromarray(frame)) for frame in frames], axis=1)[None]
