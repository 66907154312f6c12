"""Read datatypes, shapes and text attributes.

See sections IV.A.2.b, IV.A.2.d and IV.A.2.m of the HDF5 File Format Specification.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mae_convert.formats.hdf5_reader.cursor import Cursor
from mae_convert.formats.hdf5_reader.heaps import global_object
from mae_convert.formats.hdf5_reader.objects import Structure
from mae_convert.formats.tensor import possible_shape
from mae_convert.formats.torch_types import TORCH_DTYPES

INTEGER, FLOAT, STRING, OPAQUE, COMPOUND, ENUM, VARIABLE = 0, 1, 3, 5, 6, 8, 9
Order = Literal["<", ">"]
VERSIONS = (1, 2, 3, 4, 5)

# Size of the number in bytes, bits of exponent and mantissa, and the bias of the exponent.
FLOATS = {
    (2, 5, 10, 15): TORCH_DTYPES["float16"],
    (2, 8, 7, 127): TORCH_DTYPES["bfloat16"],
    (4, 8, 23, 127): TORCH_DTYPES["float32"],
    (8, 11, 52, 1023): TORCH_DTYPES["float64"],
}
IMPLIED = 2
"""The code for mantissas whose first bit is one and not stored, as in IEEE 754."""


@dataclass(frozen=True)
class Type:
    """The type of the elements of a dataset or an attribute."""

    kind: int
    """The number of the type's class in the HDF5 format."""

    size: int
    """The number of bytes of an element."""

    dtype: np.dtype | None = None
    """The NumPy dtype with its byte order, or None if the elements are not numbers."""


def read_type(cursor: Cursor) -> Type:
    """Return the type that a message describes.

    Raises:
        ValueError: the message is damaged.
    """
    head = cursor.number(1)
    kind, version, flags, size = head & 15, head >> 4, cursor.number(3), cursor.number(4)
    if version not in VERSIONS:
        raise ValueError(f"a datatype with the unknown version number {version}")
    order: Order = ">" if flags & 1 else "<"
    if kind == INTEGER:
        return Type(kind, size, _integer(cursor, size, flags, order))
    if kind == FLOAT:
        return Type(kind, size, _float(cursor, size, flags, order))
    if kind == ENUM:
        return Type(kind, size, _truth(cursor, version, size, flags & 0xFFFF))
    if kind == COMPOUND:
        return Type(kind, size, _complex(cursor, version, size, flags & 0xFFFF))
    # Sequences of variable length are read only if they are text.
    kind = -1 if kind == VARIABLE and flags & 15 != 1 else kind
    return Type(kind, size)


def _integer(cursor: Cursor, size: int, flags: int, order: Order) -> np.dtype | None:
    offset, precision = cursor.number(2), cursor.number(2)
    if size not in (1, 2, 4, 8) or (offset, precision, flags & ~9) != (0, 8 * size, 0):
        return None
    return np.dtype(f"{order}{'i' if flags & 8 else 'u'}{size}")


def _float(cursor: Cursor, size: int, flags: int, order: Order) -> np.dtype | None:
    """Return the dtype of a float type; None if the type is not supported."""
    offset, precision = cursor.number(2), cursor.number(2)
    exponent_at, exponent, mantissa_at, mantissa = (cursor.number(1) for _ in range(4))
    dtype = FLOATS.get((size, exponent, mantissa, cursor.number(4)))
    if (offset, precision, exponent_at, mantissa_at) != (0, 8 * size, mantissa, 0):
        return None
    sign_at = 8 * size - 1
    if flags & ~1 != sign_at << 8 | IMPLIED << 4:
        return None
    if dtype is None or (dtype.kind == "V" and order == ">"):
        return None
    return dtype if dtype.kind == "V" else dtype.newbyteorder(order)


def _truth(cursor: Cursor, version: int, size: int, count: int) -> np.dtype | None:
    """Return the bool dtype if an enumeration consists of FALSE (0) and TRUE (1), else None.

    Args:
        cursor: the cursor, at the base type of the enumeration; the members follow it.
        version: the version of the datatype message.
        size: the number of bytes of a value.
        count: the number of members.
    """
    base = read_type(cursor)
    if count != 2 or size != 1 or base.size != 1:
        return None
    names = [_member_name(cursor, version) for _ in range(2)]
    values = cursor.take(2)
    return np.dtype(bool) if (names, values) == ([b"FALSE", b"TRUE"], b"\0\1") else None


