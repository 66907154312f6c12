"""Load a checkpoint as a model."""

import gc
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mae_convert.checkpoint.checkpoint import Checkpoint, without_effect
from mae_convert.convert.changes import Geometry, with_new_head
from mae_convert.convert.plan import Plan, plan_conversion
from mae_convert.errors import ConfigurationError, MissingRequirementError, as_argument
from mae_convert.families.checkpoint_options import (
    OF_FIELDS,
    Flags,
    flags_of_arguments,
    name_of_dtype,
    size_of_image,
)
from mae_convert.formats.dtypes import DTYPES
from mae_convert.formats.registry import SAFETENSORS
from mae_convert.runtime.job import class_named
from mae_convert.runtime.metadata import ModelMetadata
from mae_convert.runtime.sides import MODELS_OF
from mae_convert.sources import open_source, parse_source

# The file name of the planned conversion, by framework. No file is written.
NAMED_AS = {
    "torch": Path("model.pth"),
    "tensorflow": Path("model.weights.h5"),
    "jax": Path("model.weights.h5"),
}
# File formats whose files are mapped into memory by default, as in the formats' own libraries.
MAPPED = (SAFETENSORS,)
NEEDED = {"torch": ("torch",), "tensorflow": ("tensorflow", "keras"), "jax": ("jax", "keras")}
# Keras's policies with different dtypes for computation and variables.
MIXED = ("mixed_float16", "mixed_bfloat16")


def load_model(  # noqa: PLR0913 (named arguments of the public interface)
    source: str | Path | Checkpoint,
    framework: str = "torch",
    task: str | None = None,
    dtype: Any = None,
    device: str | None = None,
    *,
    image_size: int | str | tuple[int, int] | None = None,
    num_frames: int | None = None,
    num_labels: int | None = None,
    state_key: str | None = None,
    mmap: bool | None = None,
    **specified: Any,
) -> Any:
    """Return a reference model with the weights of a checkpoint; no file is written.

    The tensors are converted by the same plan, with the same checks, as in a conversion to the
    layout ``facebook`` or ``keras``. Memory never holds more than the model and a few tensors.
    Python's garbage collector is paused while the framework is imported and the model is created.

    Args:
        source: a file or directory, ``hf://owner/name[@revision][/file]``, the name of an official
            checkpoint, or an open checkpoint.
        framework: "torch", or for the Keras 3 model "tensorflow" or "jax". If Keras is not imported
            yet, the environment variable KERAS_BACKEND is set, which Keras reads on import.
        task: "pretrain", "encoder" or "classify"; default: the task of the checkpoint.
        dtype: "float64", "float32", "float16" or "bfloat16", or the corresponding dtype object of
            PyTorch, NumPy or TensorFlow; in Keras also "mixed_float16" or "mixed_bfloat16".
            Default: the dtype of the checkpoint.
        device: the device of the model: in PyTorch any; in Keras "cpu" or "cuda". Default: the CPU
            in PyTorch, and Keras's default in Keras.
        image_size: resample the position embeddings for images of this size: one number, or
            (height, width).
        num_frames: compute the fixed position embeddings for videos of this many frames.
        num_labels: add a new classifier head of zeros to the encoder, for fine-tuning.
        state_key: the key of the weights in a PyTorch checkpoint, if they cannot be recognised.
        mmap: in PyTorch on the CPU, whether parameters that are stored unchanged in the file become
            views of a private memory mapping of the file instead of copies; see below. Default:
            True for safetensors, False for other formats, as in these formats' own libraries.
        specified: fields that the checkpoint does not contain: ``num_heads``,
            ``decoder_num_heads``, ``layer_norm_eps``, ``decoder_layer_norm_eps``, ``global_pool``,
            ``norm_pix_loss``, ``mask_ratio``, ``source_image_size``, ``source_num_frames``; the
            names of fields in ``config.json``, such as ``num_attention_heads``, are accepted too.

    Returns:
        The model, in evaluation mode. Further metadata of the checkpoint is in its attribute
        ``metadata``.

    With ``mmap``, training does not change the file, and the file may be removed or replaced by
    another file while the model exists; every function of this package that writes a file replaces
    it. But the file must not be changed in place, for example by ``torch.save`` to its path:
    parameters that were not modified yet would change too, and if the file becomes shorter, reading
    these parameters ends the process (SIGBUS). Therefore, with ``mmap=True``, save to another path,
    or use `save_model`. Pass ``mmap=False`` for files on a network file system, which another
    computer may change.

    Raises:
        MaeConvertError: the checkpoint cannot be read, or cannot be loaded as the requested model.
        MissingRequirementError: the framework or the device is not available.
        TypeError: an argument is unknown, or a field is specified for an open checkpoint.
    """
    dtype, size = _dtype_name(framework, dtype), size_of_image(image_size)
    flags = flags_of_arguments(specified, "load_model")
    if isinstance(source, Checkpoint):
        if flags.given():
            name = OF_FIELDS[min(flags.given())].name
            raise TypeError(f"the checkpoint is open already; specify {name} where it is opened")
        checkpoint = source
    else:
        part = task if num_labels is None else None
        named = parse_source(str(source))
        checkpoint = open_source(named, flags, state_key=state_key, task=part, incomplete=True)
        warn_of_no_effect(flags, checkpoint)
    if num_labels is not None:
        checkpoint = with_new_head(checkpoint, num_labels, task)
    request = ModelRequest(framework, task, dtype, device, size, num_frames, mmap=mmap)
    return make_model(checkpoint, request)


