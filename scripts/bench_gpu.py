"""Time PyTorch models of this project and of other libraries on a GPU, in turn, in one process.

The table has rows for loading a checkpoint, and for forward passes and training steps, each in
float32 and with autocast to bfloat16, eager and compiled.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench_conversions import converted
from bench_measure import by_turns, median, ratio

MODELS = {
    "transformers": ("encoder", "full", "classifier"),
    "timm": ("classifier",),
}
DTYPES = ("float32", "bfloat16")
FORWARD = ("eager", "compiled")
TRAINING = ("training", "training, compiled")
UNCOUNTED = 3
"""The number of initial calls that are not timed: they compile the model and allocate memory."""

CALLS = 10
"""The number of calls whose mean time is one measurement."""


def rows(
    device: str, sizes: list[str], batches: list[int], pairs: int, folder: Path, against: list[str]
) -> Iterator[dict[str, object]]:
    """Yield a row of the table for each comparison with a library.

    Args:
        device: the device of PyTorch, such as "cuda".
        sizes: the sizes of the ViT.
        batches: the batch sizes.
        pairs: how often each of the two compared models is measured.
        folder: the directory of the checkpoints.
        against: the libraries to compare with.
    """
    for size in sizes:
        yield _loading(device, size, pairs, folder)
        for library in against:
            for part in MODELS[library]:
                for dtype in DTYPES:
                    yield from _calls(device, size, library, part, dtype, batches, pairs)


def _loading(device: str, size: str, pairs: int, folder: Path) -> dict[str, object]:
    """Compare the time of `load_model` with the time of `safetensors.torch.load_file`.

    `load_file` creates no model. Each function is timed `pairs` times.
    """
    from safetensors.torch import load_file

    from mae_convert import load_model

    directory = converted(size, folder, "transformers")
    ways = {
        "ours": partial(load_model, directory, device=device),
        "theirs": partial(load_file, directory / "model.safetensors", device=device),
    }
    for way in ways.values():
        way()
    times = by_turns({name: partial(_seconds, way, device, 1) for name, way in ways.items()}, pairs)
    return _row("load_file of safetensors", "loading", size, "float32", "", times, {})


def _calls(
    device: str, size: str, library: str, part: str, dtype: str, batches: list[int], pairs: int
) -> Iterator[dict[str, object]]:
    from bench_worker import pytorch

    models = {
        name: pytorch(name_of_library, size, part, device, dtype)
        for name, name_of_library in (("ours", "reference"), ("theirs", library))
    }
    for mode in FORWARD if part == "encoder" else FORWARD + TRAINING:
        for batch in batches:
            ways, memory = {}, {}
            for name, call_of in models.items():
                call = call_of(mode, batch)
                _seconds(call, device, UNCOUNTED)
                memory[name] = _memory_of(call, device)
                ways[name] = partial(_seconds, call, device, CALLS)
            yield _row(
                library, f"{part}, {mode}", size, dtype, batch, by_turns(ways, pairs), memory
            )


def _seconds(call: Callable[[], Any], device: str, calls: int) -> float:
    """Return the mean time of `calls` calls in seconds, until `device` has finished its work."""
    _synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        call()
    _synchronize(device)
    return (time.perf_counter() - started) / calls


def _memory_of(call: Callable[[], Any], device: str) -> int:
    """Return how many bytes a call allocates on the GPU at its peak; 0 on other devices."""
    import torch

    if not device.startswith("cuda"):
        return 0
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    _synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _synchronize(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _row(
    against: str,
    what: str,
    size: str,
    dtype: str,
    batch: int | str,
    times: dict[str, list[float]],
    memory: dict[str, int],
) -> dict[str, object]:
    ours, theirs = times["ours"], times["theirs"]
    return {
        "against": against,
        "what": what,
        "ViT": size,
        "dtype": dtype,
        "batch": batch,
        "ours, ms": f"{1e3 * median(ours):.1f}",
        "theirs, ms": f"{1e3 * median(theirs):.1f}",
        "theirs / ours": f"{ratio(theirs, ours):.2f}",
        "memory of a call, GB": f"{memory.get('ours', 0) / 1e9:.2f}",
        "theirs, GB": f"{memory.get('theirs', 0) / 1e9:.2f}",
    }
