"""The systems: what a training step is, and what it logs, saves and exports."""

from threestudio.systems import (
    base,
    dreamfusion,
    fantasia3d,
    imagedreamfusion,
    latentnerf,
    magic3d,
    magic123,
    prolificdreamer,
    sdi,
    sjc,
    textmesh,
    zero123,
)
