"""Functions for tests: ``assert_parity`` fails unless two checkpoints are the same model."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from mae_convert.diagnose.diagnosis import diagnose
from mae_convert.errors import ConfigurationError
from mae_convert.families.checkpoint_options import (
    ARGUMENTS,
    Flags,
    flags_of_arguments,
    name_of_dtype,
)
from mae_convert.runtime.loading import warn_of_no_effect
from mae_convert.runtime.sides import Side
from mae_convert.sources import open_pair, parse_source
from mae_convert.verify.summary import verdict_text
from mae_convert.verify.verification import (
    Options,
    Verification,
    parse_options,
    run_verification,
)

OPTIONS = tuple(field.name for field in fields(Options))
OF_CHECKPOINTS = ARGUMENTS.keys() - set(OPTIONS)
DTYPES = ("float64", "float32", "tf32", "float16", "bfloat16")


def assert_parity(
    a: Path | str,
    b: Path | str,
    *,
    task: str | None = None,
    state_key: str | None = None,
    flags: Flags | None = None,
    side_a: Side | None = None,
    side_b: Side | None = None,
    require_proof: bool = True,
    **options: Any,
) -> Verification:
    """Assert that two checkpoints have the same weights and compute the same outputs.

    Args:
        a: the source: a file, a model directory, ``hf://owner/name`` or an official name.
        b: the target; changes of tensor values that its conversion record declares, such as another
            dtype, are applied to the source first.
        task: compare both checkpoints as models for this task: "pretrain", "encoder" or "classify".
            Default: the task of each checkpoint, which its tensors determine.
        state_key: the key of the weights in a PyTorch checkpoint, if they cannot be recognised.
        flags: fields that the files do not contain, such as the number of heads; they can also be
            specified by ``num_heads`` and the other arguments of `load_model`.
        side_a: how to run the source; by default in the framework that loads it natively.
        side_b: how to run the target; by default in the framework that loads it natively.
        require_proof: also fail if the verdict is not a proof, for example because mae-convert's
            mapping tables were used to load a checkpoint.
        options: further fields of ``verify.verification.Options``, such as ``gradients``,
            ``dtypes``, ``mask_ratio``, and ``against``: libraries that also run the target, for
            example ("transformers",), or ("timm=PYTHON",) with the path of a Python interpreter.

    Returns:
        The verification that passed, with its traces.

    Raises:
        AssertionError: the checkpoints differ, or a required proof failed. The message contains the
            first difference, its size and, if it was found, its cause.
        MaeConvertError: a checkpoint cannot be read or run, or an option is invalid.
        TypeError: an option is unknown, an argument has the wrong type, or a field is specified
            although ``flags`` is specified too.
    """
    # pytest shows the message, without the source code of this function.
    __tracebackhide__ = True
    _check_types(flags=(flags, Flags), side_a=(side_a, Side), side_b=(side_b, Side))
    of_checkpoints = {name: options.pop(name) for name in OF_CHECKPOINTS & options.keys()}
    parsed = _options({**options, "require_proof": require_proof})
    if of_checkpoints and flags is not None:
        raise TypeError(f"assert_parity takes flags or {min(of_checkpoints)}, not both")
    flags = flags or flags_of_arguments(of_checkpoints, "assert_parity")
    pair = [parse_source(str(path)) for path in (a, b)]
    first, second = open_pair(pair, flags, state_key=state_key, task=task)
    warn_of_no_effect(flags, first, second)
    verification = diagnose(run_verification(first, second, side_a, side_b, parsed))
    if not verification.verdict.passed:
        raise AssertionError(f"{a} and {b}:\n{verdict_text(verification.verdict)}")
    return verification


def _check_types(**arguments: tuple[Any, type]) -> None:
    """Raise TypeError if an argument has the wrong type."""
    for name, (value, kind) in arguments.items():
        if value is not None and not isinstance(value, kind):
            where = f"{kind.__module__}.{kind.__name__}"
            raise TypeError(f"{name} must be a {where}, not {value!r}")


def _options(arguments: Mapping[str, Any]) -> Options:
    """Convert the further arguments of `assert_parity` to the options of a verification.

    Raises:
        TypeError: an argument is unknown.
        MaeConvertError: a dtype or a library is unknown.
    """
    if unknown := sorted(arguments.keys() - set(OPTIONS)):
        raise TypeError(
            f"assert_parity has no argument {unknown[0]!r}; it takes {', '.join(OPTIONS)}"
        )
    parsed = dict(arguments)
    for name in ("dtypes", "against"):
        if name in parsed:
            value = parsed[name]
            parsed[name] = value if isinstance(value, list | tuple) else (value,)
    if "dtypes" in parsed:
        parsed["dtypes"] = tuple(name_of_dtype(dtype, DTYPES) for dtype in parsed["dtypes"])
    parsed["against"] = tuple(map(_runner, parsed.get("against", ())))
    return Options(**parsed)


def _runner(library: Any) -> Side:
    if isinstance(library, Side):
        return library
    if not isinstance(library, str):
        raise ConfigurationError(
            f"against must contain names of libraries, such as 'transformers', not {library!r}"
        )
    return parse_options(against=(library,)).against[0]
