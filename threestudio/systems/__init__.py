"""The systems: what a training step is, and what it logs, saves and exports."""

from threestudio.systems import (  # noqa: F401
    base,
    dreamfusion,
    fantasia3d,
    imagedreamfusion,
    latentnerf,
    magic123,
    magic3d,
    prolificdreamer,
    sdi,
    sjc,
    textmesh,
    zero123,
)
