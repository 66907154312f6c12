"""Display pixels with any number of channels as colours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.errors import MaeConvertError, Option
from mae_convert.families.configuration import Configuration
from mae_convert.visualize.pixels import as_colours

LOW, HIGH = 2, 98  # percentiles of a channel that are displayed as 0 and 1


@dataclass(frozen=True)
class Display:
    """Converts pixel values (N, C, [T,] H, W) to colours."""

    configuration: Configuration
    """The configuration of the model."""

    channels: tuple[int, ...]
    """Indices of the channels for red, green and blue, or of one channel for grey."""

    low: np.ndarray | None = None
    """The values displayed as 0, with shape (N, B, [1,] 1, 1) for B displayed channels. None for
    photographs: their normalization with image mean and std is undone instead."""

    high: np.ndarray | None = None
    """The values displayed as 1, an array with the shape of ``low``; None if ``low`` is None."""

    def __call__(self, pixel_values: np.ndarray) -> np.ndarray:
        """Return colours (N, [T,] H, W, 3) in [0, 1]."""
        if self.low is None or self.high is None:
            colours = as_colours(pixel_values, self.configuration)
        else:
            span = np.where(self.high > self.low, self.high - self.low, 1.0)
            shown = (pixel_values[:, list(self.channels)].astype(np.float64) - self.low) / span
            colours = np.clip(np.moveaxis(shown, 1, -1), 0, 1)
        return np.broadcast_to(colours, (*colours.shape[:-1], 3))

    def selected_channels(self, difference: np.ndarray) -> np.ndarray:
        """Return the displayed channels of an array (N, [T,] H, W, C) as (N, [T,] H, W, 3)."""
        shown = difference[..., list(self.channels)]
        return np.broadcast_to(shown, (*shown.shape[:-1], 3))

    @property
    def note(self) -> str:
        """A note on how the channels are displayed; "" for photographs."""
        if self.low is None:
            return ""
        numbers = ", ".join(str(channel + 1) for channel in self.channels)
        several = len(self.channels) > 1
        what = "s {} as red, green and blue, each" if several else " {} in grey,"
        return (
            f"channel{what.format(numbers)} scaled from the {LOW}nd to the {HIGH}th percentile of "
            f"the original{', all frames together' if self.low.ndim == 5 else ''}"
        )


def check_bands(bands: Sequence[int] | None, inputs: Path | None, checkpoint: Checkpoint) -> None:
    """Check that channels are selected only for preprocessed images or for satellite images.

    Photographs and videos are always displayed in their own colours.

    Args:
        bands: the selected channels, or None.
        inputs: a file of preprocessed images with any number of channels, or None.
        checkpoint: the checkpoint of the model.

    Raises:
        MaeConvertError: channels are selected, but the images are photographs or videos.
    """
    clips = checkpoint.family.clips
    if bands is None or inputs is not None or (clips is not None and clips.measured):
        return
    raise MaeConvertError(
        *(Option("bands"), " selects channels of "),
        *(Option("inputs"), " or of satellite images, but RGB images or videos were specified"),
        hint=("leave ", Option("bands"), " out"),
    )


def display_of(
    pixel_values: np.ndarray,
    configuration: Configuration,
    bands: Sequence[int] | None = None,
    *,
    preprocessed: bool = False,
    colours: Sequence[int] = (0, 1, 2),
) -> Display:
    """Return a `Display` that shows photographs unchanged and scales each channel of other images.

    Images are photographs if `bands` is None and they have three channels, displayed as red, green
    and blue in this order, or one channel of grey levels.

    Args:
        pixel_values: (N, C, [T,] H, W), the original images; the scale of each channel is computed
            from their percentiles.
        configuration: the configuration of the model.
        bands: numbers, from 1, of the channels for red, green and blue, or of one channel for grey;
            default: `colours`, or the first channel if there are fewer than three channels.
        preprocessed: whether the images come from a file of arrays; a single channel is then
            scaled, because it may contain other values than grey levels.
        colours: indices of the default channels for red, green and blue, for images with three or
            more channels.

    Raises:
        MaeConvertError: the images do not have the specified channels.
    """
    count = pixel_values.shape[1]
    if bands is not None and not all(1 <= band <= count for band in bands):
        raise MaeConvertError(
            Option("bands", ",".join(map(str, bands))),
            " refers to channels that the model does not have",
            hint=f"the model has {count} channels, numbered from 1",
        )
    default = colours if count >= 3 else range(1)
    channels = tuple(default) if bands is None else tuple(band - 1 for band in bands)
    as_photograph = count == 3 and channels == (0, 1, 2)
    if bands is None and (as_photograph or (count == 1 and not preprocessed)):
        return Display(configuration, channels)
    shown = pixel_values[:, list(channels)]
    low, high = np.percentile(shown, (LOW, HIGH), axis=tuple(range(2, shown.ndim)), keepdims=True)
    return Display(configuration, channels, low, high)
