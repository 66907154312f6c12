"""Transforms between canonical and external tensors: invertible maps between arrays."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from mae_convert.errors import LayoutError

Shape = tuple[int, ...]
Schema = dict[str, Shape]
# A key bias does not change the softmax, so the blocks of some programs have biases of query and
# value only.
KEY_BIAS = re.compile(r"\.attention\.k\.bias$")


class Transform(Protocol):
    """An invertible map from canonical arrays to one external array."""

    @property
    def in_order(self) -> bool:
        """Whether the external array has the elements of the canonical arrays in order.

        If so, a tensor can be read and written in ranges of elements.
        """

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Return the array of the external layout that is computed from canonical arrays."""

    def read(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the canonical arrays that are computed from an array of the external layout."""

    def write_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the shape of the result of `write` for canonical arrays of these shapes."""

    def read_shapes(self, shape: Shape) -> list[Shape]:
        """Return the shapes of the results of `read` for an external array of this shape.

        Raises:
            LayoutError: no canonical tensors result in this external shape.
        """


@dataclass(frozen=True)
class Same:
    """The external tensor equals the canonical tensor."""

    in_order: ClassVar[bool] = True

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Return the array unchanged."""
        return arrays[0]

    def read(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the array unchanged."""
        return [array]

    def write_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the shape unchanged."""
        return shapes[0]

    def read_shapes(self, shape: Shape) -> list[Shape]:
        """Return the shape unchanged."""
        return [shape]

    def __str__(self) -> str:
        return ""


@dataclass(frozen=True)
class Permute:
    """Reorder the axes: external axis ``i`` is canonical axis ``axes[i]``."""

    axes: tuple[int, ...]
    in_order: ClassVar[bool] = False

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Return a view of the canonical array with its axes reordered."""
        return arrays[0].transpose(self.axes)

    def read(self, array: np.ndarray) -> list[np.ndarray]:
        """Return a view of the external array with the axes in canonical order."""
        return [array.transpose(self._inverse())]

    def write_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the external shape: the canonical shape with its axes reordered."""
        return tuple(shapes[0][axis] for axis in self.axes)

    def read_shapes(self, shape: Shape) -> list[Shape]:
        """Return the canonical shape: the external shape with its axes in canonical order."""
        if len(shape) != len(self.axes):
            raise LayoutError(
                f"the tensor must have {len(self.axes)} dimensions, but its shape is {shape}"
            )
        return [tuple(shape[axis] for axis in self._inverse())]

    def _inverse(self) -> tuple[int, ...]:
        return tuple(self.axes.index(axis) for axis in range(len(self.axes)))

    def __str__(self) -> str:
        return "transpose" if self.axes == (1, 0) else f"permute{self.axes}"


@dataclass(frozen=True)
class Fuse:
    """Concatenate ``parts`` canonical tensors of equal shape along the first axis."""

    parts: int
    in_order: ClassVar[bool] = True

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Return the concatenated parts."""
        return np.concatenate(arrays)

    def read(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the parts in order, as views of equal size."""
        size = array.shape[0] // self.parts
        return [array[index * size : (index + 1) * size] for index in range(self.parts)]

    def write_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the shape of the fused tensor."""
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def read_shapes(self, shape: Shape) -> list[Shape]:
        """Return the shapes of the parts of a fused tensor of this shape."""
        if not shape or shape[0] % self.parts:
            raise LayoutError(f"shape {shape} cannot be split into {self.parts} equal parts")
        return [(shape[0] // self.parts, *shape[1:])] * self.parts

    def __str__(self) -> str:
        return f"fuse {self.parts}"


@dataclass(frozen=True)
class SplitHeads:
    """Attention heads as a separate axis, as in Keras's multi-head attention."""

    kind: str
    """The kind of tensor; d is the width of one head.

    "kernel": canonical shape (heads * d, width), external shape (width, heads, d).
    "bias": canonical shape (heads * d,), external shape (heads, d).
    "output": canonical shape (width, heads * d), external shape (heads, d, width).
    """

    heads: int = 0
    """Number of heads; 0 until the mapping table is bound to a model (see `Rule.bound`)."""

    @property
    def in_order(self) -> bool:
        """Whether the tensor is a bias, whose elements stay in order when heads are split."""
        return self.kind == "bias"

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Return the external array, which has a separate axis of heads."""
        turned = arrays[0] if self.kind == "bias" else arrays[0].T
        return turned.reshape(self.write_shape([arrays[0].shape]))

    def read(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the canonical array, in which the heads are concatenated along one axis."""
        (shape,) = self.read_shapes(array.shape)
        return [array.reshape(shape) if self.kind == "bias" else array.reshape(shape[::-1]).T]

    def write_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the external shape, which has a separate axis of heads.

        Raises:
            LayoutError: the number of heads does not divide the width.
        """
        joined = shapes[0][-1] if self.kind == "output" else shapes[0][0]
        if not self.heads or joined % self.heads:
            raise LayoutError(f"{self.heads} heads do not divide a width of {joined}")
        apart = (self.heads, joined // self.heads)
        return {
            "kernel": (*shapes[0][1:], *apart),
            "bias": apart,
            "output": (*apart, *shapes[0][:-1]),
        }[self.kind]

    def read_shapes(self, shape: Shape) -> list[Shape]:
        """Return the canonical shape, in which the heads are concatenated along one axis."""
        rank = 2 if self.kind == "bias" else 3
        if len(shape) != rank:
            raise LayoutError(f"the tensor must have {rank} dimensions, but its shape is {shape}")
        if self.kind == "bias":
            return [(shape[0] * shape[1],)]
        if self.kind == "kernel":
            return [(shape[1] * shape[2], shape[0])]
        return [(shape[2], shape[0] * shape[1])]

    def heads_in(self, shape: Shape) -> int:
        """Return the number of heads in an external shape."""
        return shape[1] if self.kind == "kernel" else shape[0]

    def __str__(self) -> str:
        return f"heads separated ({self.kind})"


@dataclass(frozen=True)
class WithoutBatch:
    """The external tensor lacks the first axis of the canonical tensor, which has size 1."""

    in_order: ClassVar[bool] = True

    def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Return the array without its first axis."""
        return arrays[0][0]

    def read(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the array with a leading axis of size one."""
        return [array[None]]

    def write_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Return the shape without its first axis."""
        return shapes[0][1:]

    def read_shapes(self, shape: Shape) -> list[Shape]:
        """Return the shape with a leading axis of size one."""
        return [(1, *shape)]

    def __str__(self) -> str:
        return "without the first axis"


SAME = Same()
TRANSPOSE = Permute((1, 0))
