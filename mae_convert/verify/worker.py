"""The child process of a trace: one framework, one checkpoint, one file of results.

It is started as ``python worker.py JOB.json``, possibly by another interpreter in an environment
that has NumPy, safetensors and the framework and nothing of ours, so the packages that it needs are
made importable from the folders beside this file, and no others are.
"""

import gc
import importlib
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def expose(package: str) -> ModuleType:
    """Make one package of this project importable without putting its surroundings on the path."""
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


TF_CLASSES = ("transformers", "transformers-tf")
RUNNERS = {
    "torch": "run_pytorch",
    "tensorflow": "run_keras",
    "jax": "run_keras",
    "transformers": "run_transformers",
    "timm": "run_timm",
}


def import_runner(framework: str, loader: str) -> ModuleType:
    """Import the one module that runs a framework's model, and with it that framework."""
    if framework in ("tensorflow", "jax"):
        os.environ["KERAS_BACKEND"] = framework
    # A framework's import makes a million objects that stay: looking through them for garbage,
    # then and later, is in vain.
    gc.disable()
    # transformers had classes for two frameworks, which are not to meet in one process.
    name = "run_transformers_tf" if (framework, loader) == TF_CLASSES else RUNNERS[framework]
    runner = importlib.import_module(f"mae_convert.verify.{name}")
    gc.freeze()
    gc.enable()
    return runner


def run(job_path: Path) -> None:
    """Run the job and write its trace."""
    from mae_convert.allocation import keep_what_is_freed
    from mae_convert.verify.job import Job

    keep_what_is_freed()
    job = Job.load(job_path)
    if job.framework == "torch" and hasattr(os, "nice"):
        os.nice(19)  # PyTorch is done first: the other side, which everybody waits for, goes before
    runner = import_runner(job.framework, job.loader)
    import numpy as np
    from safetensors.numpy import save_file

    with np.load(job.inputs) as archive:
        inputs = dict(archive)
    arrays: dict[str, np.ndarray] = {}
    for dtype, results in runner.runs(job, inputs):
        for name, array in results.items():
            # What does not depend on the dtype is kept once; that it does not is checked.
            key = name if name in ("mask", "ids_restore") else f"{dtype}/{name}"
            if key in arrays and not np.array_equal(arrays[key], array):
                raise RuntimeError(f"{name} differs between the runs")
            arrays[key] = np.asarray(array, order="C")
    description = {
        **job.description,
        "versions": runner.versions(),
        "settings": runner.settings(),
    }
    save_file(arrays, job.output, metadata={"trace": json.dumps(description)})


def main() -> int:
    """Run the job named on the command line; a failure is one line on standard error."""
    # Our folder holds modules whose names others may want; nothing is to be found there.
    sys.path[:] = [
        entry for entry in sys.path if Path(entry or ".").resolve() != ROOT / "mae_convert/verify"
    ]
    for package in ("mae_convert", "reference_models"):
        if package not in sys.modules:
            expose(package)
    from mae_convert.verify.loaders import LoadError

    try:
        run(Path(sys.argv[1]))
    except LoadError as error:
        print(f"worker: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"worker: {error}", file=sys.stderr)
        return 3
    except Exception as error:
        traceback.print_exc()
        words = next(iter(str(error).strip().splitlines()), "")
        print(f"worker: {type(error).__name__}: {words[:400]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # taking frameworks and models apart takes a second that somebody waits for
