"""Write errors to the JUnit reports of commands that have the option ``--report``."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mae_convert.cli.contradictions import CheckedCommand
from mae_convert.errors import MaeConvertError, OutputError, as_option, one_line
from mae_convert.errors.shortage import shortage

NOT_ERRORS = (click.exceptions.Exit, click.Abort, BrokenPipeError)


class ReportingCommand(CheckedCommand):
    """A command that writes an ``<error>`` to its JUnit reports if it fails with an error.

    Otherwise a CI system would show no report, or the report of an earlier run.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; write the reports if this fails."""
        words = list(args)
        with self._reporting(_reports_in(words), [Path(word) for word in words]):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; write the reports if it fails with an error."""
        words = [value for value in ctx.params.values() if isinstance(value, Path)]
        sources = [ctx.params.get(side) for side in ("a", "b")]
        names = [getattr(s, "name", str(s)) for s in sources if s is not None]
        with self._reporting(ctx.params["reports"], words, names):
            return super().invoke(ctx)

    @contextmanager
    def _reporting(
        self, reports: Sequence[Path], words: Sequence[Path], names: Sequence[str] = ()
    ) -> Iterator[None]:
        try:
            yield
        except NOT_ERRORS:
            raise
        except Exception as error:
            paths = [path for path in reports if path.suffix.lower() == ".xml"]
            models = [word for word in words if word not in reports and str(word) != "."]
            if paths:
                _write(paths, models, str(self.name), names, error)
            raise


def _reports_in(args: Sequence[str]) -> list[Path]:
    """Return the paths of JUnit reports in a command line that could not be parsed."""
    after = zip(args, [*args[1:], ""], strict=True)
    values = [value for word, value in after if word == "--report"]
    values += [word.partition("=")[2] for word in args if word.startswith("--report=")]
    return [Path(value) for value in values if value]


def _write(
    paths: Sequence[Path],
    models: Sequence[Path],
    command: str,
    names: Sequence[str],
    error: Exception,
) -> None:
    """Write the error to the reports; if a report cannot be written, print the reason.

    Args:
        paths: the JUnit files to write.
        models: the other paths of the command line, which a report must not replace.
        command: the name of the command.
        names: the names of the checkpoints, if known.
        error: the error.
    """
    from mae_convert.files.atomic import replacing_file
    from mae_convert.reports.junit import error_junit
    from mae_convert.reports.verdict_files import check_report_names

    status = error.exit_status if isinstance(error, MaeConvertError) else 2
    text = error_junit(command, names, _sentence(error), status)
    for path in paths:
        try:
            check_report_names([path], models)
            with replacing_file(path, overwrite=True) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except (OutputError, OSError) as problem:
            print(f"mae-convert: no report was written: {one_line(str(problem))}", file=sys.stderr)


def _sentence(error: Exception) -> str:
    if isinstance(error, click.UsageError):
        return one_line(error.format_message())
    if isinstance(error, MaeConvertError):
        return error.render(as_option)
    return one_line(shortage(error) or f"{type(error).__name__}: {error}")
