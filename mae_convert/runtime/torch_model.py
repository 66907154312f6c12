"""Create a PyTorch reference model from tensors read one by one, and access a model's tensors."""

import mmap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from mae_convert.errors import LayoutError, MissingRequirementError
from mae_convert.files.sequential import FilePosition, SequentialArray
from mae_convert.files.workers import reuse_freed_memory
from mae_convert.formats.dtypes import DTYPES
from mae_convert.formats.tensor import LazyTensor
from mae_convert.runtime.torch_runs import WithoutValues
from mae_convert.text import listed

READERS = 2
"""The number of threads that read tensors while the model is being created."""


def make(
    model_class: Any,
    config: Any,
    tensors: Sequence[LazyTensor],
    device: str | None,
    *,
    mapped: bool = False,
) -> Any:
    """Return a model in evaluation mode whose state dict consists of the specified tensors.

    The model is created on the meta device, and the tensors that are read become its parameters:
    memory never holds more than the model and pieces of a few tensors.

    Args:
        model_class: the class of the model.
        config: the configuration of the model.
        tensors: the tensors, with the names of the model's state dict.
        device: the device of the parameters; None for the CPU.
        mapped: whether a tensor that is stored unchanged in a file becomes a view of a private
            memory mapping of the file, instead of a copy. The values of such a tensor are also read
            once without the mapping, to check that they are finite.

    Raises:
        LayoutError: the names or shapes of the tensors differ from the model's state dict.
        MissingRequirementError: the device does not exist.
    """
    views = mapped_memory(tensors) if mapped and device in (None, "cpu") else {}
    reuse_freed_memory()
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="mae-convert")
    try:
        values = [pool.submit(mapped_or_read, tensor, device, views) for tensor in tensors]
        with WithoutValues():
            model = model_class(config)
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        check_same({tensor.name: tensor.shape for tensor in tensors}, shapes)
        state = {tensor.name: value.result() for tensor, value in zip(tensors, values, strict=True)}
    finally:
        pool.shutdown(cancel_futures=True)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def mapped_memory(tensors: Sequence[LazyTensor]) -> dict[str, tuple[mmap.mmap, int]]:
    """Return the memory mapping and the offset of each tensor that can be mapped, by tensor name.

    There is one private mapping for each file. If tensors share bytes of a file, only the first
    tensor is mapped, because training one mapped tensor would also change the other tensors.
    """
    positions = [(position, tensor) for tensor in tensors if (position := file_position(tensor))]
    mappings = {
        file: file.private_mapping() for file in {position.file for position, _ in positions}
    }
    views: dict[str, tuple[mmap.mmap, int]] = {}
    ends = dict.fromkeys(mappings, 0)
    for position, tensor in sorted(positions, key=lambda item: item[0].offset):
        mapping = mappings[position.file]
        if mapping is not None and position.offset >= ends[position.file]:
            views[tensor.name] = mapping, position.offset
            ends[position.file] = position.offset + tensor.nbytes
    return views


def file_position(tensor: LazyTensor) -> FilePosition | None:
    """Return the location of a tensor in a file, or None if the tensor cannot be mapped.

    A tensor can be mapped if it is not empty, its bytes are stored unchanged, and its offset is
    aligned for its dtype.
    """
    if not isinstance(tensor.load, SequentialArray) or not tensor.nbytes:
        return None
    position = tensor.load.stored_at(0, tensor.load.size)
    return None if position is None or position.offset % tensor.dtype.itemsize else position


def mapped_or_read(
    tensor: LazyTensor, device: str | None, views: Mapping[str, tuple[mmap.mmap, int]]
) -> torch.Tensor:
    """Return a tensor as a view of its mapping or, if it has none, in newly allocated memory.

    In both cases, all elements are read once to check them. For this check, a mapped tensor is read
    from the file and not from the mapping: if another program truncates the file, reading the file
    raises an error, but reading the mapping would kill the process.

    Args:
        tensor: the tensor.
        device: the device of newly allocated memory; None for the CPU.
        views: the memory mapping and the offset of each mapped tensor, by tensor name.
    """
    if tensor.name not in views:
        return read_tensor(tensor, device)
    tensor.read_through()
    mapping, offset = views[tensor.name]
    dtype, count = getattr(torch, str(tensor.dtype)), tensor.nbytes // tensor.dtype.itemsize
    return torch.frombuffer(mapping, dtype=dtype, count=count, offset=offset).view(tensor.shape)


def with_config(model: Any, config: Any) -> Any:
    """Return a model with another configuration, which shares the parameters of `model`.

    Raises:
        RuntimeError: with `config`, the parameters would have other names or shapes.
    """
    with WithoutValues():
        other = type(model)(config)
    other.load_state_dict(model.state_dict(), strict=True, assign=True)
    return other.eval()


def check_same(actual: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    """Raise LayoutError if the shapes of tensors, by name, differ from the expected shapes."""
    if actual != expected:
        different = sorted(
            name
            for name in actual.keys() | expected.keys()
            if actual.get(name) != expected.get(name)
        )
        raise LayoutError(
            f"these tensors differ from the model's tensors in name or shape: {listed(different)}"
        )


def read_tensor(tensor: LazyTensor, device: str | None) -> torch.Tensor:
    """Return a tensor in newly allocated memory on a device, or on the CPU if `device` is None.

    Raises:
        MissingRequirementError: the device does not exist.
    """
    read = torch.empty(tensor.shape, dtype=getattr(torch, str(tensor.dtype)), device="cpu")
    tensor.read_into(read.view(-1).view(torch.uint8).numpy().view(tensor.dtype))
    if device is None:
        return read
    try:
        return read.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise MissingRequirementError(
            f"this PyTorch cannot use the device {device!r} ({reason})", hint="choose another"
        ) from error


def tensors_of(model: torch.nn.Module) -> dict[str, LazyTensor]:
    """Return the tensors of a model's state dict by name; a tensor is copied when it is read.

    Raises:
        LayoutError: a tensor has a dtype that checkpoints cannot have.
    """
    return {name: lazy_tensor(name, value) for name, value in model.state_dict().items()}


def lazy_tensor(name: str, value: torch.Tensor) -> LazyTensor:
    """Return a PyTorch tensor as a `LazyTensor`, which is copied to the CPU when it is read.

    Raises:
        LayoutError: the tensor has a dtype that checkpoints cannot have.
    """
    kind = str(value.dtype).removeprefix("torch.")
    if kind not in DTYPES:
        raise LayoutError(
            f"{name} has dtype {kind}", hint=f"convert the model to one of {', '.join(DTYPES)}"
        )

    def load() -> np.ndarray:
        read = value.detach().cpu().contiguous()
        if kind == "bfloat16":  # which NumPy does not support itself
            return read.view(torch.uint16).numpy().view(DTYPES[kind])
        return read.numpy()

    return LazyTensor(name, tuple(value.shape), DTYPES[kind], load)
