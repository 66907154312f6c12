"""Save every kind of tensor in every format that the installed PyTorch version can write.

python tests/helpers/torch_formats.py FOLDER

It runs with PyTorch 1.13 and later; features that a version does not have are left out.
"""

import collections
import io
import sys
from pathlib import Path

import torch

DTYPES = (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32",
    "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool", "complex64", "complex128",
)  # fmt: skip


def dtypes() -> list[torch.dtype]:
    """Return the dtypes that this version can save; 2.1 has float8 but cannot save it."""
    dtypes_of_torch = [getattr(torch, name) for name in DTYPES if hasattr(torch, name)]
    return [dtype for dtype in dtypes_of_torch if can_save(torch.zeros(1).to(dtype))]


def can_save(tensor: torch.Tensor) -> bool:
    try:
        torch.save(tensor, io.BytesIO())
    except KeyError:
        return False
    return True


def of_every_dtype() -> dict[str, torch.Tensor]:
    tensors = {}
    for dtype in dtypes():
        tensors[f"{dtype} matrix"] = torch.arange(12).reshape(3, 4).to(dtype)
        tensors[f"{dtype} scalar"] = torch.tensor(1).to(dtype)
        tensors[f"{dtype} empty"] = torch.zeros(0, 3).to(dtype)
    return tensors


def of_every_view() -> dict[str, torch.Tensor]:
    base = torch.arange(24.0).reshape(4, 6)
    cube = torch.arange(60.0).reshape(3, 4, 5)
    return {
        "base": base,
        "transposed": base.T,
        "column": base[:, 2],
        "every second": base[1::2, ::3],
        "expanded": base[0].expand(5, 6),
        "expanded scalar": torch.tensor(2.0).expand(3, 2),
        "parameter": torch.nn.Parameter(base),
        "overlapping": base.as_strided((3, 3), (1, 1), 5),
        "permuted": cube.permute(2, 0, 1),
        "last element": cube[2, 3, 4],
        "empty of a full storage": base[:, 3:3],
        "channels last": torch.randn(1, 4, 3, 4).to(memory_format=torch.channels_last),
        "one of one": torch.ones(1, 1, 1).transpose(0, 2),
    }


def of_special_values() -> dict[str, torch.Tensor]:
    bits = torch.tensor([0x7FC00001, 0x7F800000, -0x800000, 1, -0x80000000], dtype=torch.int32)
    return {"NaN with a payload, infinities, the least, minus zero": bits.view(torch.float32)}


def states() -> dict[str, dict]:
    """Return the state dicts and checkpoints to save, by name."""
    everything = {**of_every_dtype(), **of_every_view(), **of_special_values()}
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) + number)
    return {
        "dict": everything,
        "ordered": collections.OrderedDict(everything),
        "wrapped": {"model": everything, "epoch": 3, "args": {"lr": 0.1}},
        "module": layer.state_dict(),
    }


def save_all(folder: Path) -> dict[Path, dict]:
    """Save each state in each format; return the states by their files."""
    made = {}
    for name, state in states().items():
        for kind, zipped in (("zip", True), ("legacy", False)):
            for protocol in (2, 4) if name == "wrapped" else (2,):
                path = folder / f"{torch.__version__.split('+')[0]}-{name}-{kind}-{protocol}.pth"
                torch.save(
                    state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped
                )
                made[path] = state
    return made


if __name__ == "__main__":
    print(*save_all(Path(sys.argv[1])), sep="\n")
