"""The result of one job, as stored in the results file."""

import math
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from time import time
from typing import Any

from mae_convert import __version__
from mae_convert.errors import MaeConvertError, as_field
from mae_convert.verify.assumptions import in_words, shared
from mae_convert.verify.judge import FUNCTION_LIMIT, UNIT_ROUNDOFF, Check, Verdict
from mae_convert.verify.summary import verdict_in_words

DONE, FAILED, ERROR = "done", "failed", "error"
STATUS = {DONE: "done", FAILED: "failed", ERROR: "no result"}


@dataclass(frozen=True)
class Row:
    """The result of a job, a row of the results file."""

    key: str
    """The identifier of the job, a hash; see `Job.key`."""

    source: str
    """The source checkpoint."""

    target: str | None = None
    """The path or URL of the target; None if the plan specifies no target, so that the converted
    checkpoint was only verified or published."""

    layout: str | None = None
    """The layout of the written target; None if an existing target was only verified."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """The fields of the job in the plan, except source, target and layout."""

    outcome: str = DONE
    """The outcome: "done", "failed" (the verification did not pass) or "error"."""

    verdict: str | None = None
    """The verdict of the verification in a word or two; None without a verification."""

    assuming: str | None = None
    """The assumptions that both sides of the verification share, or None."""

    passed: bool | None = None
    """Whether the verification passed; None without a verification."""

    proven: bool | None = None
    """Whether the verdict is proven, see `Verdict.proven`; None without a verification."""

    function: float | None = None
    """The largest relative L2 distance between the float64 results of the two sides; None if the
    job did not compare float64 results."""

    own_error: Mapping[str, float] = field(default_factory=dict)
    """For each dtype, the largest rounding error of a result of either side, as a relative L2
    distance from the result of the float64 run."""

    first_divergence: str | None = None
    """The first intermediate activation or output that differs; None if no result differs, or
    without a verification."""

    cause: str | None = None
    """The cause of a failed verification, if it was found."""

    error: str | None = None
    """The message of the error with which the job ended; None without an error."""

    exit_status: int = 0
    """The exit status that the corresponding single command would have."""

    source_sha256: str | None = None
    """The SHA-256 of the source file that contains the tensors; for several files, the hash of the
    lines that ``sha256sum`` prints for them. None if the job ended with an error before the hash
    was computed."""

    source_bytes: int | None = None
    """The size of the source files that contain tensors, in bytes; None if the job ended with an
    error before the size was determined."""

    target_sha256: str | None = None
    """The SHA-256 of the target files, computed in the same way as `source_sha256`; None if the job
    ended with an error before the hash was computed."""

    target_bytes: int | None = None
    """The size of the target files that contain tensors, in bytes; None if the job ended with an
    error before the size was determined."""

    source_fingerprint: str | None = None
    """The fingerprint of the source (see docs/fingerprint.md); None if neither a conversion nor a
    verification has computed it."""

    target_fingerprint: str | None = None
    """The fingerprint of the target; None if neither a conversion nor a verification has computed
    it."""

    task: str | None = None
    """The task of the target; None if the job ended with an error before the target was opened."""

    parameters: int | None = None
    """The number of parameters of the target; None if the job ended with an error before the
    target was opened."""

    published: str | None = None
    """The URL of the commit on the Hub; None if the job did not publish the model."""

    convert_seconds: float | None = None
    """The duration of the conversion in seconds: reading, writing, and comparing what was written.
    None without a conversion."""

    verify_seconds: float | None = None
    """The duration of the verification in seconds; None without a verification."""

    seconds: float = 0.0
    """The duration of the job in seconds."""

    peak_memory: int | None = None
    """The peak memory of all processes of the job in bytes; None if it was not measured."""

    started: float = 0.0
    """The time at which the job was started, in seconds since 1970."""

    host: str = ""
    """The host name of the machine."""

    attempts: int = 1
    """The number of attempts."""

    mae_convert: str = __version__
    """The version of mae-convert."""

    source_version: Mapping[str, Any] = field(default_factory=dict)
    """The version of the source, as returned by `freshness.checkpoint_version`; empty if the job
    ended with an error before the version was determined."""

    target_version: Mapping[str, Any] = field(default_factory=dict)
    """The version of the target when the job ended, as returned by `freshness.checkpoint_version`;
    empty if the job has no target or did not succeed."""

    @property
    def is_good(self) -> bool:
        """Whether everything that was requested was done and passed."""
        return self.outcome == DONE

    @property
    def status(self) -> str:
        """The outcome of the job in one or two words, as shown in reports."""
        return STATUS.get(self.outcome, "no result")

    def ended(self, started: float, peak_memory: int | None) -> "Row":
        """Return this row with the start time, duration, peak memory and host name of its job.

        Args:
            started: the start time, in seconds since 1970.
            peak_memory: the peak memory in bytes; None if the operating system does not report it.
        """
        host, seconds = socket.gethostname(), time() - started
        return replace(self, started=started, seconds=seconds, peak_memory=peak_memory, host=host)

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a dictionary."""
        return asdict(self)


COLUMNS = {
    field.name: field.type.__name__ if isinstance(field.type, type) else str(field.type)
    for field in fields(Row)
}
MAPPINGS = [name for name, kind in COLUMNS.items() if "Mapping" in kind]


def error_row(identity: Mapping[str, Any], results: Mapping[str, Any], error: BaseException) -> Row:
    """Return the row of a job that ended with an error.

    Args:
        identity: the fields that identify the job, as returned by `Job.identity`.
        results: the fields of the steps that were completed before the error.
        error: the error.
    """
    return Row(
        **{**identity, **results, "outcome": ERROR, "error": error_message(error)},
        exit_status=error.exit_status if isinstance(error, MaeConvertError) else 2,
    )


def error_message(error: BaseException) -> str:
    """Return the message of an error for a results row."""
    if isinstance(error, MaeConvertError):
        return error.render(as_field)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "there was not enough memory; run fewer jobs at a time (option `workers`)"
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:400]}"


def verdict_fields(verdict: Verdict) -> dict[str, Any]:
    """Return the fields of `Row` that a verdict determines."""
    function = [c.measured for c in verdict.checks if c.name.startswith("function/")]
    own: dict[str, float] = {}
    for check in verdict.checks:
        dtype = check.name.partition("/")[0]
        if dtype in UNIT_ROUNDOFF and _is_number(check):
            own[dtype] = max(own.get(dtype, 0.0), float(check.measured))
    return {
        "outcome": DONE if verdict.passed else FAILED,
        "exit_status": 0 if verdict.passed else 1,
        "verdict": verdict_in_words(verdict)[0],
        "assuming": in_words(shared(verdict.assumptions)) or None,
        "passed": verdict.passed,
        "proven": verdict.proven,
        "function": _largest(function),
        "own_error": own,
        "first_divergence": verdict.first_divergence,
        "cause": verdict.causes[0] if verdict.causes and not verdict.passed else None,
    }


def _is_number(check: Check) -> bool:
    return isinstance(check.measured, int | float) and not isinstance(check.measured, bool)


def _largest(values: list[Any]) -> float | None:
    """Return the largest value, or None if there are no values; NaN and text count as infinity."""
    numbers = [float(v) if isinstance(v, int | float) else math.inf for v in values]
    return max((math.inf if math.isnan(n) else n for n in numbers), default=None)


__all__ = ["DONE", "ERROR", "FAILED", "FUNCTION_LIMIT", "Row", "error_row", "verdict_fields"]
