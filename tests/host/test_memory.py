"""What the C library keeps of freed memory."""

import subprocess
import sys

import pytest

ALLOCATES = """
import ctypes
import sys
from threestudio.utils.memory import keep_freed_memory

if not keep_freed_memory():
    sys.exit("no glibc")

library = ctypes.CDLL(None)
library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
library.sbrk.argtypes, library.sbrk.restype = [ctypes.c_long], ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]

buffer = library.malloc(2**31 + 2**28)
end = library.sbrk(0)
library.free(buffer)
print(end > buffer, end - library.sbrk(0))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_more_than_two_gigabytes_are_kept():
    """The heap's end stays where it was: an int holds no threshold over 2 GB, so such a buffer could be given back."""
    done = subprocess.run([sys.executable, "-c", ALLOCATES], capture_output=True, text=True)
    if "no glibc" in done.stderr:
        pytest.skip("another C library")
    assert done.stdout.split() == ["True", "0"]
