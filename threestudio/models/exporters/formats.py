"""Formats of mesh-exporter that plugins bring: what a geometry of theirs writes by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from threestudio.models.geometry.base import BaseGeometry
from threestudio.utils.errors import UserError


@dataclass(frozen=True)
class ExportFormat:
    """One value of `system.exporter.fmt`."""

    name: str
    ending: str  # of the file's name, with the dot
    check: Callable[[BaseGeometry], None]  # raises UserError for a geometry that has nothing to write
    write: Callable[[BaseGeometry, str], None]  # to a path


_formats: dict[str, ExportFormat] = {}


def register_export_format(export_format: ExportFormat) -> None:
    """Raises UserError if the name is taken."""
    if export_format.name in _formats:
        raise UserError(f"an export format named {export_format.name!r} exists already")
    _formats[export_format.name] = export_format


def find_export_format(name: str) -> ExportFormat | None:
    """The format of that name, None where there is none; a name that is not known yet loads the bundled extensions."""
    if name not in _formats:
        from threestudio.utils.extensions import load_extensions

        load_extensions()
    return _formats.get(name)


def export_format_names() -> list[str]:
    return list(_formats)
