"""Record intermediate activations of another library's PyTorch model by forward hooks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn


class Point(NamedTuple):
    """An intermediate activation: a module, and which part of its input or output it is."""

    module: nn.Module
    pick: Callable[[Any, Any], Tensor]  # input arguments, output → the activation


def output_of(module: nn.Module) -> Point:
    """Return the activation that is a module's output, or its first element."""
    return Point(module, lambda _, out: out[0] if isinstance(out, tuple) else out)


def input_of(module: nn.Module) -> Point:
    """Return the activation that is a module's first input."""
    return Point(module, lambda arguments, _: arguments[0])


@contextmanager
def recording(points: Mapping[str, Point]) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that is filled with the activations by name while the model runs."""
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
