"""Checks of configuration fields that the families share; each raises ValueError."""

from collections.abc import Iterable, Sequence
from typing import Any

Size = int | tuple[int, int]


def pair(size: Size) -> tuple[int, int]:
    """Return a size as (height, width)."""
    return (size, size) if isinstance(size, int) else size


def as_size(name: str, value: int | Sequence[int]) -> Size:
    """Return a size as an integer where it is square, else as (height, width)."""
    sides = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    if len(sides) != 2 or not all(is_count(side) for side in sides):
        raise ValueError(
            f"{name} must be a positive integer or a pair (height, width) of them, not {value!r}"
        )
    height, width = sides
    return height if height == width else (height, width)


def is_count(value: object) -> bool:
    """Return whether a value is a positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: object) -> bool:
    """Return whether a value is a real number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_counts(config: Any, names: Iterable[str]) -> None:
    """Check that fields are positive integers."""
    for name in names:
        if not is_count(getattr(config, name)):
            raise ValueError(f"{name} must be a positive integer, not {getattr(config, name)!r}")


def check_choice(config: Any, name: str, choices: Sequence[str]) -> None:
    """Check that a field is one of some words."""
    value = getattr(config, name)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def check_flags(config: Any, names: Iterable[str]) -> None:
    """Check that fields are true or false."""
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name} must be true or false, not {getattr(config, name)!r}")


def check_fractions(config: Any, names: Iterable[str]) -> None:
    """Check that fields are numbers of at least 0 and less than 1."""
    for name in names:
        value = getattr(config, name)
        if not (is_number(value) and 0 <= value < 1):
            raise ValueError(f"{name} must be at least 0 and less than 1, not {value!r}")


def check_positive(config: Any, names: Iterable[str]) -> None:
    """Check that fields are finite positive numbers."""
    for name in names:
        value = getattr(config, name)
        if not (is_number(value) and 0 < value < float("inf")):
            raise ValueError(f"{name} must be a positive number, not {value!r}")


def check_heads(config: Any, prefixes: Iterable[str] = ("", "decoder_")) -> None:
    """Check that the heads of encoder and decoder divide the width."""
    for prefix in prefixes:
        width = getattr(config, f"{prefix}hidden_size")
        heads = getattr(config, f"{prefix}num_attention_heads")
        if width % heads:
            raise ValueError(
                f"{prefix}num_attention_heads must divide {prefix}hidden_size;"
                f" {heads} does not divide {width}"
            )


def check_patches(image_hw: tuple[int, int], patch_hw: tuple[int, int]) -> None:
    """Check that patches divide the image."""
    for side, image, patch in zip(("height", "width"), image_hw, patch_hw, strict=True):
        if image % patch:
            raise ValueError(
                f"patch_size must divide image_size; the {side} of a patch, {patch}, does not"
                f" divide that of the image, {image}"
            )
