"""Compare the loss of a timeline with that of the reference model: CHECKPOINT IMAGES."""

import sys
from pathlib import Path

import numpy as np
import torch

from mae_convert.checkpoint.image_files import images_in
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.families.checkpoint_options import Flags
from mae_convert.runtime import load_model
from mae_convert.visualize.patch_masks import noise_of
from mae_convert.visualize.reconstruction import load_cropped
from mae_convert.visualize.timeline import TimelineOptions, timeline

source, images = sys.argv[1], images_in(Path(sys.argv[2]))
for norm in (False, True):
    flags = Flags(norm_pix_loss=norm)
    (point,) = timeline([source], images, TimelineOptions(flags=flags, seed=3)).points
    checkpoint = open_checkpoint(source, flags)
    model = load_model(checkpoint, "torch", dtype="float32")
    assert model.config.norm_pix_loss == norm
    pixels = load_cropped(images, checkpoint, stretch=False)
    noise = noise_of(
        "random", checkpoint.family, checkpoint.configuration.model, count=len(images), seed=3
    )
    for i, ours in enumerate(point.losses):
        given = (torch.from_numpy(array[i : i + 1]) for array in (pixels, noise))
        with torch.inference_mode():
            expected = float(model(*given).loss)
        np.testing.assert_allclose(ours, expected, rtol=2e-5)
