"""The command line's group of commands, and the exit status of a run.

Every command parses its options, calls one function of the library, and prints the result.
Expensive modules are imported inside the commands, so that ``--help`` is fast.
"""

import os
import sys
from collections.abc import Sequence

import click
from click.shell_completion import shell_complete

from mae_convert import __version__
from mae_convert.cli.commands import checkpoints, hub, images, sweeps, verdicts
from mae_convert.cli.streams import prepare_streams, print_to_stderr, print_unexpected
from mae_convert.errors import MaeConvertError, as_option, one_line
from mae_convert.errors.shortage import shortage
from mae_convert.errors.signals import Ended, ended_by, ignore_signals, raise_signals

COMPLETION = "_MAE_CONVERT_COMPLETE"  # set by a shell that requests a completion
NO_OUTPUT = (
    "standard output is closed, so nothing can be printed; redirect it to a file or to /dev/null"
)
COMMANDS = (
    checkpoints.inspect,
    checkpoints.convert,
    checkpoints.diff,
    checkpoints.fingerprint,
    checkpoints.lineage,
    verdicts.trace,
    verdicts.compare,
    verdicts.verify,
    verdicts.repair,
    verdicts.attest,
    verdicts.runner,
    images.reconstruct,
    images.features,
    sweeps.sweep,
    sweeps.timeline,
    hub.catalog,
    hub.download,
    hub.publish,
    checkpoints.layouts,
    images.demo,
)


EXIT_STATUSES = """\b
Exit status:
  0    success; for diff, compare, verify and publish: no difference was found;
       for lineage: the checkpoints are related
  1    a difference was found (for lineage: the checkpoints are not related), or
       a job of a sweep or timeline failed
  2    the input or the call is wrong; standard error says what to do
  3    a required framework or package is missing, or there is no network
  130  interrupted"""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_STATUSES,
)
@click.version_option(__version__, prog_name="mae-convert")
def cli() -> None:
    """Convert Masked Autoencoders between frameworks and verify the result."""


for command in COMMANDS:
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line (default: ``sys.argv[1:]``) and exit with its status."""
    received = raise_signals()
    has_output = prepare_streams()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if instruction := os.environ.get(COMPLETION):
            # Click's status for an unknown shell is 1, which here means that two checkpoints differ
            sys.exit(2 if shell_complete(cli, {}, "mae-convert", COMPLETION, instruction) else 0)
        status, sentence = _outcome(words) if has_output else (2, NO_OUTPUT)
    except Ended as ended:
        status, sentence = int(ended.code or 0), None
    except Exception as error:
        sentence = shortage(error)
        if not received and sentence is None:
            print_unexpected(error)
            sentence = "this is a bug in mae-convert; please report it"
        status = 2  # 2 and not 1, because 1 means that two checkpoints differ
    ignore_signals()
    if received and status:  # a signal in C code or in a class definition raises other errors
        status, sentence = ended_by(received[0])
    if sentence:
        print_to_stderr(f"mae-convert: {sentence}")
    sys.exit(status)


def _outcome(arguments: Sequence[str]) -> tuple[int, str | None]:
    """Run the command line; return its exit status and an error message, if any."""
    if any("\0" in argument for argument in arguments):
        return 2, "an argument contains a NUL character, which is not allowed in names; remove it"
    try:
        # cli.main would treat a closed pipe (`| head`) as a failure. `obj` is a function that
        # commands call when their outputs are complete. If a Python program calls a command, `obj`
        # is None, and the signal handlers of the process are unchanged.
        with cli.make_context("mae-convert", list(arguments), obj=ignore_signals) as ctx:
            status = cli.invoke(ctx)
        sys.stdout.flush()
    except MaeConvertError as error:
        return error.exit_status, error.render(as_option)
    except click.exceptions.Exit as error:  # --help and --version
        return error.exit_code, None
    except click.UsageError as error:
        _printable(error).show()
        return error.exit_code, None
    except (click.Abort, KeyboardInterrupt):
        return 130, "interrupted"
    except BrokenPipeError:
        # A closed pipe as output (`| head`) is not an error.
        from mae_convert.cli.streams import discard_output

        discard_output()
        return 0, None
    except (MemoryError, RecursionError) as error:
        return 2, shortage(error)
    except OSError as error:
        if sentence := shortage(error):
            return 2, one_line(sentence)
        words = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return 2, one_line(words)
    return status or 0, None


def _printable(error: click.UsageError) -> click.UsageError:
    """Return a usage error without the control characters that file names in it may contain.

    Line breaks are kept only in messages that contain no argument values (click lists the choices
    of an option on several lines).
    """
    if isinstance(error, click.MissingParameter):
        return error
    return click.UsageError(one_line(error.format_message()), error.ctx)
