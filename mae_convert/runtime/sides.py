"""How one side of a comparison (checkpoint A or B) is run: framework, interpreter, and loader."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.errors import MaeConvertError, MissingRequirementError, Option
from mae_convert.formats.registry import (
    INDEX_NAMES,
    KERAS_ARCHIVE,
    KERAS_H5,
    NPZ,
    PTH,
    SAFETENSORS,
    TF_H5,
)
from mae_convert.runtime import worker
from mae_convert.runtime.children import cannot_run, environment_of_child
from mae_convert.runtime.foreign import FOREIGN, FORMS, ForeignCode, parse_foreign
from mae_convert.runtime.fork_server import ForkServer
from mae_convert.runtime.job import import_path_of
from mae_convert.runtime.run_options import FRAMEWORKS
from mae_convert.runtime.worker import TF_CLASSES, missing

WORKER = Path(worker.__file__)
# Libraries with their own classes; two of them read directories with a config.json and files with
# certain names.
THIRD_PARTIES = ("transformers", "timm", "terratorch")
READ_DIRECTORIES = ("transformers", "timm")
KERAS_BACKENDS = ("tensorflow", "jax")
# The file formats that a library reads in the process of a framework. A process of TensorFlow or
# JAX does not import PyTorch, and no library reads distributed checkpoints without running their
# pickle.
READ_BY_LIBRARIES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("facebook", "torch"): (PTH, SAFETENSORS, NPZ),
    **{
        (loader, framework): (TF_H5, KERAS_H5, SAFETENSORS, NPZ)
        for loader in ("transformers-tf", "transformers-tf, shards")
        for framework in KERAS_BACKENDS
    },
    **{("transformers", f): (SAFETENSORS, NPZ) for f in KERAS_BACKENDS},
    **{("keras", f): (KERAS_H5, KERAS_ARCHIVE) for f in KERAS_BACKENDS},
    ("transformers", "transformers"): (PTH, SAFETENSORS),
    ("transformers-video", "transformers"): (PTH, SAFETENSORS),
    ("transformers-tf", "transformers"): (TF_H5,),
    ("timm", "timm"): (PTH, SAFETENSORS),
    ("terratorch", "terratorch"): (PTH, SAFETENSORS),
}
# The files that these libraries look for in a directory; transformers looks for shards too.
LOOKED_FOR = ("model.safetensors", "pytorch_model.bin", "tf_model.h5")
# For each framework of a run, the key of its reference models in ``Family.models``.
MODELS_OF = {"torch": "torch", "tensorflow": "keras", "jax": "keras"}
UNMASKED = ("timm",)  # frameworks whose model cannot remove patches
INSTALL = {
    "torch": "pip install 'mae-convert[torch]'",
    "tensorflow": "pip install 'mae-convert[tensorflow]'",
    "jax": "pip install 'mae-convert[jax]'",
    "transformers": "pip install transformers torch",
    "timm": "pip install timm",
    "terratorch": "pip install terratorch",
}
INSTALL_TF_CLASSES = "pip install transformers==4.57.6 tensorflow tf-keras"
# The requirements of a run, as arguments of ``worker.missing``. The folder ``ops`` exists only in
# Keras 3, and the TensorFlow classes exist only in transformers 4.
KERAS = ("keras/src/ops", "h5py")
REQUIREMENTS = {
    "torch": ("torch",),
    "tensorflow": ("tensorflow", *KERAS),
    "jax": ("jax", *KERAS),
    "transformers": ("transformers", "torch"),
    "timm": ("timm", "torch"),
    "terratorch": ("terratorch", "torch"),
}
TF_CLASSES_FILE = "transformers/models/vit_mae/modeling_tf_vit_mae.py"
REQUIREMENTS_OF_TF_CLASSES = ("transformers", TF_CLASSES_FILE, "tensorflow", "tf_keras")
NEEDED_BY_EVERY_RUN = ("numpy", "safetensors")
FULL_NAMES = {
    "keras/src/ops": "Keras 3",
    TF_CLASSES_FILE: "a version of transformers with TensorFlow classes",
}
PROBE_SECONDS = 60


@dataclass(frozen=True)
class Side:
    """Options for running one side of a comparison: checkpoint A or checkpoint B."""

    framework: str | None = None
    """One of ``FRAMEWORKS``, or user-specified code in one of the forms of `foreign.FORMS`; None to
    choose a framework that loads the checkpoint natively, if possible."""

    device: str = "cpu"
    """The device of the runs, "cpu" or "cuda"; a float64 run is always on the CPU."""

    python: str | None = None
    """The Python interpreter of the child process; None for the current interpreter."""

    mode: str = "eager"
    """The execution mode, one of ``run_options.MODES``: "eager", "compiled", "xla" or "train"."""

    time_limit: float | None = None
    """The time limit of a run in seconds; 0 for no limit. None for the value of the environment
    variable ``MAE_CONVERT_TIME_LIMIT`` or, if it is not set, one hour."""

    foreign: ForeignCode | None = None
    """The external code that runs the model, as set by `with_foreign`; ``framework`` is then
    `FOREIGN`. None if the model is run by a framework."""

    fork_server: ForkServer | None = field(default=None, compare=False, repr=False)
    """A fork server that has imported PyTorch. It starts the child process if a forked process is
    equivalent to a new process. None to always start a new process."""


def with_foreign(side: Side, option: str = "framework") -> Side:
    """Return the side; if its ``framework`` specifies external code, ``foreign`` is this code.

    Args:
        side: the side as specified.
        option: the name of the option that specifies the framework, for messages.

    Raises:
        MaeConvertError: ``framework`` is neither the name of a framework nor of code that exists,
            or it specifies external code and the mode is not "eager".
    """
    if side.framework in (None, *FRAMEWORKS) or side.foreign is not None:
        return side
    foreign = parse_foreign(str(side.framework), side.python, option)
    if foreign is None:
        raise MaeConvertError(
            *(Option(option, side.framework), " is neither a framework nor code that runs a model"),
            hint=f"choose one of {', '.join(FRAMEWORKS)}, or specify code as {FORMS}",
        )
    if side.mode != "eager":
        raise MaeConvertError(
            f"{foreign.label} cannot be run in the mode {side.mode}: external code can only be run"
            " eagerly",
            hint="leave the mode out",
        )
    return replace(side, framework=FOREIGN, foreign=foreign)


def check_foreign(sides: Sequence[Side], *, gradients: bool, isolate: bool = False) -> None:
    """Raise an error if results are requested that external code does not support.

    Args:
        sides: the results of `with_foreign`.
        gradients: whether gradients are requested.
        isolate: whether a comparison of isolated steps is requested, in which the model runs each
            step (such as a block) on a specified input.

    Raises:
        MaeConvertError: a side is external code, and gradients or isolated steps are requested.
    """
    for foreign in filter(None, (side.foreign for side in sides)):
        for asked, what, option in (
            (gradients, "the comparison of gradients", "gradients"),
            (isolate, "the step-isolated comparison", "isolate"),
        ):
            if asked:
                raise MaeConvertError(
                    f"{what} is not supported for {foreign.label}, because it is external code",
                    hint=("leave ", Option(option, True), " out"),
                )


def choose_side(checkpoint: Checkpoint, side: Side) -> Side:
    """Return the side with its framework set, by default to an installed framework.

    A framework that loads the tensor names of the checkpoint natively is preferred. A framework
    counts as installed if everything that the run imports is installed.

    Raises:
        MissingRequirementError: the specified framework is not installed, or no framework is
            installed.
        MaeConvertError: the specified framework does not exist, or the external code cannot be run
            (see `with_foreign`).
    """
    side = with_foreign(side)
    if side.foreign is not None:
        return side  # the requirements of the code are known only in the child process
    if side.framework is not None:
        loader = loader_for(checkpoint, side.framework)
        if not has_framework(side.framework, side.python, loader):
            raise _missing(side.framework, side.python, loader)
        return side
    native = [
        f
        for f in FRAMEWORKS
        if loader_for(checkpoint, f) is not None and not _computes_another_function(checkpoint, f)
    ]
    references = [f for f in FRAMEWORKS if f not in THIRD_PARTIES]
    for framework in dict.fromkeys([*native, *references]):
        if has_framework(framework, side.python, loader_for(checkpoint, framework)):
            return replace(side, framework=framework)
    raise _missing(native[0] if native else "torch", side.python)


def _computes_another_function(checkpoint: Checkpoint, framework: str) -> bool:
    """Return whether a library's own class computes other outputs than the checkpoint's model."""
    model = checkpoint.configuration.model
    own = framework in THIRD_PARTIES and framework == checkpoint.layout.name
    return own and bool(checkpoint.layout.differences(model, checkpoint.task))


def loader_for(checkpoint: Checkpoint, framework: str) -> str | None:
    """Return the name of the loader with which a framework loads a checkpoint natively, or None.

    A native loader reads the files with the library of their file format, and uses no mapping table
    of mae-convert.
    """
    loader = named_loader(checkpoint, framework)
    container = checkpoint.container
    if loader is None or container.kind not in READ_BY_LIBRARIES[loader, framework]:
        return None
    # Keras itself loads its files, and does not know the prefix that mae-convert has removed.
    return None if loader == "keras" and checkpoint.prefix.removed else loader


def named_loader(checkpoint: Checkpoint, framework: str) -> str | None:
    """Return the name of the loader with which a framework loads a checkpoint's tensor names.

    The file format is not considered, unlike in `loader_for`. The result is None if the framework
    has no loader for these names, or if it would not find the files in the checkpoint's directory.
    The names are then converted with mae-convert's mapping tables, and the verdict is not a proof,
    because an error in a table could remain undetected.
    """
    loader = checkpoint.family.native_loaders.get((checkpoint.table.name, framework))
    if framework in READ_DIRECTORIES and not _finds_its_files(checkpoint, framework):
        return None
    return loader


def _finds_its_files(checkpoint: Checkpoint, framework: str) -> bool:
    """Return whether a library loads the same files of a checkpoint's directory as mae-convert.

    Args:
        checkpoint: the checkpoint.
        framework: the library, one of `READ_DIRECTORIES`.
    """
    container, path = checkpoint.container, checkpoint.path
    name = container.weights_file.name
    parts = framework == "transformers" and name in INDEX_NAMES
    return (
        path.is_dir()
        and (path / "config.json").is_file()
        and not checkpoint.prefix.removed
        and container.wrapper is None
        and (name in LOOKED_FOR or parts)
    )


def classes_of(checkpoint: Checkpoint, framework: str) -> dict[str, Any]:
    """Return the fields ``model`` and ``configuration`` of a job.

    They are the import paths of the family's classes for this framework and the checkpoint's task;
    ``model`` is "" if the family has no such class.
    """
    models = checkpoint.family.models.get(MODELS_OF.get(framework, framework), {})
    return {
        "model": models.get(checkpoint.task, ""),
        "configuration": import_path_of(type(checkpoint.configuration.model)),
    }


def has_framework(framework: str, python: str | None, loader: str | None = None) -> bool:
    """Return whether an interpreter can find the packages that a run imports.

    The packages are not imported.

    Args:
        framework: one of ``FRAMEWORKS``.
        python: the Python interpreter; None for the current interpreter.
        loader: the result of `loader_for`; it determines whether the PyTorch or the TensorFlow
            classes of transformers are run. None for the PyTorch classes.

    Raises:
        MaeConvertError: the interpreter does not exist.
    """
    return not _lacking(framework, python, loader)


def require_frameworks(*frameworks: str) -> None:
    """Require that frameworks are installed, before any other work is done.

    Raises:
        MissingRequirementError: a framework is not installed; the message states how to install it.
    """
    for framework in frameworks:
        if not has_framework(framework, None):
            raise _missing(framework, None)


def require_sides(*sides: Side) -> None:
    """Require that the specified frameworks are installed, before a checkpoint is opened.

    If a side has no specified framework, some framework must be installed; the choice depends on
    the checkpoint, and `choose_side` makes it.

    Raises:
        MissingRequirementError: a framework is not installed; the message states how to install it.
    """
    for framework, python in dict.fromkeys((side.framework, side.python) for side in sides):
        if framework == FOREIGN:  # the child process finds out what the code imports
            if python is not None and (lacking := _missing_there(NEEDED_BY_EVERY_RUN, python)):
                raise MissingRequirementError(
                    f"external code needs packages that are not installed in the environment of "
                    f"{python}: {', '.join(lacking)}",
                    hint=f"{python} -m pip install {' '.join(lacking)}",
                )
            continue
        if framework is not None:
            if not (has_framework(framework, python) or _has_tf_classes(framework, python)):
                raise _missing(framework, python)
        elif python is None and not any(has_framework(name, None) for name in MODELS_OF):
            raise _missing("torch", None)


def _has_tf_classes(framework: str, python: str | None) -> bool:
    """Return whether the framework is transformers and its TensorFlow classes are installed.

    Args:
        framework: the framework.
        python: the Python interpreter; None for the interpreter that runs this code.
    """
    return framework == TF_CLASSES[0] and has_framework(framework, python, TF_CLASSES[1])


def first_framework() -> str:
    """Return the first installed framework of PyTorch, TensorFlow and JAX.

    Raises:
        MissingRequirementError: no framework is installed.
    """
    for framework in ("torch", "tensorflow", "jax"):
        if has_framework(framework, None):
            return framework
    raise MissingRequirementError(
        "no framework is installed", hint="pip install 'mae-convert[torch]'"
    )


def _lacking(framework: str, python: str | None, loader: str | None) -> list[str]:
    """Return the packages that a run requires and that the interpreter cannot find.

    Args:
        framework: the framework that runs the model.
        python: the Python interpreter; None for the interpreter that runs this code.
        loader: the name of the loader (see `loader_for`); None if the framework does not load the
            checkpoint natively.
    """
    by_tf_classes = (framework, loader) == TF_CLASSES
    own = REQUIREMENTS_OF_TF_CLASSES if by_tf_classes else REQUIREMENTS[framework]
    requirements = (*own, *NEEDED_BY_EVERY_RUN)
    return missing(requirements) if python is None else _missing_there(requirements, python)


def _missing_there(requirements: Sequence[str], python: str) -> list[str]:
    """Return the requirements that another Python interpreter cannot find."""
    command = [python, str(WORKER), "--missing", *requirements]
    try:
        process = subprocess.run(
            command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            env=environment_of_child(), timeout=PROBE_SECONDS,
        )  # fmt: skip
    except OSError as error:
        raise cannot_run(python, error) from error
    except subprocess.TimeoutExpired as error:
        raise MaeConvertError(
            f"{python} did not report its installed packages within {PROBE_SECONDS} seconds",
            hint="is it a Python interpreter?",
        ) from error
    try:
        lacking = json.loads(process.stdout)
    except ValueError:
        lacking = None
    if not isinstance(lacking, list):
        raise MaeConvertError(f"{python} is not a Python interpreter", hint="specify one")
    return [requirement for requirement in requirements if requirement in lacking]


def _missing(
    framework: str, python: str | None, loader: str | None = None
) -> MissingRequirementError:
    where = "here" if python is None else f"in the environment of {python}"
    lacking = [FULL_NAMES.get(name, name) for name in _lacking(framework, python, loader)]
    if not lacking or lacking[0] == framework:
        what = f"{framework} is not installed {where}"
    else:
        what = f"{framework} needs packages that are not installed {where}: {', '.join(lacking)}"
    install = INSTALL_TF_CLASSES if (framework, loader) == TF_CLASSES else INSTALL[framework]
    return MissingRequirementError(f"{what}", hint=install)
