"""Functions that all runners of PyTorch models use: precisions, devices, modes and gradients."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mae_convert.errors import Option
from mae_convert.runtime.job import Job, additional_inputs
from mae_convert.runtime.loaders import LoadError
from mae_convert.runtime.objective import cotangent, labels
from mae_convert.runtime.taps import Point, replacing

Results = dict[str, Tensor]
Build = Callable[[Job], nn.Module]
# Called with the model, the model to run (compiled or not), the pixels, the noise and additional
# inputs by name; returns the results by name.
Forward = Callable[..., Results]
Points = Callable[[Any], Mapping[str, Point]]


def versions() -> dict[str, str]:
    """Return the versions of the libraries that a result depends on."""
    return {"torch": torch.__version__, "numpy": np.__version__}


def settings() -> dict[str, Any]:
    """Return PyTorch's settings that a result depends on: determinism and reduced precision."""
    return {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        "reduced_precision_reduction": (
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
            or torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        ),
    }


class WithoutValues(TorchFunctionMode):
    """A context in which models that are created in this thread have parameters without values.

    Their parameters are on the meta device. Initialization is skipped, because for random numbers
    on that device PyTorch would import SymPy, which takes a second. Other threads are not affected,
    because a ``TorchFunctionMode`` applies to one thread.
    """

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        """Call a PyTorch function; create tensors on the meta device and skip initialization."""
        named = named or {}
        if function in INITIALIZERS:
            return arguments[0] if arguments else named["tensor"]
        if function in CONSTRUCTORS and named.get("device") is None:
            named = {**named, "device": "meta"}
        return function(*arguments, **named)


CONSTRUCTORS = {torch.empty, torch.zeros, torch.ones, torch.full}
INITIALIZERS = {
    Tensor.uniform_,
    Tensor.normal_,
    *(value for name, value in vars(nn.init).items() if re.fullmatch(r"[a-z]\w*_", name)),
}


def torch_runs(
    job: Job,
    inputs: Mapping[str, np.ndarray],
    build: Build,
    forward: Forward,
    points: Points,
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Run a model in each dtype of a job; yield each dtype and the results, NumPy arrays by name.

    Args:
        job: the checkpoint, the dtypes of the runs, and the results to return.
        inputs: ``pixel_values``, for masked tasks ``noise``, and additional inputs of the model.
        build: creates the model with its weights; it is called again after a run in
            which the weights were rounded.
        forward: runs the model.
        points: a function that takes the model and returns, by activation name, where each step
            (the embedding, a block or a norm) computes its result, as a `Point`.

    Raises:
        LoadError: the weights do not fit, or a result does not have the requested dtype.
    """
    _be_deterministic(job.mode)
    if job.step_outputs:
        forward = _isolated(forward, points, load_file(job.step_outputs))
    model = build(job)
    for number, dtype in enumerate(job.dtypes):
        _set_precision(dtype, job.device)
        device = "cpu" if dtype == "float64" else job.device
        kind = getattr(torch, "float32" if dtype == "tf32" else dtype)
        run = model.to(device=device, dtype=kind).train(job.mode == "train")
        # Outputs and gradients are released after each run, because they keep all activations in
        # memory.
        yield (
            dtype,
            {
                name: _as_numpy(name, value, kind)
                for name, value in _results(run, job, inputs, device, forward).items()
            },
        )
        # Another run must not use the rounded weights.
        if dtype != "float64" and number + 1 < len(job.dtypes):
            model = build(job)


def _isolated(forward: Forward, points: Points, replacements: Mapping[str, Tensor]) -> Forward:
    """Return a forward function that replaces the results of steps (such as blocks).

    The results that the steps have computed themselves are returned as ``tap/NAME``.

    Args:
        forward: the forward function without replacements.
        points: a function that takes the model and returns, for each step, the `Point` of its
            result.
        replacements: the activations that replace the results, by name.
    """

    def run(model: Any, *inputs: Any, **additional: Any) -> Results:
        with replacing(points(model), replacements) as computed:
            results = forward(model, *inputs, **additional)
        return {**results, **{f"tap/{name}": value for name, value in computed.items()}}

    return run


def _be_deterministic(mode: str) -> None:
    if mode == "compiled":
        torch.use_deterministic_algorithms(True, warn_only=True)
    else:  # has the same effect without an import of the compiler, which takes seconds
        torch.set_deterministic_debug_mode("warn")


def _set_precision(dtype: str, device: str) -> None:
    """Enable TF32 if `dtype` is "tf32", else disable it; disable other reduced precision on GPUs.

    With TF32, the inputs of float32 matrix products are rounded to 10 bits of mantissa.

    Raises:
        LoadError: the device does not exist, or does not support TF32.
    """
    if dtype == "tf32" and device != "cuda":
        raise LoadError(
            "TF32 exists on CUDA devices only", hint=("pass ", Option("device", "cuda"))
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise LoadError("PyTorch finds no CUDA device", hint=("pass ", Option("device", "cpu")))
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def _results(
    model: Any, job: Job, inputs: Mapping[str, np.ndarray], device: str, forward: Forward
) -> Results:
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    kind = next(model.parameters()).dtype
    pixels = torch.from_numpy(inputs["pixel_values"]).to(device=device, dtype=kind)
    noise = torch.from_numpy(inputs["noise"]).to(device) if job.task != "classify" else None
    additional = {n: torch.from_numpy(a).to(device) for n, a in additional_inputs(inputs).items()}
    if job.mode == "xla":
        raise LoadError("PyTorch has no mode xla", hint=("pass ", Option("mode", "compiled")))
    call = torch.compile(model) if job.mode == "compiled" else model
    with torch.set_grad_enabled(job.gradients):
        results = forward(model, call, pixels, noise, **additional)
        if job.gradients:
            results |= _gradients(_objective(results, job), parameters)
    names = (n for n in results if job.taps or not n.startswith("tap/"))
    return {name: results[name].detach() for name in names}


def _objective(results: Results, job: Job) -> Tensor:
    """Return the scalar whose gradient is compared; see the module ``objective``."""
    if job.task == "pretrain":
        if "loss" not in results:
            raise LoadError("without masking there is no loss and therefore no gradient")
        return results["loss"]
    if job.task == "classify":
        logits = results["logits"]
        targets = torch.from_numpy(labels(*logits.shape)).to(logits.device)
        return nn.functional.cross_entropy(logits, targets)
    hidden = results["last_hidden_state"]
    weights = torch.from_numpy(cotangent(tuple(hidden.shape)))
    return (hidden * weights.to(hidden.device, hidden.dtype)).sum() / len(hidden)


def _gradients(objective: Tensor, parameters: Mapping[str, nn.Parameter]) -> Results:
    by_parameter = torch.autograd.grad(objective, list(parameters.values()), allow_unused=True)
    return {
        f"grad/{name}": value
        for name, value in zip(parameters, by_parameter, strict=True)
        if value is not None
    }


def _as_numpy(name: str, value: Tensor, kind: torch.dtype) -> np.ndarray:
    if name in ("mask", "ids_restore"):
        return value.cpu().numpy()
    # A loss over a float32 mask is summed in float32 at least.
    wide = name in ("loss", "loss_norm_pix") and value.dtype == torch.float32
    if value.dtype != kind and not (wide and kind != torch.float64):
        raise LoadError(f"{name} has dtype {value.dtype}, although {kind} was requested")
    exact = value.float() if kind == torch.bfloat16 else value  # NumPy has no bfloat16
    return exact.cpu().numpy()
