"""The command line: the group of all commands, and how a run of it ends.

Every command parses, calls one function of the library, and prints. Imports that cost time stand
inside the commands, so that ``--help`` answers at once.
"""

import os
import signal
import sys

import click

from mae_convert import __version__
from mae_convert.commands import checkpoints, hub, pictures, sweeps, verdicts
from mae_convert.commands.ending import ignore_interrupts, raise_interrupts
from mae_convert.errors import MaeConvertError

COMMANDS = (
    checkpoints.inspect,
    checkpoints.convert,
    checkpoints.diff,
    verdicts.trace,
    verdicts.compare,
    verdicts.verify,
    pictures.reconstruct,
    pictures.features,
    sweeps.sweep,
    sweeps.timeline,
    hub.catalog,
    hub.download,
    hub.publish,
    checkpoints.layouts,
    pictures.demo,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mae-convert")
def cli() -> None:
    """Move Masked Autoencoders between frameworks, and prove that nothing changed."""


for command in COMMANDS:
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit status."""
    # A polite end, so that what was begun is cleaned up.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    interrupts = raise_interrupts()
    try:
        status, sentence = _outcome(arguments)
    except Exception:
        if not interrupts:
            raise
        status, sentence = 130, None
    ignore_interrupts()
    if interrupts and status:  # C code, and the making of a class, turn them into other errors
        status, sentence = 130, "interrupted"
    if sentence:
        click.echo(f"mae-convert: {sentence}", err=True)
    sys.exit(status)


def _outcome(arguments: list[str] | None) -> tuple[int, str | None]:
    """Run the command line; return its exit status and what there is to complain about."""
    try:
        # Not cli.main, which takes a reader that has gone (`| head`) for a failure.
        with cli.make_context(
            "mae-convert", sys.argv[1:] if arguments is None else arguments
        ) as ctx:
            status = cli.invoke(ctx)
        sys.stdout.flush()
    except MaeConvertError as error:
        return error.exit_status, str(error)
    except click.exceptions.Exit as error:  # --help and --version
        return error.exit_code, None
    except click.UsageError as error:
        error.show()
        return error.exit_code, None
    except (click.Abort, KeyboardInterrupt):
        return 130, "interrupted"
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); that is not ours to complain about.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0, None
    except OSError as error:
        return 2, f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return status or 0, None
