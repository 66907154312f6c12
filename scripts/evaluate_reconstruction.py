#!/usr/bin/env python3
"""Measure how well a masked autoencoder reconstructs removed patches, and draw reconstructions.

Nine squares of each image are evaluated, each with several masks: the largest square in the middle,
and eight squares with 60 % of its side, in the corners and at the middle of the edges. The errors
over removed pixels are compared with the errors of three predictions without a model: one colour
for all patches (the mean of the training set), the mean colour of the visible patches, and the mean
colour of the nearest visible patch.

    python scripts/evaluate_reconstruction.py CHECKPOINT IMAGE... [--panel OUT.png]
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pretrain import IMAGE_MEAN, IMAGE_STD, load_image, read_checkpoint, to_pixels
from torch import Tensor

from reference_models.configuration import ViTMAEConfig
from reference_models.pytorch import ViTMAEForPreTraining

MASKED_GREY = (127.5, 127.5, 127.5)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="a .pth that contains model and config")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument(
        "--masks",
        type=int,
        default=16,
        metavar="N",
        help="number of random masks for each of the nine square crops (3 x 3) of an image",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the masks")
    parser.add_argument(
        "--mean-colour",
        type=float,
        nargs=3,
        default=[255 * channel for channel in IMAGE_MEAN],
        metavar=("R", "G", "B"),
        help="mean colour of the training set, 0 to 255 (default: the mean of ImageNet)",
    )
    parser.add_argument(
        "--panel",
        metavar="OUT.png",
        help="image file to write, with reconstructions of the largest square of each image",
    )
    parser.add_argument("--zoom", type=int, default=2, metavar="N", help="magnification of OUT.png")
    return parser.parse_args()


def load_model(path: str) -> ViTMAEForPreTraining:
    """Load the model from a checkpoint that `pretrain.py` wrote."""
    checkpoint = read_checkpoint(path)
    if "config" not in checkpoint:
        sys.exit(f"{path} has no config: use a file that pretrain.py wrote")
    model = ViTMAEForPreTraining(ViTMAEConfig.from_dict(checkpoint["config"]))
    model.load_state_dict(checkpoint["model"])
    return model.eval()


def squares(image: Image.Image, config: ViTMAEConfig) -> Iterator[Tensor]:
    """Yield nine squares of an image, resized to the model's image size, the largest first."""
    side = min(image.size)
    small = 0.6 * side
    yield cut(image, 0.5, 0.5, side, config)
    for x in (0.0, 0.5, 1.0):
        for y in (0.0, 0.5, 1.0):
            if (x, y) != (0.5, 0.5):
                yield cut(image, x, y, small, config)


def cut(image: Image.Image, x: float, y: float, side: float, config: ViTMAEConfig) -> Tensor:
    """Return a square part of an image, resized to the model's image size, as pixels (3, H, W).

    The side of the square is `side` pixels of the image.
    The square is at the left edge for x = 0 and at the right edge for x = 1; it is at the top edge
    for y = 0 and at the bottom edge for y = 1.
    """
    left, upper = x * (image.width - side), y * (image.height - side)
    height, width = config.image_hw
    box = (left, upper, left + side, upper + side)
    return to_pixels(image.resize((width, height), Image.Resampling.BICUBIC, box))


