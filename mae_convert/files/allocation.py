"""Settings of the memory allocator."""

import numpy as np

KEPT_BYTES = 30 << 20
"""Below 32 MB, the largest freed block for which glibc raises its own mmap threshold."""


def keep_what_is_freed() -> None:
    """Make the allocator keep freed blocks for reuse.

    glibc returns blocks larger than a threshold to the system at once, and allocating them again
    costs a page fault for every 4 kB. It raises that threshold to the size of freed blocks
    (mallopt(3), M_MMAP_THRESHOLD). Other allocators are not affected.
    """
    np.empty(KEPT_BYTES, np.uint8)
