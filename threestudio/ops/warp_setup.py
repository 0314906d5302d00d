"""Starts Warp quietly; every module with Warp kernels imports ``wp`` from here."""

import torch
import warp as wp

# A machine without CUDA is no news here; on one with it, Warp's own warnings stay.
wp.config.log_level = wp.LOG_WARNING if torch.cuda.is_available() else wp.LOG_ERROR
wp.init()
wp.config.log_level = wp.LOG_WARNING

__all__ = ["wp"]
