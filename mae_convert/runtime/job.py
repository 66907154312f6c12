"""The job of a child process, which the child reads from a JSON file."""

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PIXELS_AND_NOISE = ("pixel_values", "noise")


def additional_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs other than pixels and noise; models take them as keyword arguments."""
    return {name: array for name, array in inputs.items() if name not in PIXELS_AND_NOISE}


@dataclass(frozen=True)
class StoredWeights:
    """The files with the tensors, and the prefixes to remove from the tensor names.

    The child process reads the files with the library of their format (``torch.load``, safetensors,
    NumPy, h5py, Keras), and then changes only names.
    """

    files: tuple[str, ...]
    """The files, in the order in which they are read; together they contain each tensor once. If
    the library opens a directory, the only element is the path of the directory."""

    format: str
    """The format of the files, such as "safetensors" or "pth"; see ``Container.kind``."""

    key: str = ""
    """Dotted keys that lead to the dictionary of the tensors in a PyTorch file; "" if the file
    itself is this dictionary, and for other formats."""

    unused: tuple[str, ...] = ()
    """Names of tensors that the model does not use."""

    prefixes: tuple[str, ...] = ()
    """Prefixes that are removed from the names, one after the other."""

    @property
    def path(self) -> str:
        """The file, the first of several files, or the directory."""
        return self.files[0]

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "StoredWeights":
        """Return the object that ``dataclasses.asdict`` converted to `plain`."""
        lists = ("files", "unused", "prefixes")
        return cls(**{**plain, **{name: tuple(plain[name]) for name in lists}})


@dataclass(frozen=True)
class ReadTensors:
    """Hashes of tensors that mae-convert's reader has read, to check a library's reader."""

    weights: StoredWeights
    """The files that contain the tensors."""

    tensors: Mapping[str, Any]
    """A dictionary from the name of each tensor in the files to a list: its dtype, its shape, and
    the SHA-256 of its little-endian bytes in C order."""


@dataclass(frozen=True)
class Job:
    """The run of one side of a comparison in a child process."""

    framework: str
    """One of ``FRAMEWORKS``, or "foreign" for external code."""

    device: str
    """"cpu" or "cuda"; float64 always runs on the CPU."""

    dtypes: tuple[str, ...]
    """The dtype of each run, in order."""

    task: str
    """One of "pretrain", "encoder" or "classify"."""

    config: Mapping[str, Any]
    """The fields of the model's configuration."""

    model: str
    """The import path of the model's class, in the form that `class_named` takes; "" if the
    runner determines the class."""

    configuration: str
    """The import path of the configuration's class, in the form that `class_named` takes."""

    weights: StoredWeights
    """The files with the tensors."""

    loader: str
    """The loader, which maps the stored tensor names to the model's names (see ``loaders``)."""

    inputs: str
    """An .npz file with ``pixel_values`` (N, C, H, W), the masking ``noise`` (N, L), and additional
    inputs of the model."""

    output: str
    """The trace file to write."""

    taps: bool
    """Whether to record intermediate activations."""

    gradients: bool
    """Whether to record the gradient of the objective for every trainable parameter."""

    mode: str
    """How the model is run: "eager"; "compiled" (with torch.compile, tf.function or jax.jit); "xla"
    (with tf.function and XLA); or "train" (in training mode, with dropout 0)."""

    description: Mapping[str, Any]
    """Metadata that is copied into the trace."""

    confirmed: ReadTensors | None = None
    """Hashes of the stored tensors from which the tensors in `weights` were computed. With the
    hashes, the child checks that the library of the file format reads the same tensors. None if
    this is not checked; see `Staged.confirmed`."""

    step_outputs: str = ""
    """A safetensors file with float64 activations by name. Each activation is used as the input of
    the next step (such as a block) instead of the activation that the model computes. "" for an
    ordinary run."""

    foreign: Mapping[str, Any] | None = None
    """The result of `ForeignCode.plain` if external code runs the model, else None."""

    def save(self, path: Path) -> None:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "Job":
        """Read a job that ``save`` wrote."""
        return cls.from_plain(json.loads(path.read_text()))

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Job":
        """Return the job that ``dataclasses.asdict`` converted to `plain`."""
        confirmed = plain["confirmed"]
        if confirmed is not None:
            weights = StoredWeights.from_plain(confirmed["weights"])
            confirmed = ReadTensors(weights, confirmed["tensors"])
        return cls(
            **{
                **plain,
                "dtypes": tuple(plain["dtypes"]),
                "weights": StoredWeights.from_plain(plain["weights"]),
                "confirmed": confirmed,
            }
        )


def class_named(path: str) -> Any:
    """Return the class at an import path.

    Args:
        path: "module:Class", from the description of a family of models, never from a file.
    """
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def import_path_of(kind: type) -> str:
    """Return the import path of a class, "module:Class", which `class_named` takes."""
    return f"{kind.__module__}:{kind.__qualname__}"
