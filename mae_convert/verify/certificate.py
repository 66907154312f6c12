"""The certificate of a verified conversion, kept beside the weights: anyone can replay it.

``verification.json`` says what was verified and how: the hashes of both checkpoints and of every
file, limits and figures. ``verification.safetensors`` holds the inputs and the source's float64
results. With both, the target is judged once more without the source, on any machine.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from mae_convert import __version__
from mae_convert.checkpoint import Checkpoint, Flags, open_checkpoint
from mae_convert.containers.atomic import replacing_file
from mae_convert.errors import CheckpointError, MaeConvertError, MissingRequirementError
from mae_convert.origin import Origin
from mae_convert.plain import plain
from mae_convert.record import file_sha256
from mae_convert.verify.explain.verdict import explained_by_traces
from mae_convert.verify.inputs import inputs_sha256
from mae_convert.verify.judge import LIMITS, Check, Verdict, ceiling_units, judge, own_errors
from mae_convert.verify.report import environment
from mae_convert.verify.running import DEFAULT_DTYPES, Request, Run, run_together
from mae_convert.verify.sides import Side, choose_side
from mae_convert.verify.trace import Trace
from mae_convert.verify.verification import Options, Verification

FORMAT = 1
DOCUMENT, ARRAYS = "verification.json", "verification.safetensors"
INPUTS = "inputs/"
# What of a directory decides what a model computes; other files may come and go.
BESIDE = ("config.json", "preprocessor_config.json", "conversion.json")
FIELDS = {
    "format": int,
    "passed": bool,
    "proven": bool,
    "source": dict,
    "target": dict,
    "files": dict,
    "arrays": str,
    "inputs": str,
    "checks": list,
    "source_trace": dict,
}


@dataclass(frozen=True)
class Certificate:
    """A certificate that was read.

    Attributes:
        target: the model directory or file that it is about.
        document: the contents of ``verification.json``.
    """

    target: Path
    document: Mapping[str, Any]

    def changed_files(self) -> list[str]:
        """Return the names of files whose bytes are not those that were verified."""
        folder, names = _folder(self.target), dict(self.document["files"])
        names[_names(self.target)[1]] = self.document["arrays"]
        return [
            name
            for name, sha256 in names.items()
            if not (folder / name).is_file() or file_sha256(folder / name) != sha256
        ]


def _names(target: Path) -> tuple[str, str]:
    """Return the names of document and arrays: in a directory, or beside a single file."""
    prefix = "" if target.is_dir() else f"{target.name}."
    return prefix + DOCUMENT, prefix + ARRAYS


def _folder(target: Path) -> Path:
    return target if target.is_dir() else target.parent


def write_certificate(verification: Verification, target: Checkpoint) -> Path:
    """Write the certificate of a verification that passed, and return where its document is.

    The arrays take their name first, so that a document without its arrays cannot be seen.

    Raises:
        OutputError: the system refuses to write.
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
    with replacing_file(folder / arrays_name, overwrite=True) as temporary:
        temporary.write_bytes(data)
    document = _document(verification, target, hashlib.sha256(data).hexdigest())
    with replacing_file(folder / document_name, overwrite=True) as temporary:
        temporary.write_text(json.dumps(plain(document), indent=2) + "\n", encoding="utf-8")
    return folder / document_name


def _document(verification: Verification, target: Checkpoint, arrays: str) -> dict[str, Any]:
    verdict, (source, trace) = verification.verdict, verification.traces[:2]
    files = [path.name for path in target.container.files]
    files += [name for name in BESIDE if target.path.is_dir() and (target.path / name).is_file()]
    folder = _folder(target.path)
    return {
        "format": FORMAT,
        "mae_convert": __version__,
        "passed": verdict.passed,
        "proven": verdict.proven,
        "source": _about(source),
        "target": _about(trace),
        "files": {name: file_sha256(folder / name) for name in files},
        "arrays": arrays,
        "inputs": inputs_sha256(verification.inputs),
        "limits": LIMITS,
        "checks": [asdict(check) for check in verdict.checks],
        "witnesses": [_without_path(witness) for witness in verdict.witnesses],
        "steps": list(verdict.steps),
        "effects": dict(verdict.effects),
        "not_compared": list(verdict.not_compared),
        "environment": environment(),
        "source_trace": {
            **_without_path(source.description),
            "own_errors": {
                dtype: _results_only(own_errors(source, dtype))
                for dtype in source.description["dtypes"]
                if dtype != "float64"
            },
            "ceiling_units": ceiling_units(source),
        },
    }


