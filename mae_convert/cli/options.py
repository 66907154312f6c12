"""Options that several commands share, and the types of their values."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]

FRAMEWORK_SYNONYMS = {"pytorch": "torch", "tf": "tensorflow"}


class FrameworkType(click.Choice[str]):
    """A framework, by its name here or by one that is common elsewhere."""

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Return the name here."""
        return super().convert(FRAMEWORK_SYNONYMS.get(value, value), param, ctx)


DTYPE = click.Choice(["float64", "float32", "float16", "bfloat16"])
RUN_DTYPE = click.Choice(["float64", "float32", "tf32", "float16", "bfloat16"])
FRAMEWORK = FrameworkType(["torch", "tensorflow", "jax", "transformers", "timm"])
DEVICE = click.Choice(["cpu", "cuda"])
REFERENCE = FrameworkType(["torch", "tensorflow", "jax"])
COUNT = click.IntRange(1, 1_000_000)  # more is a slip of the finger, and memory that is not there
POOLING = click.Choice(["token", "avg"])
MODE = click.Choice(["eager", "compiled", "xla", "train"])
SECONDS = click.FloatRange(min=0)


class ImageSize(click.ParamType):
    """An image's size: one number for a square, or HxW."""

    name = "HxW"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        """Return (height, width)."""
        if isinstance(value, tuple):
            return value
        sides = str(value).lower().split("x")
        if len(sides) > 2 or not all(re.fullmatch("0*[1-9][0-9]{0,5}", side) for side in sides):
            self.fail(f"{value!r} is no size; write 224 or 224x192 (height x width)", param, ctx)
        return int(sides[0]), int(sides[-1])


class SourceType(click.ParamType):
    """A checkpoint: a path, hf://owner/name[@revision][/file], or an official name.

    Nothing is downloaded here; `mae_convert.sources` does that for every command.
    """

    name = "source"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:  # noqa: ARG002
        """Return a path, a place on the Hub, or an entry of the catalog."""
        from mae_convert.sources.reference import parse_source

        return parse_source(value) if isinstance(value, str) else value

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> Any:  # noqa: ARG002
        """Return official names and files."""
        from mae_convert.cli.completion import complete_source

        return complete_source(incomplete)


class ByteSize(click.ParamType):
    """A number of bytes, as 500MB, 2GB or 2GiB."""

    name = "SIZE"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Return the number of bytes."""
        from mae_convert.convert.output_options import byte_count
        from mae_convert.errors import OutputError

        try:
            return byte_count(value)
        except OutputError as error:
            self.fail(str(error), param, ctx)


def checkpoint_options(command: Command) -> Command:
    """Add the options that say what a checkpoint's file does not.

    They arrive as ``flags``, and ``--state-key``, which is about the file itself, by its name.
    """

    def with_flags(**options: Any) -> Any:
        from mae_convert.checkpoint.open import Flags

        size = options.pop("source_image_size")
        flags = Flags(
            num_attention_heads=options.pop("num_heads"),
            decoder_num_attention_heads=options.pop("decoder_num_heads"),
            layer_norm_eps=options.pop("layer_norm_eps"),
            decoder_layer_norm_eps=options.pop("decoder_layer_norm_eps"),
            global_pool=options.pop("global_pool"),
            norm_pix_loss=options.pop("norm_pix_loss"),
            mask_ratio=options.pop("mask_ratio"),
            image_size=size[0] if size and size[0] == size[1] else size,
        )
        return command(flags=flags, **options)

    options = [
        click.option(
            "--state-key",
            metavar="KEY",
            help="Key of the weights, or the prefix of their names, where a file has several models"
            " (teacher, model_ema).",
        ),
        click.option("--num-heads", type=int, help="Attention heads of the encoder."),
        click.option("--decoder-num-heads", type=int, help="Attention heads of the decoder."),
        click.option("--layer-norm-eps", type=float, help="Epsilon of the layer norms."),
        click.option(
            "--decoder-layer-norm-eps",
            type=float,
            help="Epsilon of the decoder's, where it is another.",
        ),
        click.option(
            "--global-pool",
            type=POOLING,
            help="What a classifier reads: the class token, or the mean of the patches.",
        ),
        click.option(
            "--norm-pix-loss/--no-norm-pix-loss",
            default=None,
            help="Trained to predict patches normalised one by one.",
        ),
        click.option("--mask-ratio", type=float, help="Share of patches that is removed."),
        click.option(
            "--source-image-size",
            type=ImageSize(),
            help="Image size of the position embeddings, where the grid is not square.",
        ),
    ]
    return with_options(command, with_flags, options)


infer_option = click.option(
    "--infer",
    "use_infer",
    is_flag=True,
    help="Find by experiment what the file does not specify (heads, norm_pix_loss ...).",
)
images_option = click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="With --infer: images like those of training.  [default: four photographs]",
)


framework_option = click.option(
    "--framework", type=REFERENCE, help="Default: the first that is installed."
)


class Bands(click.ParamType):
    """Numbers of channels from 1: one, or three as 3,2,1."""

    name = "N[,N,N]"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        numbers = str(value).split(",")
        known = all(n.strip().isascii() and n.strip().isdecimal() for n in numbers)
        if len(numbers) not in (1, 3) or not known or not all(int(n) for n in numbers):
            self.fail(f"{value!r} is not one channel or three; write 1, or 3,2,1", param, ctx)
        return tuple(map(int, numbers))


preprocessed_option = click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="In place of image files: an .npz with pixel_values (N, C, H, W) as the model takes them,"
    " of any number of channels; it may hold noise (N, L).",
)
bands_option = click.option(
    "--bands",
    type=Bands(),
    help="Channels of --inputs to show as red, green and blue, or one in grey.  [default: 1,2,3]",
)
device_option = click.option("--device", type=DEVICE, help="Default: cpu, or where Keras puts it.")
time_limit_option = click.option(
    "--time-limit",
    type=SECONDS,
    metavar="SECONDS",
    help="That a framework's run may take; 0 is no limit.  [default: MAE_CONVERT_TIME_LIMIT, 3600]",
)
task_option = click.option(
    "--task",
    type=click.Choice(["pretrain", "encoder", "classify"]),
    help="Read the checkpoint as this; what it does not need is left out.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."
)


def with_options(command: Command, wrapper: Command, options: list[Command]) -> Command:
    """Return a wrapper of a command with the command's own options and these before them."""
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(options):
        wrapper = option(wrapper)
    return wrapper


