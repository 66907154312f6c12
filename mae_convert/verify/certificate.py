"""The certificate of a verified conversion, stored beside the weights.

``verification.json`` states what was verified and how: the hashes of both checkpoints and of every
file, the limits and the measured values. ``verification.safetensors`` contains the inputs and the
source's float64 outputs. With these two files, anyone can verify the target again without the
source, on any machine.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from mae_convert import __version__
from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.fingerprint import Fingerprint, described_family
from mae_convert.errors import CheckpointError, MaeConvertError, Option, Text
from mae_convert.files.atomic import staging_for, write_file
from mae_convert.files.byte_ranges import ByteFile, file_sha256, is_plain_name, kind_of, open_sha256
from mae_convert.files.strict_json import JsonError, check_document, parse_json, plain
from mae_convert.formats.contents import json_in
from mae_convert.formats.directory import is_read_beside
from mae_convert.formats.registry import CERTIFICATE_NAMES
from mae_convert.runtime.inputs import check_inputs, inputs_sha256
from mae_convert.runtime.trace import Trace
from mae_convert.runtime.trace_check import check_trace, has_control_characters
from mae_convert.verify.declared_changes import declared_steps
from mae_convert.verify.judge import (
    LIMITS,
    Check,
    ceiling_units,
    rounding_errors,
)
from mae_convert.verify.verification import Verification

FORMAT = 1
DOCUMENT, ARRAYS = CERTIFICATE_NAMES
INPUTS = "inputs/"
ADVICE = "make it again with `mae-convert verify SOURCE TARGET --certify`"


@dataclass(frozen=True)
class Certificate:
    """The certificate of a verified model."""

    target: Path
    """The model directory or file that was verified."""

    document: Mapping[str, Any]
    """The contents of ``verification.json``."""

    def sha256_of(self, name: str) -> str | None:
        """Return the SHA-256 that a file had when it was verified; None if it was not verified."""
        return self._hashes().get(name)

    def is_document(self, data: bytes) -> bool:
        """Return whether `data` contains the same JSON document as ``verification.json``."""
        try:
            return bool(parse_json(data) == self.document)
        except JsonError:
            return False

    def _hashes(self) -> dict[str, str]:
        return {**self.document["files"], _names(self.target)[1]: self.document["arrays"]}

    def changed_files(self) -> list[str]:
        """Return the names of files that changed since the verification."""
        folder = _folder(self.target)
        return [
            name
            for name, sha256 in self._hashes().items()
            if not (folder / name).is_file() or file_sha256(folder / name) != sha256
        ]

    def failed_checks(self) -> list[Check]:
        """Return a failed check for each changed file and each invalid part of the certificate.

        A file has changed if its SHA-256 differs from the SHA-256 in the certificate.
        """
        checks = [
            Check(f"file/{name}", False, "changed or missing", "as verified")
            for name in self.changed_files()
        ]
        document = self.document
        if not document["passed"]:
            checks.append(Check("certificate/passed", False, False, True))
        failed = [str(check["name"]) for check in document["checks"] if check["passed"] is not True]
        if failed:
            checks.append(Check("certificate/checks", False, f"{failed[0]} failed", "all passed"))
        limits = document["limits"]
        wider = [name for name, limit in LIMITS.items() if not limits.get(name, inf) <= limit]
        if wider:
            measured = f"{wider[0]} {limits.get(wider[0])}"
            checks.append(Check("certificate/limits", False, measured, LIMITS[wider[0]]))
        return checks

    def failed_checks_of_files(self, checkpoint: Checkpoint) -> list[Check]:
        """Return a failed check for each file that affects the model but was not verified.

        There is also a failed check if the certificate lists a conversion step that the
        checkpoint's conversion record does not declare.

        Raises:
            MaeConvertError: this version of mae-convert does not support a declared step.
        """
        files, declared = self.document["files"], declared_steps(checkpoint)
        new = [name for name in _files(checkpoint) if name not in files]
        undeclared = [step for step in self.document["steps"] if step not in declared]
        return [
            *(Check(f"file/{n}", False, "was not verified", "as verified") for n in new),
            *(Check("certificate/steps", False, f"{s}", "declared by B") for s in undeclared[:1]),
        ]

    def failed_checks_of_run(self, trace: Trace) -> list[Check]:
        """Compare the weights of a new run with the certified weights.

        Returns:
            A list of one failed check if the weights differ. The list is empty if they are the
            same, or if the certificate does not contain their fingerprint.
        """
        recorded, measured = self.document["target"].get("fingerprint"), trace.fingerprint
        if recorded is None or recorded.split(":")[:2] == str(measured).split(":")[:2]:
            return []
        return [Check("certificate/fingerprint", False, str(measured), recorded)]


def _names(target: Path) -> tuple[str, str]:
    """Return the names of the two files of a certificate: a JSON document, and a file of arrays.

    They depend on whether the certified model is a directory or a single file.
    """
    prefix = "" if target.is_dir() else f"{target.name}."
    return prefix + DOCUMENT, prefix + ARRAYS


def _files(checkpoint: Checkpoint) -> list[str]:
    """Return the names of the files that affect what a checkpoint computes.

    In a directory, these include files that mae-convert does not read but that a library may use.
    """
    container, path = checkpoint.container, checkpoint.path
    read = [file.path.name for file in (*container.opened, *container.beside)]
    further = sorted(p.name for p in path.iterdir() if p.is_file()) if path.is_dir() else []
    return list(dict.fromkeys([*read, *filter(is_read_beside, further)]))


def _hashes(verification: Verification, target: Checkpoint) -> dict[str, str]:
    """Return the SHA-256 of each file that affects what the target computes, by file name.

    The hashes of weight files are taken from the verification's trace; other files are hashed here.

    Raises:
        CheckpointError: a file was modified since the verification.
    """
    container, folder = target.container, _folder(target.path)
    run = verification.traces[1].description["checkpoint"]
    hashes = run.get("files") or {container.weights_file.name: run["sha256"]}
    hashes |= {file.path.name: open_sha256(file) for file in container.beside}
    return {
        name: hashes[name] if name in hashes else file_sha256(folder / name)
        for name in _files(target)
    }


def _folder(target: Path) -> Path:
    return target if target.is_dir() else target.parent


def require_writable(target: Path) -> None:
    """Require that a certificate can be written for a model, before the model is verified.

    Raises:
        OutputError: the directory for the certificate is not writable.
    """
    with staging_for(_folder(target) / _names(target)[0]):
        pass


def write_certificate(verification: Verification, target: Checkpoint) -> Path:
    """Write the certificate of a passed verification and return the path of its document.

    A certificate consists of a JSON document and a file of arrays. The file of arrays is renamed to
    its final name first, so a document never exists without its arrays. The certificate covers the
    bytes of the files that were verified; if a file has changed since the verification, no
    certificate is written.

    Raises:
        CheckpointError: a file of the target changed since it was verified.
        OutputError: the operating system refuses to write.
    """
    folder = _folder(target.path)
    document_name, arrays_name = _names(target.path)
    source = verification.traces[0]
    results = {n: a for n, a in source.results("float64").items() if "." not in n}
    arrays = {
        **{f"{INPUTS}{name}": array for name, array in verification.inputs.items()},
        **{f"float64/{name}": array for name, array in results.items()},
        **{name: source.arrays[name] for name in ("mask", "ids_restore") if name in source.arrays},
    }
    data = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
    document = _document(verification, target, hashlib.sha256(data).hexdigest())
    _require_unchanged(document["files"], folder)
    write_file(folder / arrays_name, data, overwrite=True)
    text = json.dumps(plain(document), indent=2) + "\n"
    write_file(folder / document_name, text, overwrite=True)
    return folder / document_name


def _require_unchanged(files: Mapping[str, str], folder: Path) -> None:
    """Require that the files are unchanged since they were verified.

    Raises:
        CheckpointError: a file has changed.
    """
    for name, sha256 in files.items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != sha256:
            raise CheckpointError(
                path,
                " is not the file that was verified: it was changed or replaced after the "
                "verification; no certificate was written",
                hint="verify again",
            )


def _document(verification: Verification, target: Checkpoint, arrays: str) -> dict[str, Any]:
    verdict, (source, trace) = verification.verdict, verification.traces[:2]
    return {
        "format": FORMAT,
        "mae_convert": __version__,
        "passed": verdict.passed,
        "proven": verdict.proven,
        "source": _about(source, verification.fingerprints[0]),
        "target": _about(trace, verification.fingerprints[1]),
        "files": _hashes(verification, target),
        "arrays": arrays,
        "inputs": inputs_sha256(verification.inputs),
        "limits": LIMITS,
        "checks": [asdict(check) for check in verdict.checks],
        "witnesses": [_without_path(runner) for runner in verdict.witnesses],
        "steps": list(verdict.steps),
        "effects": dict(verdict.effects),
        "not_compared": list(verdict.not_compared),
        "assumptions": list(verdict.assumptions),
        **({"unread": dict(verdict.unread)} if verdict.unread else {}),
        **({"inferred": verdict.inferred} if verdict.inferred else {}),
        "environment": environment(),
        "source_trace": {
            **_without_path(source.description),
            "own_errors": {
                dtype: _results_only(rounding_errors(source, dtype))
                for dtype in source.description["dtypes"]
                if dtype != "float64"
            },
            "ceiling_units": ceiling_units(source),
        },
    }


def _without_path(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description with the checkpoint's name instead of its path, for publication."""
    checkpoint = description["checkpoint"]
    return {**description, "checkpoint": {**checkpoint, "name": Path(checkpoint["name"]).name}}


