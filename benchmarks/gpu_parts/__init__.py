"""The parts of benchmarks/gpu.py: each gives rows, and each row stands or fails by itself."""
