"""An image of example reconstructions for the card, if a framework is installed."""

import io
from importlib import resources
from pathlib import Path

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.preprocessing import load_images
from mae_convert.errors import MaeConvertError
from mae_convert.runtime.inputs import random_inputs
from mae_convert.runtime.running import Request, Run, run_together
from mae_convert.runtime.sides import Side, choose_side
from mae_convert.visualize.sheet import panel

CREDIT = (
    "Photographs: Aitzol Berasategi (CC BY 4.0), NASA (public domain), Stefan van der Walt (CC0),"
    " Rachel Michetti, courtesy of Pikolo Espresso Bar (CC0)."
)


def image_of(checkpoint: Checkpoint) -> bytes | None:
    """Return a PNG file with reconstructions of the photographs in this package.

    The result is None if the model has no decoder, is a video model, does not have three channels,
    or cannot be run, for example because no framework is installed.
    """
    configuration = checkpoint.configuration
    if checkpoint.task != "pretrain" or configuration.model.num_channels != 3:
        return None
    if not checkpoint.family.takes_images:
        return None
    data = Path(str(resources.files("mae_convert") / "data" / "demo"))
    try:
        images = sorted(data.glob("*.jpg"))
        pixels = load_images(images, checkpoint)
        side = choose_side(checkpoint, Side())
        noise = random_inputs(checkpoint.family, configuration.model, batch=len(pixels), seed=1)[
            "noise"
        ]
        request = Request(dtypes=("float32",), taps=False)
        inputs = {"pixel_values": pixels, "noise": noise}
        (trace,) = run_together([Run(checkpoint, side, request)], inputs)
    except MaeConvertError:
        return None
    drawn = panel(
        pixels, trace.arrays["float32/reconstruction"], trace.arrays["mask"],
        [path.name for path in images], checkpoint,
    )  # fmt: skip
    stream = io.BytesIO()
    drawn.save(stream, "PNG")
    return stream.getvalue()
