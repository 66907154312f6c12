"""Write a verdict to a file: JSON for programs, JUnit XML for CI."""

import json
import platform
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_convert import __version__
from mae_convert.errors import OutputError
from mae_convert.plain import plain
from mae_convert.verify.judge import Verdict

if TYPE_CHECKING:
    from mae_convert.verify.verification import Verification

PACKAGES = ("numpy", "torch", "tensorflow", "keras", "jax", "transformers", "timm", "safetensors")
SUFFIXES = (".json", ".xml")


def environment() -> dict[str, str]:
    """Return what may matter to someone who reads the verdict elsewhere."""
    found = {"mae-convert": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {**found, "platform": platform.platform()}


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as plain data."""
    return {**asdict(verdict), "environment": environment()}


def check_report_names(paths: Sequence[Path], models: Sequence[Path] = ()) -> None:
    """Refuse a report that could not be written, before any work is done.

    Raises:
        OutputError: an unknown suffix, no such directory, or a file of one of the models.
    """
    own = {model.resolve() for model in models}
    for path in paths:
        if path.suffix not in SUFFIXES:
            raise OutputError(f"a report is written as {' or '.join(SUFFIXES)}, not as {path.name}")
        if own & {path.resolve(), path.resolve().parent}:
            raise OutputError(f"{path} is part of a model; write the report elsewhere")
        if not path.resolve().parent.is_dir():
            raise OutputError(f"there is no directory {path.parent} for the report {path.name}")


def write_reports(done: "Verification", paths: Sequence[Path]) -> None:
    """Write the verdict to every path, in the format that its suffix names."""
    verdict = done.verdict
    for path in paths:
        if path.suffix == ".json":
            path.write_text(json.dumps(plain(verdict_json(verdict)), indent=2) + "\n")
        else:
            path.write_text(junit(verdict), encoding="utf-8")


def junit(verdict: Verdict) -> str:
    """Return the verdict as JUnit XML: a test case for each check."""
    suite = ET.Element(
        "testsuite",
        name="mae-convert verify",
        tests=str(len(verdict.checks)),
        failures=str(len(verdict.failed())),
    )
    for check in verdict.checks:
        case = ET.SubElement(suite, "testcase", classname="mae_convert.verify", name=check.name)
        if not check.passed:
            words = f"measured {check.measured}, limit {check.limit}"
            ET.SubElement(case, "failure", message=words).text = "\n".join(verdict.causes)
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
