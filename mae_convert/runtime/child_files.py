"""Prepare the files that a child process loads.

They are the checkpoint's own files if a library in the child process can read them; otherwise
mae-convert writes the tensors to a new file.

A child opens files by path. If another program replaced the checkpoint's files during a
verification, the child would read other files than this process, which has computed the hashes of
the files that it opened. Therefore the child gets links to these open files.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.files.byte_ranges import ByteFile
from mae_convert.formats import open_container, write_file
from mae_convert.formats.directory import is_read_beside
from mae_convert.formats.dtypes import DTYPES
from mae_convert.formats.registry import (
    DCP,
    KERAS_ARCHIVE,
    KERAS_H5,
    SAFETENSORS,
    SUFFIX_FORMATS,
    TF_H5,
)
from mae_convert.formats.tensor import LazyTensor, sha256
from mae_convert.runtime.job import ReadTensors, StoredWeights
from mae_convert.runtime.sides import (
    KERAS_BACKENDS,
    MODELS_OF,
    READ_DIRECTORIES,
    loader_for,
    named_loader,
)

# The format and suffix of the file to which a checkpoint is converted if a framework requires other
# tensor names. Without a suffix, it is a directory.
STAGED_AS = {
    "torch": (SAFETENSORS, ".safetensors"),
    "tensorflow": (KERAS_H5, ".weights.h5"),
    "jax": (KERAS_H5, ".weights.h5"),
    "transformers": (SAFETENSORS, ""),
    "timm": (SAFETENSORS, ""),
    "terratorch": (SAFETENSORS, ".safetensors"),
}
# The format and suffix of the file to which the tensors of an HDF5 file are written.
HDF5 = {
    TF_H5: (TF_H5, ".h5"),
    KERAS_H5: (KERAS_H5, ".weights.h5"),
    KERAS_ARCHIVE: (KERAS_H5, ".weights.h5"),
}
BY_TABLES = "mae-convert's mapping tables"
BY_OUR_READER = "mae-convert's own reader"


@dataclass(frozen=True)
class Staged:
    """The weights for a child process, and how they were prepared."""

    weights: StoredWeights
    """The files with the tensors, which the child reads."""

    loader: str
    """The name of the loader, which converts the stored tensor names to the model's names."""

    converted_by: str | None = None
    """The part of mae-convert that reads or converts the stored tensors, as text for reports; None
    for a native run, in which the library of the format reads the files of the checkpoint."""

    confirmed: ReadTensors | None = None
    """Hashes of the stored tensors from which the tensors in ``weights`` were computed. With the
    hashes, the child checks that the library of the file format reads the same values from the
    checkpoint as mae-convert's reader. None if ``weights`` contains no computed tensors, or if
    ``converted_by`` is not None."""


def stage(
    checkpoint: Checkpoint,
    framework: str,
    work: Path,
    *,
    as_stored: bool = True,
    unread: str | None = None,
) -> Staged:
    """Return the weights for a child process.

    If the tensors have the framework's own names, the library of the file format loads the files
    unchanged. If declared changes were applied, mae-convert writes the new tensors to a file, and
    the child uses the library to check that mae-convert has read the stored tensors correctly. If
    no library can read the files in the child process, mae-convert reads them and writes the
    tensors to a file under the same names. If the tensors have other names, the mapping tables
    convert them.

    Args:
        checkpoint: the checkpoint.
        framework: the framework that runs it.
        work: a directory for files that are created.
        as_stored: whether the tensors are unchanged tensors of the checkpoint; False after changes
            that a conversion declares, such as resampling.
        unread: why the library of the file format could not read the checkpoint's files in an
            earlier run; None if there was no earlier run.
    """
    loader = loader_for(checkpoint, framework) if unread is None else None
    if loader is not None and as_stored:
        return Staged(_stored(checkpoint, framework), loader)
    named = named_loader(checkpoint, framework)
    if named is None or framework in READ_DIRECTORIES:
        kind, suffix = STAGED_AS[framework]
        layout = checkpoint.family.model_layout(MODELS_OF.get(framework, framework))
        staged = work / f"model{suffix}"
        whole = replace(checkpoint, key_bias=True, also=())  # the loaders require key biases
        execute(
            plan_conversion(
                whole, staged, layout, dtype=_exact_dtype(checkpoint), purpose="compare"
            )
        )
        return Staged(StoredWeights((str(staged),), kind), layout, BY_TABLES)
    weights = _under_its_own_names(checkpoint, framework, named, work)
    if loader is not None:
        return Staged(weights, loader, confirmed=_reading(checkpoint))
    return Staged(weights, named, _why(checkpoint, framework, unread))


