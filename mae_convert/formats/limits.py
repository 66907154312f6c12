"""Names and dtypes that each file format can hold."""

from collections.abc import Sequence
from pathlib import Path

from mae_convert.errors import Option, OutputError
from mae_convert.formats.registry import FORMATS, TF_H5
from mae_convert.formats.tensor import LazyTensor

LONGEST_NAME = 1000


def check_limits(target: Path, kind: str, tensors: Sequence[LazyTensor]) -> None:
    """Require that a container can hold all tensors.

    Raises:
        OutputError: it cannot hold a name, a dtype, or two names together.
    """
    form, names = FORMATS[kind], [tensor.name for tensor in tensors]
    for name in names:
        impossible = not 0 < len(name) <= LONGEST_NAME or "\0" in name or not _is_text(name)
        if impossible or name in form.reserved:
            raise OutputError(
                target, f" cannot hold a tensor named {name[:100]!r}", hint="rename it"
            )
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise OutputError(target, f" cannot hold two tensors named {twice}", hint="rename one")
    if form.has_groups:
        _check_paths(target, kind, names)
    for tensor in tensors:
        if str(tensor.dtype) not in form.dtypes:
            raise OutputError(
                f"{target} cannot hold {tensor.name} as {tensor.dtype}",
                hint=("choose a dtype that it can hold, for example ", Option("dtype", "float32")),
                path=target,
            )


def _check_paths(target: Path, kind: str, names: Sequence[str]) -> None:
    groups: set[str] = set()
    for name in names:
        parts = name.split("/")
        if any(part in ("", ".") for part in parts) or (kind == TF_H5 and len(parts) < 2):
            raise OutputError(target, f" cannot hold a tensor named {name!r}", hint="rename it")
        groups.update("/".join(parts[:length]) for length in range(1, len(parts)))
    both = groups.intersection(names)
    if both or (kind == TF_H5 and "top_level_model_weights" in groups):
        name = min(both, default="top_level_model_weights")
        raise OutputError(
            target, f" cannot hold {name} as a tensor and as a group", hint="rename one"
        )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
