"""Verify a certified checkpoint again without its source."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint, Origin, check_flags
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import MaeConvertError, MissingRequirementError, Option, as_field
from mae_convert.families.options import Flags
from mae_convert.runtime.running import DEFAULT_DTYPES, Request, Run, run_together
from mae_convert.runtime.sides import Side, choose_side
from mae_convert.runtime.trace import Trace
from mae_convert.runtime.trace_check import GRADIENT
from mae_convert.verify.certificate import Certificate, read_certificate, read_source
from mae_convert.verify.judge import SOURCE_AT_HAND, Check, Verdict, judge
from mae_convert.verify.verification import Options, Verification

SOURCE_NOT_RUN = "the source itself: its outputs and hashes are taken from the certificate"


def replay(
    target: Path,
    side: Side | None = None,
    options: Options | None = None,
    flags: Flags | None = None,
    origin: Origin | None = None,
) -> Verification:
    """Judge a certified checkpoint once more, against the results that its certificate keeps.

    Files that are not those that were verified are failed checks, whatever they compute. The
    result is never proven: nothing shows that the results in the certificate are the source's.

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
    checks = certificate.checks()
    inputs: Mapping[str, np.ndarray] = {}
    try:
        source, inputs = read_source(certificate)
        checkpoint = open_checkpoint(target, flags, fill_only=True, origin=origin)
        check_flags(flags, checkpoint)
        checks += certificate.checks_of(checkpoint)
        trace = _run_again(checkpoint, side or Side(), source, inputs, options)
        checks += certificate.checks_of_run(trace)
    except MaeConvertError as error:
        if not checks or isinstance(error, MissingRequirementError):
            raise
        # What was changed cannot even be run: that it was changed is the answer.
        return Verification(
            Verdict(
                False, False, tuple(checks), None, (), (error.render(as_field),), (), replayed=True
            ),
            inputs,
        )
    verdict = judge(source, trace)
    if options.require_proof:
        checks.append(Check(SOURCE_AT_HAND, False, False, True))
    verdict = replace(
        verdict,
        proven=False,
        replayed=True,
        passed=verdict.passed and all(check.passed for check in checks),
        checks=(*checks, *verdict.checks),
        not_compared=(*verdict.not_compared, SOURCE_NOT_RUN, _not_kept(certificate)),
    )
    return Verification(verdict, inputs, (source, trace))


def _not_kept(certificate: Certificate) -> str:
    """Return a sentence about comparisons that the certificate does not allow to repeat."""
    names = [str(check["name"]) for check in certificate.document["checks"]]
    gradients = any(name.startswith(f"function/{GRADIENT}") for name in names)
    what = "intermediate activations and gradients" if gradients else "intermediate activations"
    return f"{what}: compared when the certificate was created, but not stored in it"


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
            f"the certificate holds no {missing[0]} run, only {', '.join(kept)}",
            hint=("verify with the source, or leave ", Option("run_dtype"), " out"),
        )
    dtypes = tuple(d for d in kept if d in ("float64", *options.dtypes))
    request = Request(dtypes, taps=False, mask_ratio=source.description["run_mask_ratio"])
    (trace,) = run_together([Run(checkpoint, choose_side(checkpoint, side), request)], inputs)
    return trace
