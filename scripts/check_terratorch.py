"""Compare how mae-convert and TerraTorch resize position embeddings.

python scripts/check_terratorch.py CKPT --num-heads 12 --decoder-num-heads 16

Run this script by hand in an environment with TerraTorch. The rest of a model is compared by
``mae-convert verify CKPT TARGET --against terratorch[=PYTHON]``. The exit status is 1 if a position
embedding differs by more than the rounding of float32.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.changes import Geometry, with_geometry
from mae_convert.errors import MaeConvertError
from mae_convert.families.checkpoint_options import Flags

TABLES = ("encoder.position_embedding", "decoder.position_embedding")
LIMIT = 1e-6  # the values are at most 1, in float32


def main() -> int:
    """Compare position embeddings for several image sizes and frame counts; return the status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--num-heads", type=int)
    parser.add_argument("--decoder-num-heads", type=int)
    options = parser.parse_args()
    if find_spec("terratorch") is None:
        parser.exit(3, "TerraTorch is not installed in this environment\n")
    flags = Flags(options.num_heads, options.decoder_num_heads)
    try:
        source = open_checkpoint(options.checkpoint, flags)
    except MaeConvertError as error:
        parser.error(str(error))
    model = source.configuration.model
    (height, width), frames = model.image_hw, model.num_frames
    step = model.patch_hw[0]
    worst = 0.0
    for geometry in (
        Geometry((height + step, width + step)),
        Geometry((2 * height, width - step)),
        Geometry(num_frames=frames + model.tubelet_size),
        Geometry((height + 3 * step, width), num_frames=2 * frames),
    ):
        away = compare(source, geometry)
        worst = max(worst, away)
        print(f"{geometry.image_size or (height, width)}, {geometry.num_frames or frames} frames:"
              f" {away:.1e}")  # fmt: skip
    return 0 if worst <= LIMIT else 1


def compare(source: Checkpoint, geometry: Geometry) -> float:
    """Return the largest difference from TerraTorch after resizing to a new size or frame count."""
    import torch
    from terratorch.models.backbones.prithvi_mae import _interpolate_pos_encoding

    before = source.configuration.model
    after, _ = with_geometry(source, source.task, geometry)
    model, worst = after.configuration.model, 0.0
    for name in TABLES:
        if name not in source.tensors:
            continue
        theirs = _interpolate_pos_encoding(
            pos_embed=torch.from_numpy(source.tensors[name].load().copy()),
            grid_size=list(before.grid_shape),
            patch_size=before.patch_shape,
            shape=(model.num_frames, *model.image_hw),
            embed_dim=source.tensors[name].shape[-1],
        )
        worst = max(worst, float(np.abs(after.tensors[name].load() - theirs.numpy()).max()))
    return worst


if __name__ == "__main__":
    sys.exit(main())
