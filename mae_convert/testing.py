"""For pytest: ``assert_parity`` fails a test unless two checkpoints are the same function."""

from pathlib import Path
from typing import Any

from mae_convert.checkpoint import Flags, check_flags, open_checkpoint
from mae_convert.verify.report import text
from mae_convert.verify.sides import Side
from mae_convert.verify.verification import Options, Verification, run_verification


def assert_parity(
    a: Path | str,
    b: Path | str,
    *,
    flags: Flags | None = None,
    side_a: Side | None = None,
    side_b: Side | None = None,
    require_proof: bool = True,
    **options: Any,
) -> Verification:
    """Assert that two checkpoints are the same function with the same weights.

    Args:
        a: the source: a file or a model directory.
        b: the target; steps that its conversion declares are applied to the source first.
        flags: what the files do not say, as the number of heads.
        side_a: how to run the source; by default the framework that reads its names natively.
        side_b: how to run the target.
        require_proof: fail too where a side had to be loaded through our mapping tables.
        options: further fields of ``verify.verification.Options``: ``gradients``, ``against`` ...

    Returns:
        The verification that passed, with its traces.

    Raises:
        AssertionError: they differ; the message says where, by how much, and why.
        MaeConvertError: a checkpoint cannot be read or run.
    """
    # pytest shows the message, and not the inside of this function.
    __tracebackhide__ = True
    first, second = (open_checkpoint(path, flags, fill_only=True) for path in (a, b))
    check_flags(flags, first, second)
    asked = Options(require_proof=require_proof, **options)
    done = run_verification(first, second, side_a, side_b, asked)
    if not done.verdict.passed:
        raise AssertionError(f"{a} and {b}:\n{text(done.verdict)}")
    return done
