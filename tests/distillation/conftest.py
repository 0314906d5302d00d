"""Launches in this process, as the host's tests have them."""

from tests.host.launches import launch_here, tiny_plugin  # noqa: F401