def _results_only(errors: Mapping[str, float]) -> dict[str, float]:
    return {name: error for name, error in errors.items() if "." not in name}


def _about(trace: Trace, fingerprint: Fingerprint) -> dict[str, Any]:
    description = trace.description
    return {
        "name": Path(description["checkpoint"]["name"]).name,
        "sha256": description["checkpoint"]["sha256"],
        "layout": description["layout"],
        "task": description["task"],
        **fingerprint.to_dict(),
    }


def has_certificate(target: Path) -> bool:
    """Return whether a model has a certificate."""
    return (_folder(target) / _names(target)[0]).is_file()


def read_certificate(target: Path) -> Certificate:
    """Read the certificate of a model directory or a single file.

    Raises:
        CheckpointError: the certificate does not exist, or is corrupt.
    """
    path = _folder(target) / _names(target)[0]
    if not path.is_file():
        raise CheckpointError(
            target,
            " has no certificate to verify it against",
            hint=(
                "specify the checkpoint to compare it with: ",
                f"`mae-convert verify SOURCE {target}` (",
                *(Option("certify", True), " then makes a certificate)"),
            ),
        )
    document = json_in(ByteFile(path), ADVICE)
    check_document(document, "certificate", path, ADVICE)
    if invalid := next((n for n in document["files"] if not is_plain_name(n)), None):
        raise _damaged(path, f"{invalid!r} is not the name of a file in the same directory")
    if has_control_characters(document):
        raise _damaged(path, "a string in it contains control characters")
    return Certificate(target, document)


