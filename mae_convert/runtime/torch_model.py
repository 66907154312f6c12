"""Create a PyTorch reference model from tensors one by one, and return its tensors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mae_convert.errors import LayoutError, MissingRequirementError
from mae_convert.formats.dtypes import DTYPES
from mae_convert.formats.tensor import LazyTensor, as_bytes
from mae_convert.layouts.table import listed
from mae_convert.runtime.torch_runs import WithoutValues


def make(model_class: Any, config: Any, tensors: Sequence[LazyTensor], device: str | None) -> Any:
    """Return a model in evaluation mode with exactly these tensors.

    The model is created without memory, and each tensor is read into its final memory: there is
    never more in memory than the model and a piece of one tensor.

    Raises:
        LayoutError: the tensors are not the model's.
        MissingRequirementError: the device does not exist.
    """
    with WithoutValues():
        model = model_class(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    check_same({tensor.name: tensor.shape for tensor in tensors}, shapes)
    state = {tensor.name: read_tensor(tensor, device) for tensor in tensors}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def with_config(model: Any, config: Any) -> Any:
    """Return a model of another configuration that shares the parameters of the first.

    Raises:
        RuntimeError: the parameters have other names or shapes.
    """
    with WithoutValues():
        other = type(model)(config)
    other.load_state_dict(model.state_dict(), strict=True, assign=True)
    return other.eval()


def check_same(given: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    """Raise LayoutError if names or shapes of tensors differ from the expected ones."""
    if given != wanted:
        different = sorted(
            name for name in given.keys() | wanted.keys() if given.get(name) != wanted.get(name)
        )
        raise LayoutError(f"the model and the tensors differ in {listed(different)}")


def read_tensor(tensor: LazyTensor, device: str | None) -> torch.Tensor:
    """Return a tensor in newly allocated memory, on a device."""
    read = torch.empty(tensor.shape, dtype=getattr(torch, str(tensor.dtype)), device="cpu")
    place, filled = read.view(-1).view(torch.uint8).numpy(), 0
    for piece in tensor.pieces():
        place[filled : filled + piece.nbytes] = as_bytes(piece)
        filled += piece.nbytes
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
    """Return a model's tensors by their names in its state dict; copied when read.

    Raises:
        LayoutError: a tensor has a dtype that checkpoints cannot have.
    """
    return {name: lazy_tensor(name, value) for name, value in model.state_dict().items()}


def lazy_tensor(name: str, value: torch.Tensor) -> LazyTensor:
    """Return a PyTorch tensor that is copied to the CPU when it is read.

    Raises:
        LayoutError: it has a dtype that checkpoints cannot have.
    """
    kind = str(value.dtype).removeprefix("torch.")
    if kind not in DTYPES:
        raise LayoutError(f"{name} is of {kind}", hint=f"convert the model to {', '.join(DTYPES)}")

    def load() -> np.ndarray:
        read = value.detach().cpu().contiguous()
        if kind == "bfloat16":  # which NumPy does not support itself
            return read.view(torch.uint16).numpy().view(DTYPES[kind])
        return read.numpy()

    return LazyTensor(name, tuple(value.shape), DTYPES[kind], load)
