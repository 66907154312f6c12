"""What a child process is given to load: the checkpoint's own file wherever that is possible."""

from dataclasses import replace
from pathlib import Path

from mae_convert.checkpoint import Checkpoint
from mae_convert.containers import write_file
from mae_convert.containers.tensor import LazyTensor
from mae_convert.convert import execute
from mae_convert.planning import plan_conversion
from mae_convert.rounding import DTYPES
from mae_convert.verify.sides import THIRD_PARTIES, loader_for

# The layout that a checkpoint is converted to where its own names are not the framework's.
STAGED_AS = {
    "torch": ("facebook", ".pth"),
    "tensorflow": ("keras", ".weights.h5"),
    "jax": ("keras", ".weights.h5"),
    "transformers": ("transformers", ""),
    "timm": ("timm", ""),
}
# What tensors that were in a kind of HDF5 file are put into, and its suffix.
HDF5 = {
    "tf_h5": ("tf_h5", ".h5"),
    "keras_h5": ("keras_h5", ".weights.h5"),
    "keras_archive": ("keras_h5", ".weights.h5"),
}


def stage(
    checkpoint: Checkpoint, framework: str, work: Path, *, as_stored: bool = True
) -> tuple[Path, str, bool]:
    """Return the file for the child, the loader that reads it, and whether no table was used.

    A file whose names are the framework's own is given as it is, so that no code of ours stands
    between the bytes and the model. Where the names are so, but have a prefix, or the tensors are
    spread over several files, or are not all used, the tensors are put into one file under these
    names, without a table. Others are converted by the tables.

    Args:
        checkpoint: what is to be run.
        framework: who runs it.
        work: a directory for files that are made.
        as_stored: the tensors are those of the checkpoint's files; False after declared steps.
    """
    loader = loader_for(checkpoint, framework)
    if framework in THIRD_PARTIES and loader is not None and as_stored:
        return checkpoint.path, loader, True
    if framework not in THIRD_PARTIES and loader is not None:
        path = checkpoint.container.weights_file
        if not (as_stored and _is_plain(checkpoint) and _is_readable(checkpoint, framework)):
            path = _under_its_own_names(checkpoint, framework, work)
        return path, loader, True
    layout, suffix = STAGED_AS[framework]
    staged = work / f"model{suffix}"
    execute(plan_conversion(checkpoint, staged, layout, dtype=_exact_dtype(checkpoint)))
    return staged, layout, False


def _is_readable(checkpoint: Checkpoint, framework: str) -> bool:
    """Only PyTorch reads its own container; the other frameworks are not to import it."""
    return framework == "torch" or checkpoint.container.kind != "pth"


def _under_its_own_names(checkpoint: Checkpoint, framework: str, work: Path) -> Path:
    kind, suffix = HDF5.get(checkpoint.container.kind, ("safetensors", ".safetensors"))
    staged = work / f"weights{suffix}"
    tensors = _used(checkpoint)
    write_file(staged, kind, tensors if framework == "torch" else map(_widened, tensors))
    return staged


def _is_plain(checkpoint: Checkpoint) -> bool:
    """Return whether a loader finds the tensors by itself: one file, names and key as they are."""
    container = checkpoint.container
    return (
        len(container.files) == 1
        and container.state_key is None
        and "." not in (container.wrapper or "")
        and not checkpoint.prefix.removed
        and len(_used(checkpoint)) == len(container.tensors)
    )


def _used(checkpoint: Checkpoint) -> list[LazyTensor]:
    """Return the tensors by their own names, without those that MAE does not use."""
    used = {rule.external for rule in checkpoint.rules}
    return [tensor for name, tensor in checkpoint.container.tensors.items() if name in used]


def _widened(tensor: LazyTensor) -> LazyTensor:
    """Return a tensor as HDF5 and NumPy can hold it: float32 has every value of bfloat16."""
    if tensor.dtype != DTYPES["bfloat16"]:
        return tensor
    wide = DTYPES["float32"]
    return replace(tensor, dtype=wide, load=lambda: tensor.load().astype(wide))


def _exact_dtype(checkpoint: Checkpoint) -> str | None:
    """Return a dtype that holds all values as they are, where one for all tensors is needed."""
    dtypes = {str(tensor.dtype) for tensor in checkpoint.tensors.values()}
    if len(dtypes) == 1 and "bfloat16" not in dtypes:
        return None
    return "float64" if "float64" in dtypes else "float32"


def as_encoder(checkpoint: Checkpoint) -> Checkpoint:
    """Return the encoder of a pre-training model, for a library that has no decoder."""
    tensors = {n: t for n, t in checkpoint.tensors.items() if not n.startswith("decoder.")}
    return replace(checkpoint, task="encoder", tensors=tensors)
