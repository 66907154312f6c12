"""Import external code in a child process and determine how to run it.

A file or module of external code has a factory, a function or class that creates the model. It
may also define these names (see ``docs/runners.md``):

- ``LAYOUT``: the layout of the state dict; see `mae_convert.runtime.foreign`.
- ``load_state(model, state)``: loads the tensors into the model.
- ``forward(model, pixel_values, noise)``: runs the model and returns results by name.
- ``MASK``: how the model gets the noise: as an "argument", from "torch.rand", or not at all (None).
- ``OUTPUTS``: the names of the results if the model returns a tuple.
- ``ACTIVATIONS``: a dictionary from canonical names of activations to names of modules.
"""

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mae_convert.errors import Option
from mae_convert.runtime.job import Job, class_named
from mae_convert.runtime.loaders import LoadError
from mae_convert.runtime.trace_check import BLOCK, FINAL, STEPS

NAME = "mae_convert_foreign_code"  # name of the module that is imported from a file
RESULTS = (
    "mask", "ids_restore", "last_hidden_state", "logits", "reconstruction", "loss",
    "loss_norm_pix",
)  # fmt: skip
MASKS = ("argument", "torch.rand", None)
BRACES = re.compile(r"\{([a-z0-9,]+)\}")
MORE_STEPS = ("head.norm",)


@dataclass(frozen=True)
class Code:
    """Imported code, and how it is run.

    Attributes:
        label: the name of the code in messages.
        factory: creates the model from the configuration, a dictionary.
        load_state: loads a state dict into the model; None for the framework's strict loading.
        forward: runs the model; None for a call of the model.
        mask: how the model gets the noise, one of `MASKS`; see the docstring of the module.
        outputs: names of the items of a tuple that the model returns.
        activations: a dictionary from the canonical name of an activation to the name of the module
            that computes it; ``{}`` in both names stands for the number of a block. For a name with
            ``{q,k,v}``, the output of the module is split into equal parts along the last axis.
    """

    label: str
    factory: Callable[[dict[str, Any]], Any]
    load_state: Callable[[Any, dict[str, Any]], Any] | None = None
    forward: Callable[[Any, Any, Any], Any] | None = None
    mask: str | None = "argument"
    outputs: tuple[str, ...] = ()
    activations: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context in which an exception of the code becomes an error that states the line of code.

        Raises:
            LoadError: the code raised an exception other than MemoryError.
        """
        try:
            yield
        except (LoadError, MemoryError):
            raise
        except Exception as error:
            raise LoadError(f"{self.label} failed{_line(error)}: {_words(error)}") from error

    def points(self) -> Iterator[tuple[str, str, int, int]]:
        """Yield a tuple (name, module name, index, number of parts) for each activation.

        The output of the module is split into this number of equal parts along the last axis; the
        activation is the part with this index, from 0. The first item is the canonical name of the
        activation. In both names, ``{}`` stands for the number of a block.
        """
        for name, module in self.activations.items():
            match = BRACES.search(name)
            parts = match[1].split(",") if match else [""]
            for number, part in enumerate(parts):
                yield (BRACES.sub(part, name) if match else name), module, number, len(parts)


def _line(error: Exception) -> str:
    """Return a phrase that states the line of external code that raised an error; "" if unknown."""
    ours = str(Path(__file__).resolve().parents[1])
    frames = [f for f in traceback.extract_tb(error.__traceback__) if ours not in f.filename]
    theirs = [
        f for f in frames if "site-packages" not in f.filename and "/lib/python" not in f.filename
    ]
    frames = theirs or frames
    return f" at line {frames[-1].lineno} of {frames[-1].filename}" if frames else ""


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())[:600]
    return f"{type(error).__name__}: {text}"


def import_code(about: Mapping[str, Any], task: str) -> Code:
    """Import the external code of a job; no compiled files are written beside its source files.

    Args:
        about: the result of `ForeignCode.plain`.
        task: the task of the checkpoint.

    Raises:
        LoadError: the code cannot be imported, or one of its variables is invalid.
    """
    sys.dont_write_bytecode = True  # for this child process
    if about["kind"] == "original":
        from mae_convert.runtime.original_code import original_code

        return original_code(Path(about["path"]), task)
    path = about["path"]
    label = f"{Path(path).name if about['kind'] == 'file' else path}:{about['factory']}"
    with Code(label, dict).running():
        module = _file(Path(path)) if about["kind"] == "file" else importlib.import_module(path)
    factory = getattr(module, about["factory"], None)
    if not callable(factory):
        raise LoadError(f"{label}: {path} contains no function or class {about['factory']}")
    outputs, activations = getattr(module, "OUTPUTS", ()), getattr(module, "ACTIVATIONS", {})
    if not isinstance(outputs, list | tuple):
        raise LoadError(f"{label}: OUTPUTS is not a tuple of names", hint='write ("logits",)')
    valid = isinstance(activations, Mapping) and all(
        isinstance(text, str) for pair in activations.items() for text in pair
    )
    if not valid:
        raise LoadError(
            f"{label}: ACTIVATIONS is not a dictionary of strings",
            hint='write {"encoder.blocks.{}.output": "blocks.{}"}',
        )
    code = Code(
        label,
        factory,
        getattr(module, "load_state", None),
        getattr(module, "forward", None),
        getattr(module, "MASK", "argument"),
        tuple(outputs),
        dict(activations),
    )
    _check(code)
    return code


def _file(path: Path) -> Any:
    """Import a file, which may import other files of its directory; return the module."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module


