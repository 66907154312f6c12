"""How a side of a comparison is run: by which framework, where, and whether natively."""

import importlib.util
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mae_convert.checkpoint import Checkpoint
from mae_convert.errors import MaeConvertError, MissingRequirementError
from mae_convert.verify.job import FRAMEWORKS

# Which loader reads which spelling's own names into which framework's model. What is not here goes
# through the mapping tables, and is then witnessed but not proven.
NATIVE_LOADERS: Mapping[tuple[str, str], str] = {
    ("facebook", "torch"): "facebook",
    ("timm", "torch"): "facebook",  # the original's names
    ("transformers-tf", "tensorflow"): "transformers-tf",
    ("transformers-tf", "jax"): "transformers-tf",
    ("transformers, names of version 4", "tensorflow"): "transformers",
    ("transformers, names of version 4", "jax"): "transformers",
    ("keras", "tensorflow"): "keras",
    ("keras", "jax"): "keras",
    ("transformers, names of version 4", "transformers"): "transformers",
    ("transformers, names saved by version 5", "transformers"): "transformers",
    ("transformers-tf", "transformers"): "transformers-tf",
    ("timm", "timm"): "timm",
}
# Their own classes read directories with a config.json, and by these names.
THIRD_PARTIES = ("transformers", "timm")
UNMASKED = ("timm",)  # frameworks whose model cannot leave patches out
INSTALL = {
    "torch": "pip install 'mae-convert[torch]'",
    "tensorflow": "pip install 'mae-convert[tensorflow]'",
    "jax": "pip install 'mae-convert[jax]'",
    "transformers": "pip install transformers torch",
    "timm": "pip install timm",
}
MODULES = {
    "torch": ("torch",),
    "tensorflow": ("tensorflow", "keras"),
    "jax": ("jax", "keras"),
    "transformers": ("transformers",),
    "timm": ("timm", "torch"),
}


@dataclass(frozen=True)
class Side:
    """How one side of a comparison is run.

    Attributes:
        framework: one of ``FRAMEWORKS``; None chooses the one that proves most.
        device: where runs other than float64 happen, "cpu" or "cuda".
        python: the interpreter of the child process; None is this one.
        mode: one of ``job.MODES``.
    """

    framework: str | None = None
    device: str = "cpu"
    python: str | None = None
    mode: str = "eager"


def choose_side(checkpoint: Checkpoint, side: Side) -> Side:
    """Return the side with its framework chosen: one that reads the names natively, if it is here.

    Raises:
        MissingRequirementError: a framework that was asked for, or any at all, is missing.
    """
    if side.framework is not None:
        if side.framework not in FRAMEWORKS:
            raise MaeConvertError(
                f"unknown framework {side.framework!r}; choose {', '.join(FRAMEWORKS)}"
            )
        if not has_framework(side.framework, side.python):
            raise _missing(side.framework, side.python)
        return side
    native = [f for f in FRAMEWORKS if loader_for(checkpoint, f) is not None]
    references = [f for f in FRAMEWORKS if f not in THIRD_PARTIES]
    for framework in dict.fromkeys([*native, *references]):
        if has_framework(framework, side.python):
            return replace(side, framework=framework)
    raise _missing(native[0] if native else "torch", side.python)


def loader_for(checkpoint: Checkpoint, framework: str) -> str | None:
    """Return the loader that reads a checkpoint without our tables, or None."""
    loader = NATIVE_LOADERS.get((checkpoint.table.name, framework))
    if framework in THIRD_PARTIES and not (
        checkpoint.path.is_dir()
        and (checkpoint.path / "config.json").is_file()
        and not checkpoint.prefix.removed
    ):
        return None
    return loader


def has_framework(framework: str, python: str | None) -> bool:
    """Return whether an interpreter finds a framework, without importing it here.

    Raises:
        MaeConvertError: there is no such interpreter.
    """
    modules = MODULES[framework]
    if python is None:
        return all(importlib.util.find_spec(module) for module in modules)
    probe = f"import importlib.util as u; print(all(u.find_spec(m) for m in {modules}))"
    try:
        done = subprocess.run([python, "-c", probe], check=False, capture_output=True, text=True)
    except OSError as error:
        raise MaeConvertError(f"cannot run the interpreter {python}: {error.strerror}") from error
    if done.stdout.strip() not in ("True", "False"):
        raise MaeConvertError(f"{python} ran and is no Python interpreter; give one")
    return done.stdout.strip() == "True"


def _missing(framework: str, python: str | None) -> MissingRequirementError:
    where = "here" if python is None else f"in the environment of {python}"
    return MissingRequirementError(f"{framework} is not installed {where}; {INSTALL[framework]}")