def input_options(command: Command) -> Command:
    """Add the options that say what pictures and noise a model is run on, as ``inputs``."""

    def with_inputs(**options: Any) -> Any:
        from mae_convert.runtime.inputs import InputChoice

        names = ("inputs", "images", "seed", "batch")
        choice = InputChoice(*(options.pop(name) for name in names))
        return command(inputs=choice, **options)

    path = click.Path(path_type=Path)
    return with_options(
        command,
        with_inputs,
        [
            click.option("--inputs", type=path, help=".npz with pixel_values and noise."),
            click.option(
                "--images",
                type=path,
                metavar="DIR",
                help="Pictures, put through the model's own preprocessing.",
            ),
            click.option(
                "--seed",
                type=click.IntRange(min=0),
                default=0,
                show_default=True,
                help="Seed of random pictures and of the noise.",
            ),
            click.option(
                "--batch",
                type=COUNT,
                help="Number of random pictures, or at most so many of --images.  [default: 2; 16]",
            ),
            click.option(
                "--unmasked",
                is_flag=True,
                help="Leave no patch out and keep their order, as classifiers and timm do.",
            ),
            click.option(
                "--gradients",
                is_flag=True,
                help="Also the gradient of the loss for every trainable parameter.",
            ),
        ],
    )


def side_options(command: Command) -> Command:
    """Add the options that say how two checkpoints are run, as ``sides``, one for each."""

    def with_sides(**options: Any) -> Any:
        from mae_convert.runtime.sides import Side

        limit = options.pop("time_limit")
        names = ("framework", "device", "python", "mode")
        sides = tuple(
            Side(**{name: options.pop(f"{name}_{side}") for name in names}, time_limit=limit)
            for side in "ab"
        )
        return command(sides=sides, **options)

    options = []
    for side in "ab":
        what = side.upper()
        options += [
            click.option(
                f"--framework-{side}",
                type=FRAMEWORK,
                help=f"Default: the one that reads {what} natively.",
            ),
            click.option(f"--device-{side}", type=DEVICE, default="cpu", show_default=True),
            click.option(
                f"--python-{side}",
                help=f"Interpreter of the environment that has {what}'s framework.",
            ),
            click.option(
                f"--mode-{side}",
                type=MODE,
                default="eager",
                show_default=True,
                help=f"Run {what} as it is, compiled, or as in training with dropout 0.",
            ),
        ]
    return with_options(command, with_sides, [*options, time_limit_option])
