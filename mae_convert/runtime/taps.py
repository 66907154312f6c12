"""Record or replace intermediate activations of PyTorch models with forward hooks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Point(NamedTuple):
    """The location of an activation: a module, and a function that selects its input or output."""

    module: nn.Module
    pick: Callable[[Any, Any], Tensor]  # (input arguments, output) to activation
    of_input: bool = False


def output_of(module: nn.Module) -> Point:
    """Return the `Point` of a module's output, or of its first element if the output is a tuple."""
    return Point(module, lambda _, out: out[0] if isinstance(out, tuple) else out)


def input_of(module: nn.Module) -> Point:
    """Return the location of a module's first input, as a `Point`."""
    return Point(module, lambda arguments, _: arguments[0], of_input=True)


@contextmanager
def recording(points: Mapping[str, Point]) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that is filled with the activations at `points` while the model runs."""
    taps: dict[str, Tensor] = {}

    def hook_for(name: str, pick: Callable[[Any, Any], Tensor]) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: Any, output: Any) -> None:
            taps[name] = pick(arguments, output)

        return hook

    handles = [
        point.module.register_forward_hook(hook_for(name, point.pick))
        for name, point in points.items()
    ]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replacing(
    points: Mapping[str, Point], replacements: Mapping[str, Tensor]
) -> Iterator[dict[str, Tensor]]:
    """Replace activations with specified tensors while the model runs.

    The modules that use a replaced activation are run on the specified tensor, whatever the modules
    before them have computed.

    Args:
        points: the location of each activation in the model, by name.
        replacements: the activations (N, T, D) to insert, by name, of any dtype and device.

    Yields:
        A dictionary that is filled, by name, with the activations that the model computed and that
        were then replaced.
    """
    computed: dict[str, Tensor] = {}

    def before(name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, arguments: Any) -> Any:
            computed[name], tokens = replaced(arguments[0], replacements[name])
            return (tokens, *arguments[1:])

        return hook

    def after(name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            several = isinstance(output, tuple)
            computed[name], tokens = replaced(output[0] if several else output, replacements[name])
            return (tokens, *output[1:]) if several else tokens

        return hook

    handles = [
        point.module.register_forward_pre_hook(before(name))
        if point.of_input
        else point.module.register_forward_hook(after(name))
        for name, point in points.items()
        if name in replacements
    ]
    try:
        yield computed
    finally:
        for handle in handles:
            handle.remove()


def replaced(computed: Tensor, replacement: Tensor) -> tuple[Tensor, Tensor]:
    """Return the activation that a module computed, and a tensor to use instead of `computed`.

    Args:
        computed: the input or output of a module, (N, T, D), or (N, D) for pooled tokens. It may
            begin with tokens that are not part of the activation, because the model drops them
            afterwards.
        replacement: the activation to insert, (N, T, D).

    Returns:
        The computed activation, (N, T, D), and the tensor to use instead of `computed`, which
        contains `replacement` instead of this activation. For pooled tokens, T is 1.
    """
    replacement = replacement.to(computed)
    if computed.ndim == 2:
        return computed[:, None], replacement[:, 0]
    more = computed.shape[1] - replacement.shape[1]
    if more <= 0:  # if the shapes differ, the next step raises an error
        return computed, replacement
    return computed[:, more:], torch.cat([computed[:, :more], replacement], dim=1)
