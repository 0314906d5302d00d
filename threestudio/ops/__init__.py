"""Numerical kernels as functions on tensors. Plain torch is the reference; Warp, where present, the fast twin."""
