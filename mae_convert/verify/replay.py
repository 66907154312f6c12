"""Verify a certified checkpoint again without its source."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint, Origin, check_flags
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import MaeConvertError, MissingRequirementError, Option, as_field
from mae_convert.families.checkpoint_options import Flags
from mae_convert.runtime.running import DEFAULT_DTYPES, Request, Run, run_together
from mae_convert.runtime.sides import Side, choose_side
from mae_convert.runtime.trace import Trace
from mae_convert.runtime.trace_check import GRADIENT
from mae_convert.verify.certificate import Certificate, read_certificate, read_source
from mae_convert.verify.judge import SOURCE_AT_HAND, Check, Verdict, judge
from mae_convert.verify.verification import Options, Verification

SOURCE_NOT_RUN = "the source itself; its outputs and hashes are taken from the certificate"


def replay(
    target: Path,
    side: Side | None = None,
    options: Options | None = None,
    flags: Flags | None = None,
    origin: Origin | None = None,
) -> Verification:
    """Compare a certified checkpoint with the source's results in its certificate.

    A file that changed since the verification counts as a failed check, even if the outputs are
    equal. The verdict is never a proof, because nothing shows that the source has computed the
    results in the certificate.

    Args:
        target: the model directory, or a file with the certificate beside it.
        side: how to run the checkpoint; by default in the framework that loads it natively.
        options: only ``dtypes`` and ``require_proof`` are used.
        flags: configuration fields that the user specified.
        origin: where the checkpoint was downloaded from; None if it was not downloaded.

    Raises:
        CheckpointError: there is no certificate, or it is damaged.
        MissingRequirementError: no framework is installed to run the checkpoint.
        MaeConvertError: the run failed.
    """
    options, certificate = options or Options(), read_certificate(target)
    checks = certificate.failed_checks()
    inputs: Mapping[str, np.ndarray] = {}
    try:
        source, inputs = read_source(certificate)
        checkpoint = open_checkpoint(target, flags, fill_only=True, origin=origin)
        check_flags(flags, checkpoint)
        checks += certificate.failed_checks_of_files(checkpoint)
        trace = _run_again(checkpoint, side or Side(), source, inputs, options)
        checks += certificate.failed_checks_of_run(trace)
    except MaeConvertError as error:
        if not checks or isinstance(error, MissingRequirementError):
            raise
        # A changed file may be unreadable; the verdict then consists of the failed file checks.
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
        not_compared=(*verdict.not_compared, SOURCE_NOT_RUN, _not_stored(certificate)),
    )
    return Verification(verdict, inputs, (source, trace))


def _not_stored(certificate: Certificate) -> str:
    """Return a phrase that names the results that cannot be compared again.

    A certificate does not store these results: intermediate activations and, if they were compared,
    gradients.
    """
    names = [str(check["name"]) for check in certificate.document["checks"]]
    gradients = any(name.startswith(f"function/{GRADIENT}") for name in names)
    what = "intermediate activations and gradients" if gradients else "intermediate activations"
    return f"{what}, which were compared for the certificate but are not stored in it"


def _run_again(
    checkpoint: Checkpoint,
    side: Side,
    source: Trace,
    inputs: Mapping[str, np.ndarray],
    options: Options,
) -> Trace:
    stored_dtypes = source.description["dtypes"]
    missing = [d for d in options.dtypes if d not in stored_dtypes]
    if missing and options.dtypes != DEFAULT_DTYPES:
        raise MaeConvertError(
            f"the certificate has no {missing[0]} run, only {', '.join(stored_dtypes)}",
            hint=("verify with the source, or leave out ", Option("run_dtype")),
        )
    dtypes = tuple(d for d in stored_dtypes if d in ("float64", *options.dtypes))
    request = Request(dtypes, taps=False, mask_ratio=source.description["run_mask_ratio"])
    (trace,) = run_together([Run(checkpoint, choose_side(checkpoint, side), request)], inputs)
    return trace
