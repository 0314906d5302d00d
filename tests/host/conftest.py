"""What the host's tests share: a working folder with the tiny plugin, and launches in it."""

from tests.host.launches import launch_here, start_launch, tiny_plugin  # noqa: F401
