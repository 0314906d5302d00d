"""Base class of exporters: from a trained scene to files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import threestudio
from threestudio.models.background.base import BaseBackground
from threestudio.models.geometry.base import BaseGeometry
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.scene import OfScene, SceneParts
from threestudio.utils.base import BaseObject


@dataclass
class ExporterOutput:
    """One file: the system calls ``save_{save_type}(save_name, **params)``."""

    save_name: str
    save_type: str
    params: dict[str, Any]
    summary: str = ""  # what is in it, in words, for the line that is printed of it


class Exporter(OfScene, BaseObject):
    @dataclass
    class Config(BaseObject.Config):
        save_video: bool = False  # also render the test views while exporting

    cfg: Config

    def configure(self, geometry: BaseGeometry, material: BaseMaterial, background: BaseBackground) -> None:
        self._parts = SceneParts(geometry, material, background)

    def __call__(self, *args: Any, **kwargs: Any) -> list[ExporterOutput]:
        raise TypeError(f"{type(self).__name__} does not define __call__")


@threestudio.register("dummy-exporter")
class DummyExporter(Exporter):
    """Writes nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> list[ExporterOutput]:
        return []