def stage_foreign(
    checkpoint: Checkpoint, layout: str | None, work: Path, unread: str | None = None
) -> Staged:
    """Return the weights for external code: the tensors with the names of a layout.

    Args:
        checkpoint: the checkpoint to run.
        layout: the layout that the code requires; None for the layout of the checkpoint.
        work: a directory for temporary files.
        unread: why the library of the file format could not read the checkpoint's files in an
            earlier run; None if there was no earlier run.

    Raises:
        MaeConvertError: the layout does not support the model.
    """
    family = checkpoint.family
    if layout is not None and family.layout(layout).name != checkpoint.layout.name:
        target = family.layout(layout)
        suffixes = [s for s, kind in SUFFIX_FORMATS.items() if kind in target.containers]
        staged = work / f"model{'' if target.weights_name else suffixes[0]}"
        execute(plan_conversion(replace(checkpoint, also=()), staged, layout, purpose="compare"))
        container = open_container(staged)
        return Staged(StoredWeights(tuple(map(str, container.files)), container.kind), layout,
                      BY_TABLES)  # fmt: skip
    if unread is None and checkpoint.container.kind != DCP:
        return Staged(_stored(checkpoint, ""), "")
    weights = _under_its_own_names(checkpoint, "torch", "", work)
    return Staged(weights, "", _why(checkpoint, "torch", unread))


def _stored(checkpoint: Checkpoint, framework: str) -> StoredWeights:
    """Return a description of the checkpoint's own files, for a process that reads them."""
    container = checkpoint.container
    if framework in READ_DIRECTORIES:
        return StoredWeights((str(checkpoint.path),), container.kind)
    stored = checkpoint.prefix.stored
    used = {stored[rule.external] for rule in checkpoint.rules}
    others = {**dict.fromkeys(stored.values()), **checkpoint.dropped}
    return StoredWeights(
        files=tuple(map(str, container.files[1:] or container.files)),  # an index precedes shards
        format=container.kind,
        key=container.wrapper or "",
        unused=tuple(name for name in others if name not in used),
        prefixes=(*checkpoint.prefix.removed, *_encoder_prefix(checkpoint)),
    )


