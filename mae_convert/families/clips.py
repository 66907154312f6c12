"""Sampling and preprocessing of videos and of series of images for the models of a family."""

from dataclasses import dataclass
from typing import Any

import numpy as np

BILINEAR = 2  # Pillow's number of the filter, as in preprocessor_config.json
EVEN, SPREAD, ALL = "even", "spread", "all"


@dataclass(frozen=True)
class Clips:
    """The sampling and preprocessing of frames in the authors' programs."""

    frames: str
    """How the T frames of a clip are chosen; "even" and "spread" use the middle of the video:

    - "even": every ``stride``-th frame; the last sampled frame is repeated if the video is too
      short.
    - "spread": T evenly spaced frames from a part of the video that lasts ``stride`` x T /
      ``frame_rate`` seconds.
    - "all": all frames; the video must have as many frames as the input of the model.
    """

    like: str
    """A phrase that names the origin of this sampling, for messages."""

    stride: int = 1
    """The distance between consecutive frames of a clip, in frames of the video at `frame_rate`."""

    frame_rate: float | None = None
    """The frame rate to which ``stride`` refers; None for the frame rate of the file."""

    measured: bool = False
    """Whether pixels are measured values, which are normalized but neither rescaled nor resized;
    otherwise they are colours from 0 to 255, which are resized and rescaled."""

    missing_value: tuple[float, float] | None = None
    """The value that marks a missing measurement, and the value that replaces it; None if no value
    marks one."""

    colours: tuple[int, int, int] = (0, 1, 2)
    """The indices (from 0) of the red, green and blue channels."""

    def indices(self, count: int, length: int, rate: float | None, stride: int) -> list[int]:
        """Return the indices of the frames of a clip.

        Args:
            count: the number of frames in the file, at least 1; it must be equal to ``length`` if
                ``frames`` is "all".
            length: the number of frames of a clip.
            rate: frames per second of the file, or None if unknown.
            stride: the distance between consecutive frames, in the unit of the attribute `stride`.
        """
        if self.frames == ALL:
            return list(range(count))
        if self.frames == SPREAD:
            scale = rate / self.frame_rate if rate and self.frame_rate else 1.0
            size = stride * length * scale  # the duration of a clip in frames of the file
            start = max(count - size, 0) / 2
            positions = np.linspace(start, start + size - 1, length)
            return [int(index) for index in np.clip(positions, 0, count - 1)]
        start = max(count - 1 - (length - 1) * stride, 0) // 2
        last = (count - 1 - start) // stride  # steps from the first frame to the last possible one
        return [start + min(step, last) * stride for step in range(length)]

    def preprocessing(self, image_hw: tuple[int, int]) -> dict[str, Any]:
        """Return the preprocessing of frames with the fields of ``preprocessor_config.json``.

        Frames with colours are preprocessed as in transformers' VideoMAEImageProcessor: the shorter
        side is resized, and the centre is cropped. For models with rectangular inputs, frames are
        resized to the size of the inputs without cropping. Frames with measured values instead of
        colours (see `measured`), such as satellite data, are only normalized.
        """
        if self.measured:
            return {"do_normalize": True, "do_rescale": False, "do_resize": False}
        height, width = image_hw
        crop: dict[str, Any] = {
            "crop_size": {"height": height, "width": width},
            "do_center_crop": True,
            "size": {"shortest_edge": height},
        }
        return {
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_processor_type": "VideoMAEImageProcessor",
            "resample": BILINEAR,
            "rescale_factor": 1 / 255,
            **(crop if height == width else {"size": {"height": height, "width": width}}),
        }

    def in_words(self, stride: int) -> str:
        """Return a description of the sampling of frames at a distance of ``stride``."""
        if self.frames == ALL:
            return f"all frames of each sample are used, {self.like}"
        frames = "every frame" if stride == 1 else f"one frame in {stride}"
        rate = ""
        if self.frame_rate:
            rate = f" at {self.frame_rate:g} frames per second (if the file has a frame rate)"
        origin = f", {self.like}" if stride == self.stride else ""
        return f"clips are {frames}{rate} from the middle of each video{origin}"
