"""What the allocator does with memory that is freed."""

import numpy as np

KEPT_BYTES = 30 << 20
"""Less than the 32 MB of which glibc makes a rule for itself when they are freed."""


def keep_what_is_freed() -> None:
    """Have the allocator keep pieces that are freed, for the next ones.

    glibc gives what is larger than some threshold back to the system at once, and getting it again
    costs a page fault for every 4 kB. It raises that threshold to what it sees freed (mallopt(3),
    M_MMAP_THRESHOLD). Other allocators lose nothing by it.
    """
    np.empty(KEPT_BYTES, np.uint8)
