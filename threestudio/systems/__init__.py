"""The systems: what a training step is, and what it logs, saves and exports."""

from threestudio.systems import base, dreamfusion  # noqa: F401
