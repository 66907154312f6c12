"""Commands that run a model on images and show the results."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mae_convert.cli.common import open_with_notes
from mae_convert.cli.contradictions import CheckedCommand
from mae_convert.cli.options import (
    FrameworkType,
    SourceType,
    bands_option,
    checkpoint_options,
    device_option,
    frame_stride_option,
    framework_option,
    json_option,
    preprocessed_option,
)
from mae_convert.cli.streams import print_to_stderr

if TYPE_CHECKING:
    from mae_convert.checkpoint.checkpoint import Checkpoint
    from mae_convert.families.checkpoint_options import Flags
    from mae_convert.sources import Source

PATH = click.Path(path_type=Path)


def installed(framework: str | None) -> str:
    """Return the requested framework or, if it is None, the first installed framework.

    Raises:
        MissingRequirementError: the requested framework is not installed, or no framework is
            installed.
    """
    from mae_convert.runtime.sides import first_framework, require_frameworks

    if framework is None:
        return first_framework()
    require_frameworks(*(("torch", "tensorflow") if framework == "both" else (framework,)))
    return framework


@click.command(cls=CheckedCommand)
@click.argument("src", type=SourceType())
@click.argument("images", type=PATH, nargs=-1, metavar="[IMAGE...]")
@click.option(
    "-o",
    "--output",
    "outputs",
    type=PATH,
    multiple=True,
    required=True,
    metavar="FILE",
    help=(
        "Output image (.png, .jpg, .webp), or a .gif animation over mask ratios from 0.5 to 0.95 "
        "or, for video models, over the frames."
    ),
)
@click.option(
    "--mask",
    default="random",
    show_default=True,
    metavar="random|block|grid|FILE",
    help="Kind of mask; FILE is an image that is white where patches are removed.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--framework",
    type=FrameworkType(["torch", "tensorflow", "jax", "both"]),
    help=(
        "Framework that runs the model. `both` shows PyTorch, TensorFlow and their difference. "
        "[default: the first installed]"
    ),
)
@device_option
@click.option(
    "--fit",
    type=click.Choice(["crop", "stretch"]),
    default="crop",
    show_default=True,
    help="Crop the centre of each image to the model's aspect ratio, or resize the whole image.",
)
@preprocessed_option
@frame_stride_option
@bands_option
@click.option(
    "--across",
    type=click.IntRange(min=1),
    help=(
        "Maximum number of input images (or videos) side by side, each with its masked image and "
        "its reconstruction. [default: depends on the number of inputs]"
    ),
)
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@json_option
@checkpoint_options
def reconstruct(
    src: "Source",
    images: tuple[Path, ...],
    outputs: tuple[Path, ...],
    overwrite: bool,
    as_json: bool,
    state_key: str | None,
    flags: "Flags",
    **options: Any,
) -> None:
    """Mask images or videos and show their reconstructions.

    The output shows the original, the masked image and the reconstruction. Images are files or
    folders of files; --inputs takes preprocessed images. Videos are files (.mp4, .gif ..., or .npz
    with an array frames (T, H, W, C)), folders of frames, or folders of videos. The mask ratio
    is --mask-ratio, else the mask ratio in the checkpoint's configuration, else the default of
    the model family.

    Example:

    \b
        mae-convert reconstruct mae_visualize_vit_base cat.jpg dog.jpg -o look.png
    """
    from mae_convert.cli.output.visualization import reconstructions as show
    from mae_convert.cli.streams import print_json
    from mae_convert.visualize.reconstruct import ReconstructionOptions, write_reconstructions

    if not images and options["inputs"] is None:
        raise click.UsageError(
            "no image is specified; pass image files, videos, directories, or --inputs FILE.npz"
        )
    stretch, framework = options.pop("fit") == "stretch", options.pop("framework")
    settings = ReconstructionOptions(**options, framework=installed(framework), stretch=stretch)
    checkpoint = open_with_notes(src, flags, state_key=state_key)
    report = write_reconstructions(images, checkpoint, outputs, settings, overwrite=overwrite)
    print_json(report) if as_json else show(report)


@click.command(cls=CheckedCommand)
@click.argument("src", type=SourceType())
@click.argument("folder", type=PATH, required=False, metavar="[DIR]")
@click.option("-o", "--output", type=PATH, required=True, metavar="FILE", help="An .npz file.")
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True)
@preprocessed_option
@frame_stride_option
@click.option(
    "--tokens", is_flag=True, help="Also save tokens, the features of every patch (N, L, D)."
)
@framework_option
@device_option
@click.option(
    "--skip-unreadable",
    is_flag=True,
    help="Skip files that cannot be read as images or videos, and list them.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
@json_option
@checkpoint_options
def features(
    src: "Source",
    folder: Path | None,
    output: Path,
    batch: int,
    inputs: Path | None,
    frame_stride: int | None,
    tokens: bool,
    framework: str | None,
    device: str | None,
    skip_unreadable: bool,
    overwrite: bool,
    as_json: bool,
    state_key: str | None,
    flags: "Flags",
) -> None:
    """Save encoder features for a folder of images or videos.

    The names of subfolders are the labels. For video models, a folder of images is a video.

    The file contains names, labels, cls (the class token, if the encoder has one) and mean (the
    mean of the patch tokens). The tokens are taken after the final norm; no patch is removed.

    Example:

    \b
        mae-convert features mae_pretrain_vit_base images -o features.npz
    """
    from mae_convert.cli.output.visualization import features as show
    from mae_convert.cli.output.visualization import features_json
    from mae_convert.cli.streams import print_json
    from mae_convert.files.atomic import check_target
    from mae_convert.visualize.features import Extraction, features_of
    from mae_convert.visualize.image_batch import batch_from_inputs

    check_target(output, overwrite=overwrite, suffixes=(".npz",))
    if folder is None and inputs is None:
        raise click.UsageError("no image is specified; pass a directory, or --inputs FILE.npz")
    chosen = installed(framework)
    checkpoint = open_with_notes(src, flags, state_key=state_key, incomplete=True)
    checkpoint.require_complete("encoder")
    paths, skipped = _files_below(folder, checkpoint, skip=skip_unreadable)
    preprocessed = batch_from_inputs(inputs, checkpoint) if inputs else None
    count = len(preprocessed.names if preprocessed else paths)
    with click.progressbar(
        length=count, label="images", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        result = features_of(
            checkpoint, folder, paths, Extraction(chosen, device, batch, frame_stride, tokens),
            inputs=preprocessed, advance=bar.update,
        )  # fmt: skip
    result.save(output, overwrite=overwrite)
    report = features_json(result, output) | {"skipped": [str(path) for path in skipped]}
    print_json(report) if as_json else show(result, output)


def _files_below(
    folder: Path | None, checkpoint: "Checkpoint", *, skip: bool
) -> tuple[list[Path], dict[Path, str]]:
    """Return the paths of images or videos in a folder, and the reasons why files are skipped.

    Args:
        folder: the folder; None for no files.
        checkpoint: the checkpoint, whose model family takes images or videos.
        skip: skip files that cannot be read, and print the reasons.

    Raises:
        ImageError: the folder contains no image or video, or all of them are skipped.
    """
    from mae_convert.checkpoint.clip_inputs import clips_below, unreadable_clips
    from mae_convert.checkpoint.image_files import images_below, unreadable_images
    from mae_convert.errors import ImageError

    if folder is None:
        return [], {}
    clips = checkpoint.family.clips is not None
    paths = clips_below(folder, checkpoint) if clips else images_below(folder)
    skipped: dict[Path, str] = {}
    if skip:
        skipped = unreadable_clips(paths, checkpoint) if clips else unreadable_images(paths)
    for reason in skipped.values():
        print_to_stderr(f"skipped: {reason}")
    paths = [path for path in paths if path not in skipped]
    if not paths:
        raise ImageError(
            folder,
            f" contains no readable {'video' if clips else 'image'}",
            hint="specify a folder with readable files",
        )
    return paths, skipped


@click.command(cls=CheckedCommand)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default="mae-convert-demo",
    show_default=True,
    help="Directory for the converted models and the image.",
)
def demo(output: Path) -> int:
    """Convert the embedded checkpoint and verify the results.

    The checkpoint is part of this package. It is converted to other layouts and back. The models
    are run in PyTorch and TensorFlow, or only in the framework that is installed.

    Example:

    \b
        mae-convert demo --output /tmp/demo
    """
    from mae_convert.cli.demo import run_demo

    installed(None)
    return 0 if run_demo(output) else 1
