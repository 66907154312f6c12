"""Options that several commands have, and the types of their values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mae_convert.families.checkpoint_options import (
    CHECKPOINT_OPTIONS,
    LARGEST_COUNT,
    OF_FIELDS,
    ByteSize,
    CheckpointOption,
    ImageSize,
    Kind,
    Switch,
    flags_of,
)
from mae_convert.runtime.run_options import (
    DEVICES,
    FRAMEWORK_SYNONYMS,
    FRAMEWORKS,
    MODES,
    RUN_DTYPES,
)

Command = Callable[..., Any]


class FrameworkType(click.Choice[str]):
    """The name of a framework, or a common alias of it."""

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Return the name of the framework that the value, a name or an alias, specifies."""
        return super().convert(FRAMEWORK_SYNONYMS.get(value, value), param, ctx)


class RunnerType(click.ParamType):
    """A framework, or external code: a file, a module, or a clone of the authors' code."""

    name = "runner"

    def get_metavar(self, param: Any, ctx: Any) -> str:  # noqa: ARG002
        """Return the placeholder for a value in help texts."""
        return f"[{'|'.join(FRAMEWORKS)}|CODE]"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Return the name of the framework, or the specification of the code."""
        from mae_convert.runtime.foreign import FORMS, names_code

        name = FRAMEWORK_SYNONYMS.get(value, value)
        if name in FRAMEWORKS or names_code(name):
            return str(name)
        choices = ", ".join(map(repr, FRAMEWORKS))
        raise click.BadParameter(f"{value!r} is not one of {choices} and not {FORMS}", ctx, param)

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> Any:  # noqa: ARG002
        """Return the frameworks whose names begin with the incomplete text."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(name) for name in FRAMEWORKS if name.startswith(incomplete)]


DTYPE = click.Choice(["float64", "float32", "float16", "bfloat16"])
RUN_DTYPE = click.Choice(RUN_DTYPES)
RUNNER = RunnerType()
DEVICE = click.Choice(DEVICES)
REFERENCE = FrameworkType(["torch", "tensorflow", "jax"])
COUNT = click.IntRange(1, LARGEST_COUNT)
MODE = click.Choice(MODES)
SECONDS = click.FloatRange(min=0)


