"""Read a PyTorch file with mae-convert and with PyTorch, to compare the results."""

import warnings
from pathlib import Path

import torch

from mae_convert.errors import CheckpointError
from mae_convert.formats import open_container

Bits = dict[str, tuple[str, tuple[int, ...], bytes]]


def by_mae_convert(path: Path) -> Bits | None:
    """Return dtype, shape and bytes of each tensor; None if mae-convert refuses the file."""
    try:
        tensors = open_container(path).tensors
        return {
            name: (str(t.dtype), t.shape, b"".join(p.tobytes() for p in t.pieces()))
            for name, t in tensors.items()
        }
    except CheckpointError:
        return None


def by_pytorch(path: Path) -> Bits | None:
    """Return the same as `by_mae_convert`, read by `torch.load`; None if it refuses the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = torch.load(path, weights_only=True, map_location="cpu")
            value = value.get("model", value)
            return {n: bits_of(t) for n, t in value.items() if isinstance(t, torch.Tensor)}
    except Exception:  # PyTorch's parsers raise many types
        return None


def bits_of(tensor: torch.Tensor) -> tuple[str, tuple[int, ...], bytes]:
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), data