def _without_path(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description whose checkpoint has its name only: a certificate is published."""
    checkpoint = description["checkpoint"]
    return {**description, "checkpoint": {**checkpoint, "name": Path(checkpoint["name"]).name}}


def _results_only(errors: Mapping[str, float]) -> dict[str, float]:
    return {name: error for name, error in errors.items() if "." not in name}


def _about(trace: Trace) -> dict[str, Any]:
    description = trace.description
    return {
        "name": Path(description["checkpoint"]["name"]).name,
        "sha256": description["checkpoint"]["sha256"],
        "layout": description["layout"],
        "task": description["task"],
    }


def read_certificate(target: Path) -> Certificate:
    """Read the certificate of a model directory, or of a single file.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = _folder(target) / _names(target)[0]
    if not path.is_file():
        raise CheckpointError(
            f"{target} has no certificate; make one with `mae-convert verify SOURCE {target}"
            " --certify`"
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        wrong = [name for name, kind in FIELDS.items() if not isinstance(document[name], kind)]
        wrong += [] if _is_whole(document["source_trace"]) else ["source_trace"]
        wrong += [] if document["files"] else ["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{error}") from error
    if wrong or document["format"] != FORMAT:
        raise _damaged(path, f"its {(*wrong, 'format')[0]} is not one of this version")
    return Certificate(target, document)


def _is_whole(description: Mapping[str, Any]) -> bool:
    """Tell whether a description has what the judge asks it for."""
    needed = ("dtypes", "config", "tensors", "task", "inputs", "native", "run_mask_ratio")
    return all(name in description for name in needed) and "float64" in description["dtypes"]


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a certificate that can be read ({what}); verify again")


def _read_source(certificate: Certificate) -> tuple[Trace, dict[str, np.ndarray]]:
    """Return the source's trace as far as the certificate keeps it, and the inputs."""
    path = _folder(certificate.target) / _names(certificate.target)[1]
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, f"{error}") from error
    inputs = {n.removeprefix(INPUTS): a for n, a in arrays.items() if n.startswith(INPUTS)}
    kept = {name: array for name, array in arrays.items() if not name.startswith(INPUTS)}
    return Trace(certificate.document["source_trace"], kept), inputs


def replay(
    target: Path,
    side: Side | None = None,
    options: Options | None = None,
    flags: Flags | None = None,
    origin: Origin | None = None,
) -> Verification:
    """Judge a certified checkpoint once more, against the results that its certificate keeps.

    Files that are not those that were verified are failed checks, whatever they compute.

    Args:
        target: the model directory or file beside which the certificate is.
        side: how to run it; by default the framework that reads it natively.
        options: of these ``dtypes`` and ``require_proof`` count.
        flags: what the user says that the checkpoint does not.
        origin: where it was downloaded from.

    Raises:
        CheckpointError: there is no certificate, or it is damaged.
        MissingRequirementError: no framework to run the checkpoint with.
        MaeConvertError: the run failed.
    """
    options, certificate = options or Options(), read_certificate(target)
    checks = [
        Check(f"file/{name}", False, "changed or missing", "as verified")
        for name in certificate.changed_files()
    ]
    if not certificate.document["passed"]:
        checks.append(Check("certificate/passed", False, False, True))
    source, inputs = _read_source(certificate)
    try:
        checkpoint = open_checkpoint(target, flags, fill_only=True, origin=origin)
        trace = _run_again(checkpoint, side or Side(), source, inputs, options)
    except MaeConvertError as error:
        if not checks or isinstance(error, MissingRequirementError):
            raise
        # What was changed cannot even be run: that it was changed is the answer.
        return Verification(
            Verdict(False, False, tuple(checks), None, (), (str(error),), ()), inputs
        )
    verdict = explained_by_traces(judge(source, trace), source, trace)
    proven = bool(verdict.proven and certificate.document["proven"])
    if options.require_proof:
        checks.append(Check("proof/both sides read natively", proven, proven, True))
    passed = verdict.passed and all(check.passed for check in checks)
    verdict = replace(verdict, passed=passed, proven=proven, checks=(*checks, *verdict.checks))
    return Verification(verdict, inputs, (source, trace))


def _run_again(
    checkpoint: Checkpoint,
    side: Side,
    source: Trace,
    inputs: Mapping[str, np.ndarray],
    options: Options,
) -> Trace:
    kept = source.description["dtypes"]
    missing = [d for d in options.dtypes if d not in kept]
    if missing and options.dtypes != DEFAULT_DTYPES:
        raise MaeConvertError(
            f"the certificate holds no {missing[0]} run, only {', '.join(kept)}; verify with the"
            " source, or leave --dtype out"
        )
    dtypes = tuple(d for d in kept if d in ("float64", *options.dtypes))
    request = Request(dtypes, mask_ratio=source.description["run_mask_ratio"])
    (trace,) = run_together([Run(checkpoint, choose_side(checkpoint, side), request)], inputs)
    return trace