class ValueType(click.ParamType):
    """The type of an option: one of the types in `mae_convert.families.checkpoint_options`."""

    def __init__(self, kind: Kind, metavar: str = "") -> None:
        self.kind = kind
        self.name = metavar or kind.metavar

    def get_metavar(self, param: Any, ctx: Any) -> str:  # noqa: ARG002
        """Return the placeholder for a value in help texts."""
        return self.name

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value that a text represents."""
        if not isinstance(value, str):
            return value
        try:
            return self.kind.read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


IMAGE_SIZE = ValueType(ImageSize())
BYTE_SIZE = ValueType(ByteSize())


class SourceType(click.ParamType):
    """A checkpoint: a path, hf://owner/name[@revision][/file], or an official name.

    Nothing is downloaded here; `mae_convert.sources` downloads checkpoints.
    """

    name = "source"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:  # noqa: ARG002
        """Return a path, a Hub reference, or an entry of the catalog of official checkpoints."""
        from mae_convert.sources.reference import parse_source

        return parse_source(value) if isinstance(value, str) else value

    def shell_complete(self, ctx: Any, param: Any, incomplete: str) -> Any:  # noqa: ARG002
        """Return official names and files that begin with the incomplete text."""
        from mae_convert.cli.completion import complete_source

        return complete_source(incomplete)


def checkpoint_options(command: Command) -> Command:
    """Add the options for fields that a checkpoint does not store, and the option ``--state-key``.

    The command receives the options for configuration fields as ``flags``. ``--state-key``, which
    selects the weights in the file, is the separate argument ``state_key``.
    """

    def with_flags(**options: Any) -> Any:
        values = {option.name: options.pop(option.name) for option in OF_FIELDS.values()}
        return command(flags=flags_of(values), **options)

    return with_options(command, with_flags, list(map(_checkpoint_option, CHECKPOINT_OPTIONS)))


def _checkpoint_option(option: CheckpointOption) -> Command:
    name = option.name.replace("_", "-")
    if isinstance(option.kind, Switch):
        return click.option(f"--{name}/--no-{name}", default=None, help=option.help)
    return click.option(f"--{name}", type=ValueType(option.kind, option.metavar), help=option.help)


infer_option = click.option(
    "--infer",
    "use_infer",
    is_flag=True,
    help=(
        "Determine by experiment the fields that the checkpoint does not store (number of heads, "
        "norm_pix_loss ...)."
    ),
)
images_option = click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help=(
        "With --infer: directory of images or videos that are similar to the training data. "
        "[default: four photographs]"
    ),
)


framework_option = click.option(
    "--framework",
    type=REFERENCE,
    help="Framework that runs the model. [default: the first installed]",
)


class Bands(click.ParamType):
    """One or three channel numbers, starting from 1, such as 3,2,1."""

    name = "N[,N,N]"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, ...]:
        """Return the channel numbers."""
        if isinstance(value, tuple):
            return value
        numbers = str(value).split(",")
        all_numbers = all(n.strip().isascii() and n.strip().isdecimal() for n in numbers)
        if len(numbers) not in (1, 3) or not all_numbers or not all(int(n) for n in numbers):
            self.fail(f"{value!r} is not one or three channels; write 1 or 3,2,1", param, ctx)
        return tuple(map(int, numbers))


preprocessed_option = click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=(
        "Instead of images: an .npz file with preprocessed pixel_values, (N, C, H, W) or for "
        "videos (N, C, T, H, W), with any number of channels, and optionally noise (N, L)."
    ),
)
frame_stride_option = click.option(
    "--frame-stride",
    type=COUNT,
    metavar="N",
    help=(
        "Use every Nth frame of a video. [default: as in the training of the model family; the "
        "number is printed]"
    ),
)
bands_option = click.option(
    "--bands",
    type=Bands(),
    help=(
        "Channels to display as red, green and blue, or one channel for grey. [default: 1,2,3; for"
        " satellite images the red, green and blue bands]"
    ),
)
device_option = click.option(
    "--device",
    type=DEVICE,
    help="Device that runs the model. [default: cpu, or Keras's default device]",
)
time_limit_option = click.option(
    "--time-limit",
    type=SECONDS,
    metavar="SECONDS",
    help=(
        "Time limit in seconds for each run of a framework; 0 means no limit. [default: the "
        "environment variable MAE_CONVERT_TIME_LIMIT, or 3600]"
    ),
)
task_option = click.option(
    "--task",
    type=click.Choice(["pretrain", "encoder", "classify"]),
    help="Task of the model to read; tensors that the task does not need are ignored.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."
)


def with_options(command: Command, wrapper: Command, options: list[Command]) -> Command:
    """Return `wrapper` with a command's name, docstring and options, and with additional options.

    Args:
        command: the function of the command.
        wrapper: a function that calls `command`; it is changed in place.
        options: decorators of the additional options, which the help lists first.
    """
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(options):
        wrapper = option(wrapper)
    return wrapper


def input_options(command: Command) -> Command:
    """Add the options for the images and the noise of a run.

    The command receives their values as ``inputs``.
    """

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
            click.option(
                "--inputs",
                type=path,
                help=".npz file with pixel_values (N, C, H, W) and, with masking, noise (N, L).",
            ),
            click.option(
                "--images",
                type=path,
                metavar="DIR",
                help=(
                    "Directory of images (or of videos, for a video model) to preprocess and use "
                    "as inputs."
                ),
            ),
            click.option(
                "--seed",
                type=click.IntRange(min=0),
                default=0,
                show_default=True,
                help="Seed of the random images and of the noise.",
            ),
            click.option(
                "--batch",
                type=COUNT,
                help=(
                    "Number of random images (default 2), or maximum number of images of --images "
                    "(default 16)."
                ),
            ),
            click.option(
                "--unmasked",
                is_flag=True,
                help="Remove no patches and keep their order, like a classifier or a timm model.",
            ),
            click.option(
                "--gradients",
                is_flag=True,
                help="Also compute the gradient of the loss with respect to every trainable "
                "parameter.",
            ),
        ],
    )


PEM: dict[str, Any] = {"type": click.Path(path_type=Path), "metavar": "PEM"}
trust_config_option = click.option(
    "--trust-config",
    type=click.Path(path_type=Path),
    metavar="JSON",
    help="File with the trust configuration of a sigstore instance. [default: the public instance]",
)
certificate_chain_option = click.option(
    "--certificate-chain",
    "chain",
    multiple=True,
    help="Certificate of an authority that issued the signing certificate; can be repeated.",
    **PEM,
)


def signing_options(*, prefix: str = "") -> Callable[[Command], Command]:
    """Return a decorator that adds the options for signing to a command.

    The command receives their values as ``signer``.

    Args:
        prefix: the prefix of the options: "sign-" for a command that can sign its output; "" for a
            command that only signs.
    """

    def decorator(command: Command) -> Command:
        def with_signer(**options: Any) -> Any:
            from mae_convert.verify.signing import Signer, secret_in

            names = ("private_key", "certificate", "chain", "keyless", "trust_config")
            fields = {name: options.pop(name) for name in names}
            secrets = (options.pop("password_file"), options.pop("identity_token_file"))
            password, token = map(secret_in, secrets)
            signer = Signer(**fields, password=password, identity_token=token)
            return command(signer=signer if signer != Signer() else None, **options)

        key = "--sign" if prefix else "--private-key"
        file = click.Path(path_type=Path)
        options = [
            click.option(key, "private_key", help="Elliptic curve private key for signing.", **PEM),
            click.option(
                "--password-file", type=file, help="File with the password of the private key."
            ),
            click.option(
                "--signing-certificate",
                "certificate",
                help="X.509 certificate of the private key.",
                **PEM,
            ),
            certificate_chain_option,
            click.option(
                f"--{prefix}keyless",
                "keyless",
                is_flag=True,
                help=(
                    "Sign with sigstore, without a key, as an identity that an OpenID provider "
                    "confirms; this requires a network."
                ),
            ),
            click.option(
                "--identity-token-file",
                type=file,
                help=(
                    "File with the OpenID provider's token. [default: the token of the CI job, or "
                    "a login in the browser]"
                ),
            ),
            trust_config_option,
        ]
        return with_options(command, with_signer, options)

    return decorator


def trust_options(command: Command) -> Command:
    """Add the options that specify which signatures are accepted.

    The command receives their values as ``trust``.
    """

    def with_trust(**options: Any) -> Any:
        from mae_convert.verify.signing import Trust

        names = ("public_key", "chain", "identity", "identity_provider", "trust_config")
        trust = Trust(**{name: options.pop(name) for name in names})
        return command(trust=trust if trust != Trust() else None, **options)

    return with_options(
        command,
        with_trust,
        [
            click.option(
                "--public-key",
                help=(
                    "If only A is specified: also check the signature of A, and the statement that "
                    "`attest` wrote, with this key."
                ),
                **PEM,
            ),
            certificate_chain_option,
            click.option(
                "--identity",
                metavar="NAME",
                help="Accept a signature that this identity created without a key.",
            ),
            click.option(
                "--identity-provider",
                metavar="URL",
                help="OpenID provider that confirmed the signer's identity.",
            ),
            trust_config_option,
        ],
    )


def side_options(command: Command) -> Command:
    """Add the options that specify how each of two checkpoints is run.

    The command receives their values as ``sides``.
    """

    def with_sides(**options: Any) -> Any:
        from mae_convert.runtime.sides import Side, with_foreign

        limit = options.pop("time_limit")
        names = ("framework", "device", "python", "mode")
        sides = {
            side: Side(**{name: options.pop(f"{name}_{side}") for name in names}, time_limit=limit)
            for side in "ab"
        }
        both = tuple(with_foreign(side, f"framework_{name}") for name, side in sides.items())
        return command(sides=both, **options)

    options = []
    for side in "ab":
        what = side.upper()
        options += [
            click.option(
                f"--framework-{side}",
                type=RUNNER,
                help=(
                    f"Framework that runs {what}, or external code as for `verify --against`. "
                    f"[default: the framework whose tensor names {what} has]"
                ),
            ),
            click.option(f"--device-{side}", type=DEVICE, default="cpu", show_default=True),
            click.option(
                f"--python-{side}",
                help=(
                    f"Python interpreter of the environment in which {what}'s framework is "
                    "installed."
                ),
            ),
            click.option(
                f"--mode-{side}",
                type=MODE,
                default="eager",
                show_default=True,
                help=(
                    f"Run {what} eagerly, compiled (torch.compile, tf.function), compiled by XLA, "
                    "or in training mode with dropout 0."
                ),
            ),
        ]
    return with_options(command, with_sides, [*options, time_limit_option])