def fill_colour(colour: Sequence[float], patches: Tensor) -> Tensor:
    """Return patches of one colour, normalized, in the shape of `patches`, (N, L, P).

    Args:
        colour: red, green and blue, each from 0 to 255.
        patches: (N, L, P); only the shape is used.
    """
    normalized = (torch.tensor(colour) / 255 - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
    return normalized.repeat(patches.shape[2] // 3).expand_as(patches)


def fill_visible_mean(patches: Tensor, mask: Tensor) -> Tensor:
    """Return patches (N, L, P) filled with the mean colour of visible patches of the same image."""
    colours = patches.unflatten(-1, (-1, 3)).mean(dim=2)  # (N, L, 3)
    visible = (1 - mask).unsqueeze(-1)
    mean = (colours * visible).sum(dim=1, keepdim=True) / visible.sum(dim=1, keepdim=True)
    return mean.repeat(1, patches.shape[1], patches.shape[2] // 3)


def fill_nearest(patches: Tensor, mask: Tensor, config: ViTMAEConfig) -> Tensor:
    """Return patches (N, L, P), each filled with the mean colour of the nearest visible patch."""
    colours = patches.unflatten(-1, (-1, 3)).mean(dim=2)  # (N, L, 3)
    cells = torch.tensor(np.indices(config.grid_hw).reshape(2, -1).T.copy(), dtype=torch.float32)
    distances = torch.cdist(cells, cells) + 1e6 * mask.unsqueeze(1)  # (N, L, L)
    nearest = distances.argmin(dim=-1, keepdim=True)  # (N, L, 1)
    return colours.take_along_dim(nearest, dim=1).repeat(1, 1, patches.shape[2] // 3)


def removed_errors(guess: Tensor, patches: Tensor, mask: Tensor) -> tuple[float, float]:
    """Return the errors over removed pixels.

    The errors are the mean squared error of normalized values, and the root mean squared error on
    the scale 0 to 255.
    """
    errors = (guess - patches)[mask > 0].unflatten(-1, (-1, 3))  # (removed, pixels, 3)
    on_255 = errors * torch.tensor(IMAGE_STD) * 255
    return float(errors.square().mean()), float(on_255.square().mean().sqrt())


@torch.no_grad()
def evaluate(
    model: ViTMAEForPreTraining, pixels: Tensor, noise: Tensor, mean_colour: Sequence[float]
) -> dict[str, tuple[float, float]]:
    """Return the errors of the model and of three simple predictions.

    A simple prediction fills each removed patch with one colour: the mean colour of the nearest
    visible patch, of all visible patches of the image, or of the training data.

    Args:
        model: the model.
        pixels: (N, 3, H, W).
        noise: (N, L), determines the removed patches.
        mean_colour: the mean colour of the training data: red, green and blue, from 0 to 255.

    Returns:
        The errors of each prediction by its name, see `removed_errors`.
    """
    output = model(pixels, noise)
    patches, mask = model.patchify(pixels), output.mask
    guesses = {
        "model": output.logits,
        "nearest": fill_nearest(patches, mask, model.config),
        "visible mean": fill_visible_mean(patches, mask),
        "training mean": fill_colour(mean_colour, patches),
    }
    return {name: removed_errors(guess, patches, mask) for name, guess in guesses.items()}


def make_noise(images: int, config: ViTMAEConfig, seed: int) -> Tensor:
    """Return the noise (N, L) of the masks."""
    rng = np.random.Generator(np.random.Philox(seed))
    return torch.from_numpy(rng.random((images, config.num_patches), dtype=np.float32))


@torch.no_grad()
def draw_row(model: ViTMAEForPreTraining, pixels: Tensor, noise: Tensor) -> np.ndarray:
    """Return four images side by side, (H, 4 W, 3) uint8.

    The images are the first image of `pixels`, the masked image, the reconstruction, and the
    reconstruction with the visible patches of the original.
    """
    output = model(pixels, noise)
    patches = model.patchify(pixels)
    removed = output.mask.unsqueeze(-1) > 0
    views = (
        pixels,
        model.unpatchify(torch.where(removed, fill_colour(MASKED_GREY, patches), patches)),
        model.reconstruct(pixels, output.logits),
        model.reconstruct(pixels, output.logits, output.mask),
    )
    row = torch.cat(views, dim=3)[0].permute(1, 2, 0)  # (H, 4 W, 3)
    colours = (row * torch.tensor(IMAGE_STD) + torch.tensor(IMAGE_MEAN)) * 255
    return colours.round().clamp(0, 255).byte().numpy()


def main() -> None:
    """Print the errors, one line for each image, and draw the panel if it is requested."""
    args = parse_arguments()
    model = load_model(args.checkpoint)
    rows = []
    print(
        "errors of removed pixels: mean squared error of normalized values, and in parentheses root"
        " mean squared error of values from 0 to 255"
    )
    for path in map(Path, args.images):
        try:
            image = load_image(path)
        except OSError as error:
            sys.exit(f"{path} can't be read as an image: {error}")
        cuts = torch.stack(list(squares(image, model.config)))
        noise = make_noise(len(cuts) * args.masks, model.config, args.seed)
        errors = evaluate(model, cuts.repeat(args.masks, 1, 1, 1), noise, args.mean_colour)
        cells = "  ".join(f"{n} {mse:.3f} ({rmse:.1f})" for n, (mse, rmse) in errors.items())
        print(f"{path.stem:<12}  {cells}")
        rows.append(draw_row(model, cuts[:1], noise[:1]))
    if args.panel:
        panel = Image.fromarray(np.concatenate(rows))
        size = (panel.width * args.zoom, panel.height * args.zoom)
        panel.resize(size, Image.Resampling.NEAREST).save(args.panel)


if __name__ == "__main__":
    main()
