"""Starts Warp quietly; every module with Warp kernels imports ``wp`` from here."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import warp as wp


@contextmanager
def _standard_error_muted() -> Iterator[None]:
    """Mutes the process's standard error itself: Warp's library writes to it below Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


wp.config.log_level = wp.LOG_WARNING
if torch.cuda.is_available():
    wp.init()
else:  # that there is no CUDA driver is no news here
    with _standard_error_muted():
        wp.init()

__all__ = ["wp"]
