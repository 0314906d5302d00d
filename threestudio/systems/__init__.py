"""The systems: what a training step is, and what it logs, saves and exports."""

