"""Reference results that transformers' conversion script has for fine-tuned VideoMAE models.

A reference result is the first three logits for a known clip, to four decimals. The script has five
more, of pre-training models; their mask is in a pickled file of another repository, and they are
not compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from mae_convert.checkpoint.open import Checkpoint
from mae_convert.checkpoint.preprocessing import BILINEAR, Preprocessing
from mae_convert.errors import CheckpointError, MaeConvertError
from mae_convert.runtime.running import DEFAULT_DTYPES, Request, Run, run_together
from mae_convert.runtime.sides import Side, choose_side
from mae_convert.verify.reference_results import Corner, PublishedResult, share_of_allowed

CLIP = (
    "https://huggingface.co/datasets/hf-internal-testing/spaghetti-video/resolve/main/"
    "eating_spaghetti.npy"
)
# The script's configuration has this epsilon in all norms but the classifier's, which has 1e-5.
EPSILON, HEAD_EPSILON = 1e-12, 1e-5
GREY = (0.5, 0.5, 0.5)  # mean and deviation of the script's image processor


@dataclass(frozen=True)
class PublishedVideoTruth:
    """A result that someone published for one checkpoint of a model of videos.

    Attributes:
        source: the checkpoint, as a command takes it.
        corner: logits [:1, :3].
        video: address of the frames of the clip, a NumPy file (T, H, W, 3) uint8.
        absolute: allowed difference.
        layer_norm_eps: what it was computed with.
        where: who published it.
        image_size: side of the frames as the model takes them.
    """

    source: str
    corner: Corner
    video: str = CLIP
    absolute: float = 1e-4
    layer_norm_eps: float = EPSILON
    where: str = "transformers, convert_videomae_to_pytorch.py"
    image_size: int = 224
    what: str = "logits [:1, :3]"

    def allowed(self) -> np.ndarray:
        """Return the allowed difference of each value, (1, 3)."""
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
PUBLISHED_VIDEOS: Mapping[str, PublishedVideoTruth] = {
    f"MCG-NJU/videomae-{name}": PublishedVideoTruth(f"hf://MCG-NJU/videomae-{name}", (logits,))
    for name, logits in _LOGITS.items()
}


def check_published_video(
    checkpoint: Checkpoint, truth: PublishedVideoTruth, frames: Path, side: Side
) -> PublishedResult:
    """Run a classifier on the clip of a published result, and compare.

    Args:
        checkpoint: the model that the result is of, or what became of it.
        truth: the published result.
        frames: the file at ``truth.video``.
        side: how to run it.

    Raises:
        MaeConvertError: the checkpoint is no model that the result can be of, the file is not such
            a clip, or the run failed.
        MissingRequirementError: no framework to run it with.
    """
    model = checkpoint.configuration.model
    if (
        checkpoint.family.name != "videomae"
        or checkpoint.task != "classify"
        or model.image_hw != (truth.image_size,) * 2
    ):
        raise MaeConvertError(
            f"{checkpoint.name} is a model of the family {checkpoint.family.name} for the task"
            f" {checkpoint.task} and {model.image_hw[0]} x {model.image_hw[1]} pixels; the"
            f" reference results for {truth.source} are from a classifier of videos of"
            f" {truth.image_size} x {truth.image_size}"
        )
    side = choose_side(checkpoint, side)
    model = replace(model, layer_norm_eps=truth.layer_norm_eps, final_layer_norm_eps=HEAD_EPSILON)
    prepared = replace(checkpoint, configuration=replace(checkpoint.configuration, model=model))
    pixels = _pixels(frames, model.num_frames, truth.image_size)
    patches = np.arange(model.num_patches, dtype=np.float32)[None]
    inputs = {"pixel_values": pixels, "noise": (patches + 0.5) / model.num_patches}
    (trace,) = run_together([Run(prepared, side, Request(taps=False, mask_ratio=0.0))], inputs)
    corners = {dtype: trace.arrays[f"{dtype}/logits"][:1, :3] for dtype in DEFAULT_DTYPES}
    shares = {dtype: share_of_allowed(corner, truth) for dtype, corner in corners.items()}
    return PublishedResult(truth, checkpoint.name, str(side.framework), corners, shares)


def _pixels(path: Path, count: int, size: int) -> np.ndarray:
    """Return a clip (1, 3, T, H, W) as the script's image processor makes it."""
    try:
        frames = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(path, f" is not an array of frames ({error})") from error
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[::3] != (count, 3):
        raise CheckpointError(
            path, f" holds {frames.dtype} of shape {frames.shape}, not {count} frames (H, W, 3)"
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
