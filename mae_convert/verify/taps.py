"""Record what modules of somebody else's PyTorch model compute, by hooks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

Taps = dict[str, Tensor]


class Point(NamedTuple):
    """Where a tap is: what of a module's input or output it is."""

    module: nn.Module
    pick: Callable[[Any, Any], Tensor]  # input arguments, output → the tap


def output_of(module: nn.Module) -> Point:
    """Return the tap of a module's output, or of the first thing in it."""
    return Point(module, lambda _, out: out[0] if isinstance(out, tuple) else out)


def input_of(module: nn.Module) -> Point:
    """Return the tap of a module's first input."""
    return Point(module, lambda arguments, _: arguments[0])


@contextmanager
def recording(points: Mapping[str, Point]) -> Iterator[Taps]:
    """Give a mapping that fills with the taps while the model runs."""
    taps: Taps = {}

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
