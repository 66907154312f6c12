"""Run user-specified code for a job, in PyTorch or Keras."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mae_convert.runtime.foreign_code import factory_argument, import_code
from mae_convert.runtime.job import Job


def versions() -> dict[str, str]:
    """Return the versions of the libraries that the code has imported."""
    packages = ("torch", "tensorflow", "jax", "keras", "timm", "numpy")
    versions_of = {name: getattr(sys.modules.get(name), "__version__", None) for name in packages}
    return {name: version for name, version in versions_of.items() if version}


def settings() -> dict[str, Any]:
    """Return PyTorch's settings that a result depends on; empty if PyTorch was not imported."""
    if "torch" not in sys.modules:
        return {}
    from mae_convert.runtime.torch_runs import settings as torch_settings

    return torch_settings()


def runs(job: Job, inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield each dtype and its results, NumPy arrays by name.

    Raises:
        LoadError: the code failed or is invalid.
    """
    assert job.foreign is not None
    code = import_code(job.foreign, job.task)
    with code.running():
        model = code.factory(factory_argument(job))
    if "keras" in {kind.__module__.partition(".")[0] for kind in type(model).__mro__}:
        from mae_convert.runtime import foreign_keras

        yield from foreign_keras.runs(code, job, inputs)  # creates a model for each dtype
        return
    from mae_convert.runtime import foreign_torch

    yield from foreign_torch.runs(code, job, inputs, model)
