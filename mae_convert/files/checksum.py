"""Compute the CRC-32 of concatenated bytes from the CRC-32 of the parts.

A CRC-32 is a polynomial over GF(2) modulo `POLYNOMIAL`, its bits reversed: the highest bit of a
number is the coefficient of x^0. Appending n zero bits is a multiplication by x^n.
"""

from collections.abc import Iterable

POLYNOMIAL = 0xEDB88320
ONE, X = 1 << 31, 1 << 30


def joined(parts: Iterable[tuple[int, int]]) -> int:
    """Return the CRC-32 of concatenated parts, each given as its own CRC-32 and its length."""
    whole = 0
    for checksum, count in parts:
        whole = _times(_power_of_x(8 * count), whole) ^ checksum
    return whole


def _times(a: int, b: int) -> int:
    """Return the product of two polynomials."""
    product, bit = 0, ONE
    while bit:
        if a & bit:
            product ^= b
        b = b >> 1 ^ (POLYNOMIAL if b & 1 else 0)
        bit >>= 1
    return product


def _power_of_x(exponent: int) -> int:
    power, square = ONE, X
    while exponent:
        if exponent & 1:
            power = _times(power, square)
        square = _times(square, square)
        exponent >>= 1
    return power