def _damaged(path: Path, what: Text) -> CheckpointError:
    return CheckpointError(path, " is not a valid certificate (", what, ")", hint=ADVICE)


def read_source(certificate: Certificate) -> tuple[Trace, dict[str, np.ndarray]]:
    """Return the source's trace and the inputs that are stored in the certificate.

    Raises:
        CheckpointError: the file of arrays cannot be read or contains unexpected arrays.
    """
    path = _folder(certificate.target) / _names(certificate.target)[1]
    if kind := kind_of(path):  # safetensors would wait for a pipe, and could not be interrupted
        raise _damaged(path, f"it is {kind}")
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, MemoryError) as error:
        raise _damaged(path, f"{error}") from error
    inputs = {n.removeprefix(INPUTS): a for n, a in arrays.items() if n.startswith(INPUTS)}
    results = {name: array for name, array in arrays.items() if not name.startswith(INPUTS)}
    description = certificate.document["source_trace"]
    check_trace(description, results, f"{path}, with its description in {DOCUMENT}")
    try:
        family = described_family(description)
        config = family.configuration_class.from_dict(description["config"])
        check_inputs(path, inputs, family, config)
    except MaeConvertError as error:
        raise _damaged(path, error) from error
    if {certificate.document["inputs"], description["inputs"]} != {inputs_sha256(inputs)}:
        raise _damaged(path, "the stored inputs are not the inputs of the certified verification")
    return Trace(description, results), inputs


PACKAGES = (
    "numpy",
    "torch",
    "tensorflow",
    "keras",
    "jax",
    "transformers",
    "timm",
    "terratorch",
    "safetensors",
)


def environment() -> dict[str, str]:
    """Return the versions of Python, mae-convert and the installed libraries, and the platform."""
    versions = {"mae-convert": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {**versions, "platform": platform.platform()}