def _complex(cursor: Cursor, version: int, size: int, count: int) -> np.dtype | None:
    """Return the complex dtype if a compound type consists of floats `r` and `i`, else None.

    Args:
        cursor: the cursor, at the first member.
        version: the version of the datatype message.
        size: the number of bytes of a value.
        count: the number of members.
    """
    if count != 2 or size not in (8, 16):
        return None
    parts = []
    for _ in range(count):
        name = _member_name(cursor, version)
        offset = cursor.number((size.bit_length() + 7) // 8 if version >= 3 else 4)
        cursor.take(28 if version == 1 else 0)
        parts.append((name, offset, read_type(cursor).dtype))
    real = parts[0][2]
    if real is None or parts != [(b"r", 0, real), (b"i", size // 2, real)]:
        return None
    if real.kind != "f" or real.itemsize * 2 != size:
        return None
    return np.dtype(f"{real.byteorder.replace('=', '<')}c{size}")


def _member_name(cursor: Cursor, version: int) -> bytes:
    begins = cursor.at
    name = cursor.text()
    if version < 3:
        cursor.take(-(cursor.at - begins) % 8)
    return name


def read_shape(cursor: Cursor) -> tuple[int, ...] | None:
    """Return the shape that a message describes; None for an empty dataspace.

    Raises:
        ValueError: the message is corrupt, or no array can have this shape.
    """
    version, rank, flags = cursor.version(1, 2), cursor.number(1), cursor.number(1)
    if version == 2 and cursor.number(1) == 2:
        return None
    cursor.take(5 if version == 1 else 0)
    shape = tuple(cursor.address() for _ in range(rank))
    cursor.take(8 * rank * bool(flags & 1))
    if not possible_shape(shape):
        raise ValueError("an invalid shape")
    return shape


@dataclass(frozen=True)
class Attribute:
    """An attribute of a group or a dataset; only text is read."""

    name: str
    """The name of the attribute."""

    type: Type | None
    """The type of the elements; None if the type or the shape is stored elsewhere in the file, in a
    message that several objects share."""

    shape: tuple[int, ...] | None
    """The shape; None if the attribute has no elements, or if the type or the shape is stored
    elsewhere in the file, in a message that several objects share."""

    data: bytes
    """The bytes of the elements."""

    def texts(self, structure: Structure) -> list[str] | None:
        """Return the elements; None if they are not text.

        Args:
            structure: the file, from which text of variable length is read.

        Raises:
            ValueError: a text is missing or is not UTF-8.
        """
        if self.type is None or self.shape is None or self.type.kind not in (STRING, VARIABLE):
            return None
        cursor, count = Cursor(self.data), math.prod(self.shape)
        if not self.type.size or count * self.type.size > cursor.left:
            raise ValueError("a truncated attribute")
        return [_text(structure, cursor, self.type) for _ in range(count)]

    def text(self, structure: Structure) -> str | None:
        """Return the value; None if the attribute is not a single string.

        Args:
            structure: the file, from which text of variable length is read.

        Raises:
            ValueError: see `texts`.
        """
        texts = self.texts(structure) if self.shape == () else None
        return texts[0] if texts else None


def read_attribute(data: bytes) -> Attribute:
    """Return the attribute that a message describes.

    Raises:
        ValueError: the message is damaged.
    """
    cursor = Cursor(data)
    version = cursor.version(1, 2, 3)
    flags = cursor.number(1)
    sizes = [cursor.number(2) for _ in range(3)]
    cursor.take(1 if version == 3 else 0)
    parts = []
    for size in sizes:
        parts.append(cursor.take(size))
        cursor.take(-size % 8 if version == 1 else 0)
    name = parts[0].split(b"\0")[0].decode()
    if version > 1 and flags & 3:
        return Attribute(name, None, None, b"")
    kind, shape = read_type(Cursor(parts[1])), read_shape(Cursor(parts[2]))
    return Attribute(name, kind, shape, cursor.take(cursor.left))


def _text(structure: Structure, cursor: Cursor, kind: Type) -> str:
    if kind.kind == STRING:
        return cursor.take(kind.size).rstrip(b"\0").decode()
    length, address, index = cursor.number(4), cursor.address(), cursor.number(4)
    data = global_object(structure, address, index)[:length] if length else b""
    return data.rstrip(b"\0").decode()