def warn_of_no_effect(flags: Flags, *checkpoints: Checkpoint) -> None:
    """Issue a warning for each option that has no effect on the models of these checkpoints.

    The warning refers to the code that called the public function, such as `load_model`.
    """
    tasks = " or ".join(dict.fromkeys(checkpoint.task for checkpoint in checkpoints))
    for option in without_effect(flags, *checkpoints):
        words = f"{as_argument(option)} has no effect on a model for the task {tasks}"
        warnings.warn(words, stacklevel=3)


@dataclass(frozen=True)
class ModelRequest:
    """The requested model: the arguments of `load_model`."""

    framework: str = "torch"
    task: str | None = None
    dtype: Any = None
    device: str | None = None
    image_size: tuple[int, int] | None = None
    num_frames: int | None = None
    model_class: type | None = None
    mmap: bool | None = False
    """See `load_model`. Commands do not map files: if a mapped file changed, the command would end
    without a message."""


def make_model(checkpoint: Checkpoint, request: ModelRequest) -> Any:
    """Return a model with the weights of an open checkpoint; see `load_model`.

    Args:
        checkpoint: the checkpoint.
        request: the requested model; ``model_class``, if it is not None, is a subclass of the
            reference model and replaces it.
    """
    request = replace(request, dtype=_dtype_name(request.framework, request.dtype))
    target = NAMED_AS[request.framework]
    layout = checkpoint.family.model_layout(MODELS_OF[request.framework])
    in_keras = request.framework != "torch"
    variable_dtype = "float32" if request.dtype in MIXED else request.dtype
    if variable_dtype is None and in_keras:
        variable_dtype = one_dtype(checkpoint)
    geometry = Geometry(request.image_size, num_frames=request.num_frames)
    # The reference models have a key bias; it is zeros if the checkpoint has none.
    whole = replace(checkpoint, key_bias=True)
    plan = plan_conversion(
        whole,
        target,
        layout,
        task=request.task,
        dtype=variable_dtype,
        geometry=geometry,
        purpose="load",
    )
    with _collector_paused():
        require(request.framework)
        model = _make(plan, replace(request, dtype=request.dtype or variable_dtype))
    for file in checkpoint.container.opened:
        file.require_unchanged()
    model.metadata = replace(ModelMetadata.of(plan), key_bias=checkpoint.key_bias)
    return model


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the garbage collector, unless it is disabled anyway.

    Importing a framework and creating a model create up to a million objects that are still in use,
    and the collector would examine all of them several times.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        # Move all objects to the oldest generation, unless the caller has frozen objects. Otherwise
        # the next collection of the youngest generation would examine all of them.
        if not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()
        gc.enable()


def _dtype_name(framework: str, dtype: Any) -> str | None:
    """Return the name of a requested dtype, or None for None.

    Raises:
        ConfigurationError: the framework is unknown, or does not support the dtype.
    """
    if framework not in NAMED_AS:
        raise ConfigurationError(
            f"unknown framework {framework!r}", hint=f"choose {', '.join(NAMED_AS)}"
        )
    return name_of_dtype(dtype, (*DTYPES, *(MIXED if framework != "torch" else ())))


def _make(plan: Plan, request: ModelRequest) -> Any:
    config = plan.configuration.model
    class_path = plan.source.family.models[MODELS_OF[request.framework]][plan.task]
    chosen = request.model_class or class_named(class_path)
    if request.framework == "torch":
        from mae_convert.runtime import torch_model

        kind = plan.source.container.kind
        mapped = kind in MAPPED if request.mmap is None else request.mmap
        return torch_model.make(chosen, config, plan.tensors, request.device, mapped=mapped)
    from mae_convert.runtime import keras_model

    return keras_model.make(chosen, config, plan.tensors, str(request.dtype), request.device)


def one_dtype(checkpoint: Checkpoint) -> str:
    """Return a single dtype that represents all values of a checkpoint, for a Keras model."""
    dtypes = {str(tensor.dtype) for tensor in checkpoint.tensors.values()}
    if len(dtypes) == 1:
        return dtypes.pop()
    return "float64" if "float64" in dtypes else "float32"


def require(framework: str) -> None:
    """Check that a framework can be imported, and that Keras runs on it.

    Raises:
        MissingRequirementError: the framework is not installed, or Keras runs on another backend.
    """
    for module in NEEDED[framework]:
        if importlib.util.find_spec(module) is None:
            raise MissingRequirementError(
                f"{module} is not installed here", hint=f"pip install 'mae-convert[{framework}]'"
            )
    if framework == "torch":
        return
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = framework
    import keras

    if keras.backend.backend() != framework:
        raise MissingRequirementError(
            f"Keras already runs on {keras.backend.backend()} in this process",
            hint=f"set the environment variable KERAS_BACKEND={framework} before Keras is imported",
        )
