"""The parts of a scene, for what renders or exports it without owning it."""

from __future__ import annotations

from typing import NamedTuple

from threestudio.models.background.base import BaseBackground
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial


class SceneParts(NamedTuple):
    """Keeps the parts out of a module's tree: they belong to the system, and so do their weights."""

    geometry: BaseGeometry
    material: BaseMaterial
    background: BaseBackground


class OfScene:
    """The parts of `self._parts` by their names."""

    _parts: SceneParts

    @property
    def geometry(self) -> BaseGeometry:
        return self._parts.geometry

    @property
    def material(self) -> BaseMaterial:
        return self._parts.material

    @property
    def background(self) -> BaseBackground:
        return self._parts.background
