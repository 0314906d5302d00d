"""Numerical kernels as functions on tensors: one folder an op, one file an op that has no kernels of its own.

A folder's ``__init__.py`` says what the op computes and has the function that hands it to a backend: reference.py is
plain torch, warp_backend.py the same as kernels for CPU and CUDA, another ``*_backend.py`` a CUDA library that a user
may have. backends.py picks, agreement.py asks such a library for the reference's numbers first, and warp_runtime.py
starts Warp and launches its kernels, for all.
"""
