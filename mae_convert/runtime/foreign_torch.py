"""Run a PyTorch model that external code creates."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mae_convert.errors import Option
from mae_convert.runtime.foreign_code import Code, factory_argument, named_results
from mae_convert.runtime.job import Job
from mae_convert.runtime.loaders import LoadError, pytorch_state_dict
from mae_convert.runtime.taps import Point, input_of, output_of, recording
from mae_convert.runtime.torch_runs import Results, torch_runs

EXACT = {"mask": torch.float32, "ids_restore": torch.int64}
INPUT = ":input"


def runs(
    code: Code, job: Job, inputs: Mapping[str, np.ndarray], model: Any
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield each dtype and its results, NumPy arrays by name.

    Args:
        code: the code that creates and runs the model.
        job: the checkpoint, the dtypes of the runs, and the results to return.
        inputs: ``pixel_values``, and ``noise`` for masked tasks.
        model: the model that the factory function of the code has returned.

    Raises:
        LoadError: the code failed, the state dict does not fit the code's model, or the mode is not
            "eager".
    """
    if job.mode != "eager":
        raise LoadError("external code is run eagerly only", hint=Option("mode", "eager"))
    run = _Run(code, job.task)
    made = [model]

    def build(job: Job) -> nn.Module:
        if made:
            return loaded(code, job, made.pop())
        with code.running():
            return loaded(code, job, code.factory(factory_argument(job)))

    del model
    return torch_runs(job, inputs, build, run.forward, run.points)


def loaded(code: Code, job: Job, model: Any) -> nn.Module:
    """Load a checkpoint's state dict into `model`, and return the model in evaluation mode.

    The state dict is loaded by ``load_state`` of the code or, if the code does not define this
    function, by the model's ``load_state_dict`` with ``strict=True``.

    Raises:
        LoadError: `model` is not a PyTorch model, or the state dict does not fit it.
    """
    if not isinstance(model, nn.Module):
        raise LoadError(f"{code.label} returns {type(model).__name__} and not a torch.nn.Module")
    state = pytorch_state_dict(job.weights)
    if code.load_state is not None:
        with code.running():
            code.load_state(model, state)
    else:
        try:
            model.load_state_dict(state, strict=True)
        except RuntimeError as error:
            words = " ".join(str(error).split())[:600]
            raise LoadError(
                f"{code.label}: {words}",
                hint="write a function load_state(model, state), or set LAYOUT to the layout with "
                "the model's tensor names",
            ) from error
    return model.eval()


@dataclass(frozen=True)
class _Run:
    """Runs a model that was created by external code."""

    code: Code
    task: str

    def forward(
        self, model: Any, call: Any, pixels: Tensor, noise: Tensor | None, **additional: Tensor
    ) -> Results:
        """Return the results of the external code, and the activations that the code specifies.

        Args:
            model: the model.
            call: the function that is called, unless the code has its own function ``forward``:
                ``model``, or its compiled form.
            pixels: the images or videos.
            noise: (N, L); None for a classifier.
            additional: further inputs of the model, by name.
        """
        with recording(self.points(model)) as taps, self.code.running():
            if self.code.forward is not None:
                returned = self.code.forward(model, pixels, noise, **additional)
            else:
                returned = self._call(call, pixels, noise, additional)
        results = named_results(self.code, self.task, returned)
        for name, value in results.items():
            if not isinstance(value, Tensor):
                raise LoadError(f"{self.code.label}: {name} is not a torch.Tensor")
        exact = {name: results[name].to(kind) for name, kind in EXACT.items() if name in results}
        return {**results, **exact, **{f"tap/{name}": value for name, value in taps.items()}}

    def _call(
        self, call: Any, pixels: Tensor, noise: Tensor | None, additional: Mapping[str, Tensor]
    ) -> Any:
        if noise is None or self.code.mask is None:
            return call(pixels, **additional)
        if self.code.mask == "argument":
            return call(pixels, noise, **additional)
        with drawn_noise(noise, self.code.label):
            return call(pixels, **additional)

    def points(self, model: Any) -> dict[str, Point]:
        """Return the `Point` of each activation that the code specifies, by canonical name."""
        modules = dict(model.named_modules())
        matched = {}
        for name, path, part, parts in self.code.points():
            pattern = re.escape(path.removesuffix(INPUT)).replace(r"\{\}", r"(\d+)")
            matches = {m: module for m, module in modules.items() if re.fullmatch(pattern, m)}
            if not matches:
                raise LoadError(
                    f"{self.code.label}: ACTIVATIONS names the module {path}, which the model does "
                    "not have"
                )
            for index, module in matches.items():
                number = re.fullmatch(pattern, index)
                assert number is not None
                canonical = name.replace("{}", number[1]) if "{}" in name else name
                matched[canonical] = _point(module, path, part, parts)
        return matched


def _point(module: nn.Module, path: str, part: int, parts: int) -> Point:
    if path.endswith(INPUT):
        return input_of(module)
    if parts == 1:
        return output_of(module)
    return Point(module, lambda _, out: out.chunk(parts, dim=-1)[part])


class _Drawn(TorchFunctionMode):
    """Context in which ``torch.rand`` returns the masking noise, in this thread only."""

    def __init__(self, noise: Tensor, label: str) -> None:
        super().__init__()
        self.noise, self.label = noise, label

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        """Call a PyTorch function, except that ``torch.rand`` returns the specified noise."""
        if function is not torch.rand:
            return function(*arguments, **(named or {}))
        one = len(arguments) == 1 and not isinstance(arguments[0], int)
        sizes = (named or {}).get("size", arguments[0] if one else arguments)
        if np.prod(sizes) != self.noise.numel():
            raise LoadError(
                f"{self.label} draws random numbers of shape {tuple(sizes)}, but the masking noise "
                f"has shape {tuple(self.noise.shape)}"
            )
        return self.noise.reshape(tuple(sizes))


@contextmanager
def drawn_noise(noise: Tensor, label: str) -> Iterator[None]:
    """Within the context, let ``torch.rand`` return the masking noise (N, L), for external models.

    Args:
        noise: the masking noise.
        label: the name of the external code, for messages.

    Raises:
        LoadError: the model draws more or fewer values than `noise` has.
    """
    with _Drawn(noise, label):
        yield