def _check(code: Code) -> None:
    if code.mask not in MASKS:
        raise LoadError(
            f"{code.label}: MASK is {code.mask!r}, which is not supported",
            hint='write "argument", "torch.rand" or None',
        )
    for name in code.outputs:
        if name not in RESULTS:
            raise LoadError(
                f"{code.label}: OUTPUTS contains {name!r}, which is not the name of a result",
                hint=f"choose from {', '.join(RESULTS)}",
            )
    for name, *_ in code.points():
        is_name = BLOCK.fullmatch(name.replace("{}", "0")) or name in (*STEPS, *MORE_STEPS)
        if not is_name:
            raise LoadError(
                f"{code.label}: ACTIVATIONS names {name!r}, which is not the name of an activation",
                hint="write for example encoder.blocks.{}.output, encoder.embedding, decoder.norm",
            )


def factory_argument(job: Job, dtype: str | None = None) -> dict[str, Any]:
    """Return the argument of a factory, the external function that creates the model.

    It contains the fields of the configuration and three further fields.

    The further fields are ``task``; ``num_kept``, the number of patches that are not removed; and
    ``dtype``, the dtype in which a Keras model must be created. A PyTorch model is converted to
    this dtype afterwards.

    Args:
        job: the job, which has the configuration, the task and the dtypes of the runs.
        dtype: the value of the field ``dtype``; None for the dtype of the job's first run.
    """
    config = class_named(job.configuration).from_dict(job.config)
    more = {"task": job.task, "num_kept": config.num_kept, "dtype": dtype or job.dtypes[0]}
    return {**job.config, **more}


def named_results(code: Code, task: str, returned: Any) -> dict[str, Any]:
    """Return the results of a model by name, except results that are None or have unknown names.

    Raises:
        LoadError: the output that every model for the task must return is missing; or the model
            returned a tuple whose length differs from the length of ``OUTPUTS``, the names that the
            external code defines.
    """
    if isinstance(returned, Mapping):
        results = dict(returned)
    elif isinstance(returned, tuple | list):
        if len(returned) != len(code.outputs):
            raise LoadError(
                f"{code.label}: the model returns {len(returned)} values, but the length of "
                f"OUTPUTS is {len(code.outputs)}"
            )
        results = dict(zip(code.outputs, returned, strict=True))
    else:
        results = {"last_hidden_state" if task == "encoder" else "logits": returned}
    outputs = {
        name: value for name, value in results.items() if name in RESULTS and value is not None
    }
    if not outputs:
        raise LoadError(
            f"{code.label}: the model returns none of the results {', '.join(RESULTS)}",
            hint="write a function forward(model, pixel_values, noise) that returns them by name",
        )
    if (final := FINAL[task]) not in outputs:
        encoder = (", or compare the encoder alone: ", Option("task", "encoder"))
        raise LoadError(
            f"{code.label}: the model does not return {final}, which the comparison requires",
            hint=("return it too", *(encoder if task == "pretrain" else ())),
        )
    return outputs