def _encoder_prefix(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the prefix to remove from the names of the encoder's tensors.

    It is the prefix that pre-training models have before these names. The result is a tuple that
    contains the prefix; it is empty if no prefix must be removed.
    """
    prefix = checkpoint.family.encoder_prefixes.get(checkpoint.table.name)
    return (prefix,) if prefix and checkpoint.task == "encoder" else ()


def _reading(checkpoint: Checkpoint) -> ReadTensors:
    """Read the stored tensors with mae-convert's reader, and return their hashes."""
    stored = replace(_stored(checkpoint, ""), prefixes=())
    before = open_container(checkpoint.path, checkpoint.container.state_key)
    used = [tensor for name, tensor in before.tensors.items() if name not in stored.unused]
    digests = {t.name: [str(t.dtype), list(t.shape), sha256(t)] for t in used}
    return ReadTensors(stored, digests)


def _why(checkpoint: Checkpoint, framework: str, unread: str | None) -> str:
    """Return a phrase for reports that states why mae-convert's own reader was used.

    Args:
        checkpoint: the checkpoint.
        framework: the framework that runs it.
        unread: the error of the library that could not read the files; None if no library tried.
    """
    kind = checkpoint.container.kind
    if unread is None and kind == DCP:
        unread = "PyTorch would run the pickle of a distributed checkpoint"
    if unread is None:
        unread = f"no library in a {framework} process reads {kind} files"
    return f"{BY_OUR_READER}, because {unread}"


def _under_its_own_names(
    checkpoint: Checkpoint, framework: str, loader: str, work: Path
) -> StoredWeights:
    """Read tensors with mae-convert's reader, and write them to one file with unchanged names.

    Args:
        checkpoint: the checkpoint.
        framework: the framework that runs it.
        loader: the loader that will read the file; "" for external code.
        work: the directory for the file.
    """
    kind, suffix = SAFETENSORS, ".safetensors"
    if framework in KERAS_BACKENDS:
        kind, suffix = HDF5.get(checkpoint.container.kind, (kind, suffix))
    if loader == "keras":
        kind, suffix = HDF5[KERAS_H5]
    staged = work / f"weights{suffix}"
    tensors: Iterable[LazyTensor] = _used(checkpoint)
    write_file(staged, kind, tensors if framework == "torch" else map(_widened, tensors))
    return StoredWeights((str(staged),), kind, prefixes=_encoder_prefix(checkpoint))


def _used(checkpoint: Checkpoint) -> list[LazyTensor]:
    """Return the tensors that the model uses, with their names in the file."""
    used = {rule.external for rule in checkpoint.rules}
    return [tensor for name, tensor in checkpoint.container.tensors.items() if name in used]


def _widened(tensor: LazyTensor) -> LazyTensor:
    """Return a bfloat16 tensor as float32, which has the same values; other tensors unchanged.

    HDF5 and NumPy do not support bfloat16.
    """
    if tensor.dtype != DTYPES["bfloat16"]:
        return tensor
    wide = DTYPES["float32"]
    return replace(tensor, dtype=wide, load=lambda: tensor.load().astype(wide))


def _exact_dtype(checkpoint: Checkpoint) -> str | None:
    """Return a dtype that NumPy has and that represents all values of a checkpoint exactly.

    The result is None if all tensors have the same dtype and this dtype is not bfloat16.
    """
    dtypes = {str(tensor.dtype) for tensor in checkpoint.tensors.values()}
    if len(dtypes) == 1 and "bfloat16" not in dtypes:
        return None
    return "float64" if "float64" in dtypes else "float32"


def as_encoder(checkpoint: Checkpoint) -> Checkpoint:
    """Return the encoder of a pre-training model, for a library that has no decoder."""
    tensors = {n: t for n, t in checkpoint.tensors.items() if not n.startswith("decoder.")}
    configuration = checkpoint.configuration.for_task("encoder")
    return replace(checkpoint, task="encoder", tensors=tensors, configuration=configuration)


def linked_to_open_files(
    staged: Staged, checkpoint: Checkpoint, work: Path
) -> tuple[Staged, Sequence[ByteFile]]:
    """Return the weights with their paths replaced by links to open files, and the open files.

    Args:
        staged: the weights: files of the checkpoint, its directory, or files in ``work``.
        checkpoint: the checkpoint.
        work: a directory for links, which is removed after the run.

    Returns:
        The weights for the child, and the open files, which must not change during the run.
    """
    container = checkpoint.container
    files = {file.path.name: file for file in (*container.opened, *container.beside)}
    folder = work / "files"
    folder.mkdir()
    read = [staged.weights, *([staged.confirmed.weights] if staged.confirmed else [])]
    others = {path.name: path for weights in read for path in _paths(weights, work)}
    files |= {name: ByteFile(path) for name, path in others.items() if name not in files}
    for name, file in files.items():
        (folder / name).symlink_to(file.pinned.absolute())
    confirmed = staged.confirmed
    if confirmed is not None:
        confirmed = replace(confirmed, weights=_linked(confirmed.weights, work))
    weights = _linked(staged.weights, work)
    return replace(staged, weights=weights, confirmed=confirmed), tuple(files.values())


def _paths(weights: StoredWeights, work: Path) -> list[Path]:
    """Return the checkpoint's files that a child reads, without files written for it in `work`."""
    paths = [path for path in map(Path, weights.files) if not path.is_relative_to(work)]
    if paths and paths[0].is_dir():
        inside = paths[0].iterdir()
        return [path for path in inside if is_read_beside(path.name) and path.is_file()]
    return paths


def _linked(weights: StoredWeights, work: Path) -> StoredWeights:
    """Link the files of the weights in `work`, and return the weights with the paths of the links.

    Weights whose files are all in `work` are returned unchanged.
    """
    paths = [Path(file) for file in weights.files]
    folder = work / "files"
    if all(path.is_relative_to(work) for path in paths):
        return weights
    if paths[0].is_dir():
        return replace(weights, files=(str(folder),))
    return replace(weights, files=tuple(str(folder / path.name) for path in paths))
