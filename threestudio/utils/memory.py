"""How the C library's allocator treats the large, short-lived buffers of training on a CPU."""

import ctypes
import sys

# Names and numbers of glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Asks glibc to keep freed memory for the next allocation; false where there is no glibc.

    By default each buffer over 32 MB, and much that is smaller, is mapped from the kernel and given
    back at once, so that every step zeroes its pages anew: where page faults are slow, as in
    virtual machines, this took two thirds of a training step. A process then holds its peak.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    try:
        mallopt = library.mallopt
    except AttributeError:  # another C library
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST_INT), (M_TOP_PAD, 64 * 2**20))
    return all([mallopt(name, value) == 1 for name, value in settings])
