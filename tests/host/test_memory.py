"""What the C library keeps of freed memory."""

import subprocess
import sys

import pytest

ALLOCATES_TWICE = """
import resource
import sys
import torch
from threestudio.utils.memory import keep_freed_memory

if not keep_freed_memory():
    sys.exit("no glibc")

def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(size, dtype=torch.uint8).fill_(1)  # and free
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
size = 2**31 + 2**28
print(faults(size), faults(size))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_more_than_two_gigabytes_are_kept():
    """The second buffer of that size finds the pages of the first: an int holds no threshold so high."""
    done = subprocess.run([sys.executable, "-c", ALLOCATES_TWICE], capture_output=True, text=True)
    if "no glibc" in done.stderr:
        pytest.skip("another C library")
    first, second = map(int, done.stdout.split())
    assert first > 1000 and second < first / 100
