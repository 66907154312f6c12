"""The child process that runs one checkpoint in one framework and writes a trace.

It is started as ``python worker.py JOB.json``, possibly by another interpreter in an environment
with NumPy, safetensors and the framework, but without mae-convert. Therefore it imports this
project's packages from the directory tree of this file, without making anything else in that tree
importable.
It ends when its standard input is closed, which happens when its parent ends.

``python worker.py --missing REQUIREMENT...`` prints the requirements that the interpreter lacks.
``python worker.py --serve torch`` runs a fork server that starts these child processes; see
``fork_server``.
"""

import gc
import importlib
import importlib.util
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from mae_convert.runtime.job import Job
    from mae_convert.runtime.loaders import Stored

ROOT = Path(__file__).resolve().parents[2]


def expose(package: str) -> ModuleType:
    """Import a package of this project without adding its parent directory to ``sys.path``."""
    folder = ROOT / package
    spec = importlib.util.spec_from_file_location(
        package, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[package] = module
    spec.loader.exec_module(module)
    return module


def missing(requirements: Sequence[str]) -> list[str]:
    """Return the requirements that are not installed, without importing any.

    Args:
        requirements: names of packages, such as ``torch``, or paths in a package, such as
            ``keras/src/ops``.
    """
    return [requirement for requirement in requirements if not _is_installed(requirement)]


def _is_installed(requirement: str) -> bool:
    package, _, inside = requirement.partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    if spec is None or spec.origin is None:  # a folder of that name is not a package
        return False
    folders = map(Path, spec.submodule_search_locations or ())
    return not inside or any((folder / inside).exists() for folder in folders)


def stage_file(job_path: Path) -> Path:
    """Return the file in which the child of a job records its current stage."""
    return job_path.with_name("stage.txt")


def note_stage(job_path: Path, stage: str) -> None:
    """Record the current stage, such as "importing torch", for the message about a time limit."""
    with suppress(OSError):  # the work itself will report a full disk
        stage_file(job_path).write_text(stage)


def end_with_parent() -> None:
    """End this process when its parent ends."""
    be_killed_with_parent()
    threading.Thread(target=_end_with_standard_input, daemon=True).start()


def be_killed_with_parent() -> None:
    """Let the kernel kill this process when its parent ends (on Linux; elsewhere, do nothing)."""
    if sys.platform == "linux":
        with suppress(Exception):  # for example without ctypes
            import ctypes

            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _end_with_standard_input() -> None:
    with suppress(OSError):
        while os.read(0, 1):
            pass
        os._exit(1)


REPORT = "worker: "  # the prefix of the line with the reason why a job failed
TF_CLASSES = ("transformers", "transformers-tf")
# Classes of a library with another interface have a separate runner.
LOADER_RUNNERS = {
    TF_CLASSES: "run_transformers_tf",
    ("transformers", "transformers-video"): "run_transformers_video",
}
RUNNERS = {
    "torch": "run_pytorch",
    "tensorflow": "run_keras",
    "jax": "run_keras",
    "transformers": "run_transformers",
    "timm": "run_timm",
    "terratorch": "run_terratorch",
    "foreign": "run_foreign",
}


# Packages that Keras imports if they are installed, for functions that no runner uses. Importing
# scikit-learn takes a fifth of the time of importing Keras and TensorFlow.
OPTIONAL_IN_KERAS = ("sklearn", "pandas", "IPython")
IN_KERAS = ("tensorflow", "jax")


@contextmanager
def as_if_not_installed(packages: Sequence[str]) -> Iterator[None]:
    """Make the import of each of the `packages` that is not yet imported raise ImportError."""
    hidden = [package for package in packages if package not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None, as Python documents
    try:
        yield
    finally:
        for package in hidden:
            del sys.modules[package]


def import_runner(framework: str, loader: str) -> ModuleType:
    """Import and return the module that runs models of a framework; this imports the framework.

    Args:
        framework: one of ``FRAMEWORKS``, or "foreign" for external code.
        loader: the loader of the job. For transformers, it determines which classes are run.
    """
    in_keras = framework in IN_KERAS
    if in_keras:
        os.environ["KERAS_BACKEND"] = framework
    # The import of a framework creates a million permanent objects, which the garbage collector
    # need not examine.
    gc.disable()
    # transformers 4 had classes for two frameworks, which must not be in one process.
    name = LOADER_RUNNERS.get((framework, loader), RUNNERS[framework])
    with as_if_not_installed(OPTIONAL_IN_KERAS if in_keras else ()):
        runner = importlib.import_module(f"mae_convert.runtime.{name}")
    gc.freeze()
    gc.enable()
    return runner


def run(job_path: Path) -> None:
    """Run the job in a job file and write its trace."""
    from mae_convert.files.workers import reuse_freed_memory
    from mae_convert.runtime.job import Job

    reuse_freed_memory()
    job = Job.load(job_path)
    note_stage(job_path, f"importing {job.framework}")
    if job.framework == "torch" and hasattr(os, "nice"):
        # The verdict waits for the other side, which is slower and should get more processor time.
        # With the lowest priority, PyTorch would get almost none if the machine has other work.
        os.nice(5)
    with _reading(job) as stored:
        runner = import_runner(job.framework, job.loader)
        import numpy as np
        from safetensors.numpy import save_file

        with np.load(job.inputs) as archive:
            inputs = dict(archive)
        arrays = _results(job, job_path, runner.runs(job, inputs, *stored))
    description = {
        **job.description,
        "versions": runner.versions(),
        "settings": {**runner.settings(), **_omitted(job.foreign, arrays)},
    }
    note_stage(job_path, "writing the results")
    save_file(arrays, job.output, metadata={"trace": json.dumps(description)})


def _results(
    job: "Job", job_path: Path, runs: Iterator[tuple[str, Mapping[str, "np.ndarray"]]]
) -> dict[str, "np.ndarray"]:
    """Return the results of all runs by their names in the trace.

    Results that do not depend on the dtype are stored once.

    Args:
        job: the job.
        job_path: the job file; the stage of the job is noted beside it.
        runs: the dtype and the results of each run.

    Raises:
        LoadError: such a result differs between two runs.
    """
    import numpy as np

    from mae_convert.runtime.loaders import LoadError

    arrays: dict[str, np.ndarray] = {}
    for dtype in job.dtypes:
        note_stage(job_path, f"running {dtype}")  # the first run includes loading the weights
        _, results = next(runs)
        for name, array in results.items():
            key = name if name in ("mask", "ids_restore") else f"{dtype}/{name}"
            if key in arrays and not np.array_equal(arrays[key], array):
                code = job.description.get("foreign", "the model")
                raise LoadError(
                    f"{name} differs between the runs of {code} in {' and '.join(job.dtypes)}",
                    hint="compute the mask from the masking noise only, not from random numbers",
                )
            arrays[key] = np.asarray(array, order="C")
    return arrays


@contextmanager
def _reading(job: "Job") -> Iterator[Sequence[Mapping[str, "Stored"]]]:
    """Yield the additional arguments of the runner.

    For Keras, the only argument is the stored arrays by name, which threads read in the meantime.
    The runners of other frameworks have no additional arguments.
    """
    if job.framework not in IN_KERAS:
        yield ()
        return
    from mae_convert.runtime.read_ahead import stored_arrays

    with stored_arrays(job) as stored:
        yield (stored,)


def _omitted(foreign: object, arrays: Iterable[str]) -> dict[str, list[str]]:
    """Return ``{"omits": NAMES}`` with the names of results that external code did not compute.

    The result is an empty dictionary if the model was not run by external code.

    Args:
        foreign: the external code that has run the model, or None.
        arrays: the names of the arrays that were computed.
    """
    if foreign is None:
        return {}
    from mae_convert.runtime.foreign_code import RESULTS

    names = {name.rpartition("/")[2] for name in arrays}
    return {"omits": [name for name in RESULTS if name not in names]}


def main() -> int:
    """Run the job in the file that the command line names, and return the exit status.

    An error is reported in the last line of standard error.
    """
    # The directory of this file has modules with common names; nothing must be imported from it.
    sys.path[:] = [
        entry for entry in sys.path if Path(entry or ".").resolve() != ROOT / "mae_convert/runtime"
    ]
    if sys.argv[1] == "--missing":
        print(json.dumps(missing(sys.argv[2:])))
        return 0
    if sys.argv[1] == "--serve":
        be_killed_with_parent()
        expose("mae_convert")
        from mae_convert.runtime.fork_server import serve

        importlib.import_module(sys.argv[2])
        serve()
        return 0
    end_with_parent()
    for package in ("mae_convert", "reference_models"):
        if package not in sys.modules:
            expose(package)
    from mae_convert.errors.shortage import shortage

    try:
        from mae_convert.errors import to_json
        from mae_convert.runtime.loaders import LoadError, UnreadError
    except Exception as error:
        _report(shortage(error) or str(error))
        return 2
    try:
        run(Path(sys.argv[1]))
    except LoadError as error:
        print(f"{REPORT}{to_json(error)}", file=sys.stderr)
        return 4 if isinstance(error, UnreadError) else 2
    except Exception as error:
        if reason := shortage(
            error
        ):  # may be the reason why importing an installed library has failed
            _report(reason)
            return 2
        if isinstance(error, ImportError):
            _report(str(error))
            return 3
        traceback.print_exc()
        words = next(iter(str(error).strip().splitlines()), "")
        _report(f"{type(error).__name__}: {words[:400]}")
        return 1
    return 0


def _report(sentence: str) -> None:
    """Print an error message as a JSON string in the last line of standard error."""
    print(f"{REPORT}{json.dumps(sentence)}", file=sys.stderr)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # the regular exit would take a second to deallocate frameworks and models
