"""Verdicts and sweeps as JUnit XML, which CI systems read: a test suite for each command.

A single cause makes many checks fail. A verdict therefore has one failed test case for each cause,
and not for each check; the text of the failure lists the failed checks.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from mae_convert.sweep.result import ERROR, Row
from mae_convert.text import for_xml
from mae_convert.verify.assumptions import in_words
from mae_convert.verify.certificate import environment
from mae_convert.verify.judge import Verdict
from mae_convert.verify.summary import (
    headline,
    runner_in_words,
    summary,
    suspects_title,
    verdict_in_words,
)

if TYPE_CHECKING:
    from mae_convert.verify.verification import Verification

IDENTIFIER = re.compile(r"\b[a-z]+(?:[._][a-z0-9]+)+\b")  # the name of a tensor or a field


class Suite:
    """A test suite, to which test cases are added."""

    def __init__(self, name: str, class_name: str, properties: Mapping[str, str]) -> None:
        self.class_name = for_xml(class_name)
        self.element = ET.Element("testsuite", name=for_xml(name))
        block = ET.SubElement(self.element, "properties")
        for key, value in properties.items():
            ET.SubElement(block, "property", name=for_xml(key), value=for_xml(value))

    def add(
        self,
        name: str,
        kind: str | None = None,
        message: str = "",
        lines: Sequence[str] = (),
        *,
        status: int | None = None,
        seconds: float | None = None,
    ) -> None:
        """Add a test case.

        Args:
            name: the name of the test case.
            kind: None if the case passed, else "failure", "error" or "skipped".
            message: a sentence that states why the case did not pass.
            lines: lines of further information.
            status: the exit status of the command if the case is an error; otherwise None.
            seconds: the duration of the case in seconds; None if it is unknown.
        """
        case = ET.SubElement(
            self.element, "testcase", classname=self.class_name, name=for_xml(name)
        )
        if seconds is not None:
            case.set("time", f"{seconds:.3f}")
        if kind is not None:
            why = ET.SubElement(case, kind, message=for_xml(message))
            if status is not None:
                why.set("type", f"exit status {status}")
            why.text = "\n".join(map(for_xml, lines)) or None

    def text(self) -> str:
        """Return the content of the JUnit file."""
        counts = {
            "tests": len(self.element.findall("testcase")),
            "failures": len(self.element.findall(".//failure")),
            "errors": len(self.element.findall(".//error")),
            "skipped": len(self.element.findall(".//skipped")),
        }
        self.element.attrib.update({name: str(count) for name, count in counts.items()})
        ET.indent(self.element)
        return ET.tostring(self.element, encoding="unicode", xml_declaration=True) + "\n"


def verdict_junit(verification: "Verification") -> str:
    """Return a verdict as JUnit XML.

    There is a failed test case for each cause, and a passed test case for each group of passed
    checks.
    """
    verdict = verification.verdict
    names = [_short(w["checkpoint"]["name"]) for w in _sides(verdict)]
    suite = Suite(
        f"mae-convert verify {' '.join(names)}",
        _class_name("verify", " vs ".join(names)),
        dict(_properties(verdict)),
    )
    if verdict.passed:
        suite.add("verdict")
    causes = [] if verdict.passed else _causes(verdict)
    for number, (cause, *more) in enumerate(causes, start=1):
        suite.add(
            "verdict" if number == 1 else f"verdict, cause {number}",
            "failure",
            f"{headline(verdict)}: {cause}",
            [*more, *(_explanation(verdict) if number == 1 else ())],
        )
    for line in summary(verdict.checks):
        if line.passed:
            suite.add(line.title)
    return suite.text()


def _causes(verdict: Verdict) -> list[list[str]]:
    """Return a list of sentences for each cause; sentences about the same tensor form one cause."""
    groups: list[tuple[set[str], list[str]]] = []
    for sentence in dict.fromkeys(verdict.causes):
        names = set(IDENTIFIER.findall(sentence))
        same = next((group for group in groups if names & group[0]), None)
        if same is None:
            groups.append((names, [sentence]))
        else:
            same[0].update(names)
            same[1].append(sentence)
    return [sentences for _, sentences in groups] or [[verdict_in_words(verdict)[1]]]


def _explanation(verdict: Verdict) -> Iterator[str]:
    if verdict.first_divergence:
        yield f"first divergence: {verdict.first_divergence}"
    if verdict.suspects:
        yield f"{suspects_title(verdict)}: {', '.join(verdict.suspects[:6])}"
    for line in summary(verdict.checks):
        if not line.passed:
            yield line.in_words()


def _sides(verdict: Verdict) -> list[Mapping[str, Any]]:
    return [w for w in verdict.witnesses if w["side"] in ("A", "B")]


def _properties(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """Yield the name and value of each property: files, hashes, assumptions, versions."""
    yield "verdict", headline(verdict)
    for runner in verdict.witnesses:
        side, checkpoint = runner["side"], runner["checkpoint"]
        yield f"{side} checkpoint", checkpoint["name"]
        yield f"{side} sha256", checkpoint["sha256"]
        yield f"{side} layout", f"{runner['layout']}, {runner['task']}"
        yield f"{side} run by", f"{runner_in_words(runner)} on {runner['device']}"
    for side, fields in verdict.unread.items():
        yield f"not read on {side}", ", ".join(fields)
    for assumption in verdict.assumptions:
        yield (
            f"{assumption['field']} assumed by {' and '.join(assumption['sides'])}",
            in_words([assumption]),
        )
    yield from environment().items()


def sweep_junit(rows: Sequence[Row], not_run: int = 0) -> str:
    """Return the results of a sweep as JUnit XML: a test case for each job.

    Args:
        rows: the results of the jobs that were run.
        not_run: the number of jobs that were not run.
    """
    suite = Suite(
        "mae-convert sweep",
        _class_name("sweep", "jobs"),
        {"not run": str(not_run), **environment()},
    )
    names: set[str] = set()
    for row in rows:
        source = "/".join(PurePath(row.source).parts[-2:])  # the same name on every machine
        name = " to ".join(filter(None, (source, row.layout)))
        name = f"{name} ({row.key[:8]})" if name in names else name
        names.add(name)
        if row.is_good:
            suite.add(name, seconds=row.seconds)
        elif row.outcome == ERROR:
            why = row.error or "no result"
            suite.add(name, "error", why, status=row.exit_status, seconds=row.seconds)
        else:
            why = ": ".join(filter(None, (row.verdict, row.cause or row.error)))
            where = [f"first divergence: {row.first_divergence}"] if row.first_divergence else []
            suite.add(name, "failure", why, where, seconds=row.seconds)
    for number in range(1, not_run + 1):
        suite.add(
            f"job that was not run (no. {number})", "skipped", "the sweep ended before this job"
        )
    return suite.text()


def error_junit(command: str, names: Sequence[str], sentence: str, status: int) -> str:
    """Return JUnit XML for a command that ended with an error instead of a result.

    Args:
        command: the name of the command.
        names: the names of the checkpoints, if known.
        sentence: the message of the error.
        status: the exit status.
    """
    about = " vs ".join(names) or "no result"
    suite = Suite(
        " ".join(("mae-convert", command, *names)), _class_name(command, about), environment()
    )
    name = "verdict" if command == "verify" else command
    suite.add(name, "error", sentence, status=status)
    return suite.text()


def _short(name: str) -> str:
    return PurePath(name).name or name


def _class_name(command: str, name: str) -> str:
    """Return the class name of test cases; CI systems show its dot-separated parts as packages."""
    return f"mae_convert.{command}.{name.replace('.', '_')}"
