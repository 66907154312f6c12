"""Write verdicts to files: JSON, JUnit XML, Markdown or HTML.

A report contains no time stamp, so the reports of identical verifications have identical bytes.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_convert.errors import OutputError
from mae_convert.files.atomic import check_target, write_file
from mae_convert.files.strict_json import plain
from mae_convert.reports.junit import verdict_junit
from mae_convert.text import code_in_markdown, for_markdown
from mae_convert.verify.certificate import environment
from mae_convert.verify.judge import Verdict
from mae_convert.verify.summary import (
    effects_in_words,
    headline,
    runner_in_words,
    step_rows,
    summary,
    suspects_title,
    verdict_in_words,
)

if TYPE_CHECKING:
    from mae_convert.verify.verification import Verification

FORMAT = 1  # the version of the JSON object, which verdict.schema.json describes


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as a dictionary that conforms to ``verdict.schema.json``."""
    return {
        "format": FORMAT,
        "verdict": headline(verdict),
        **asdict(verdict),
        "environment": environment(),
    }


def check_report_names(paths: Sequence[Path], models: Sequence[Path] = ()) -> None:
    """Raise an error for paths to which no report can be written, before any work is done.

    Raises:
        OutputError: the suffix is unknown, the directory is missing, or the file belongs to a
            model.
    """
    for path in paths:
        check_target(path, overwrite=True, suffixes=WRITERS)
    own = {model.resolve() for model in models}
    for path in paths:
        if own & {path.resolve(), path.resolve().parent}:
            raise OutputError(path, " is part of a model", hint="write the report elsewhere")


def remove_old_reports(paths: Sequence[Path]) -> None:
    """Remove the reports of an earlier run, so that they do not remain if this run fails.

    Raises:
        OutputError: a report cannot be removed.
    """
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                "the report ",
                path,
                f" cannot be replaced: {error.strerror}",
                hint="choose another name, or remove the existing file",
            ) from error


def write_reports(verification: "Verification", paths: Sequence[Path]) -> None:
    """Write the verdict to every path, in the format of its suffix.

    Raises:
        OutputError: a report cannot be written; no partial report remains.
    """
    for path in paths:
        text = WRITERS[path.suffix.lower()](verification)
        write_file(path, text, overwrite=True)


def _as_json(verification: "Verification") -> str:
    return json.dumps(plain(verdict_json(verification.verdict)), indent=2) + "\n"


def markdown(verification: "Verification") -> str:
    """Return the verdict as Markdown, for a pull request or a CI job's summary."""
    verdict = verification.verdict
    meaning = verdict_in_words(verdict)[1]
    lines = [
        f"## {'✅' if verdict.passed else '❌'} {for_markdown(headline(verdict))}",
        "",
        f"{for_markdown(meaning[0].upper() + meaning[1:])}.",
        "",
    ]
    for runner in verdict.witnesses:
        lines.append(f"- {_runner(runner)}")
    lines += ["", "| compared | measured difference | limit | |", "|---|---|---|---|"]
    for line in summary(verdict.checks):
        mark = "ok" if line.passed else "**FAILED**"
        cells = map(for_markdown, (line.title, line.measured, line.limit))
        lines.append(f"| {' | '.join(cells)} | {mark} |")
    lines.append("")
    lines += _steps_in_markdown(verdict)
    if verdict.first_divergence:
        lines.append(f"First divergence: {code_in_markdown(verdict.first_divergence)}")
    if verdict.suspects and not verdict.passed:
        names = ", ".join(map(code_in_markdown, verdict.suspects[:6]))
        lines.append(f"{suspects_title(verdict).capitalize()}: {names}")
    lines += [f"- meaning: {for_markdown(meaning)}" for meaning in verdict.meanings]
    lines += [f"- cause: {for_markdown(cause)}" for cause in verdict.causes]
    lines += [f"- not compared: {for_markdown(what)}" for what in verdict.not_compared]
    lines += [f"- {for_markdown(sentence)}" for sentence in effects_in_words(verdict.effects)]
    return "\n".join(lines).rstrip() + "\n"


def _steps_in_markdown(verdict: Verdict) -> Iterator[str]:
    """Yield the lines of a Markdown table of the step-isolated comparison, if it was requested.

    In this comparison, each step of the model (such as a block) gets the same input on both sides.
    """
    if not verdict.isolated:
        return
    columns, rows = step_rows(verdict.isolated)
    yield f"| {' | '.join(columns)} | |"
    yield "|---" * (len(columns) + 1) + "|"
    for cells, word in rows:
        mark = word if word == "ok" else f"**{word}**"
        yield f"| {' | '.join(map(for_markdown, cells))} | {mark} |"
    yield ""


def _runner(entry: Mapping[str, Any]) -> str:
    how = (
        "its own tensor names"
        if entry["native"]
        else entry.get("ours") or "mae-convert's mapping tables"
    )
    name = Path(entry["checkpoint"]["name"]).name
    about = for_markdown(
        f"({entry['layout']}, {entry['task']}), run by {runner_in_words(entry)} on"
        f" {entry['device']}, loaded by {how}"
    )
    return f"**{for_markdown(entry['side'])}** {code_in_markdown(name)} {about}"


def _as_html(verification: "Verification") -> str:
    from mae_convert.reports.verdict_html import page

    return page(verification, environment())


WRITERS: Mapping[str, Callable[["Verification"], str]] = {
    ".json": _as_json,
    ".xml": verdict_junit,
    ".html": _as_html,
    ".md": markdown,
}
