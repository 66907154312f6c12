"""A checksum combined from those of parts equals zlib's checksum of the whole."""

import zlib

from hypothesis import given
from hypothesis import strategies as st

from mae_convert.formats.archive_write import combined_crc32


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_combined_checksum_of_parts_equals_that_of_the_whole(parts):
    assert combined_crc32((zlib.crc32(part), len(part)) for part in parts) == zlib.crc32(
        b"".join(parts)
    )


def test_combining_the_checksum_of_a_long_part_is_fast():
    whole = combined_crc32([(zlib.crc32(b"a"), 1), (zlib.crc32(bytes(10**7)), 10**7)])
    assert whole == zlib.crc32(b"a" + bytes(10**7))
