"""MTL, the material libraries of OBJ files: the diffuse colour and its texture."""

from __future__ import annotations

import codecs
import os
import re
from dataclasses import dataclass, field

import numpy as np

from threestudio.utils.errors import UserError
from threestudio.utils.mesh_reading.named_files import find_named_file, named_file, read_picture
from threestudio.utils.mesh_reading.surface_colors import Texture


@dataclass
class Material:
    """What is read of one `newmtl`; the texture's picture is opened by `texture` alone."""

    library: str  # path of its file
    diffuse: tuple[float, ...] | None = None  # Kd, sRGB in [0, 1]
    map_line: str = ""  # what stands behind map_Kd


@dataclass
class MapOptions:
    """Options of a map_ line; the other ones of MTL change nothing that is read, or are refused."""

    scale: tuple[float, float] = (1.0, 1.0)  # -s
    offset: tuple[float, float] = (0.0, 0.0)  # -o
    clamp: bool = False  # -clamp on
    base_and_gain: tuple[float, float] = (0.0, 1.0)  # -mm
    unread: list[str] = field(default_factory=list)

    def moved(self, uv: np.ndarray) -> np.ndarray:
        """Where texture coordinates [..., 2], v up, look into the picture; v down."""
        u, v = (uv[..., i] * self.scale[i] + self.offset[i] for i in (0, 1))
        return np.stack([u, 1.0 - v], -1)


def text_lines(path: str) -> list[str]:
    """The lines of an OBJ or MTL file; a backslash at the end of a line continues it."""
    with open(path, "rb") as file:
        content = file.read()
    text = re.sub(r"\\[ \t]*(\r\n?|\n)", " ", _decoded(content))
    return re.split(r"\r\n?|\n", text)


def _decoded(content: bytes) -> str:
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError:  # older programs of the western world
        return content.decode("latin-1")


def without_comment(text: str) -> str:
    """What stands before a # that follows a blank."""
    return re.split(r"\s#", text, maxsplit=1)[0].strip()


def find_material(materials: dict[str, Material], name: str) -> Material | None:
    """The material of a name; where none is written alike, one whose quotes, comment or case differ."""
    if name in materials:
        return materials[name]
    alike = [material for other, material in materials.items() if _plain_name(other) == _plain_name(name)]
    return alike[0] if alike else None


def _plain_name(name: str) -> str:
    return without_comment(name).strip("\"'").casefold()


def read_materials(path: str) -> dict[str, Material]:
    """The materials of a library by name. Raises UserError for a colour that is none."""
    materials: dict[str, Material] = {}
    current: Material | None = None
    for line in text_lines(path):
        words = line.split(None, 1)
        keyword, rest = (words[0].lower(), words[1].strip()) if len(words) == 2 else ("", "")
        if keyword == "newmtl":
            current = materials.setdefault(rest, Material(path))
        elif keyword == "kd" and current is not None:
            current.diffuse = _diffuse(path, rest)
        elif keyword == "map_kd" and current is not None:
            current.map_line = rest
    return materials


def _diffuse(path: str, rest: str) -> tuple[float, ...]:
    words = rest.split("#")[0].split()
    try:
        numbers = [float(word) for word in words[:3]]
    except ValueError:
        numbers = []
    if not numbers or not np.isfinite(numbers).all():
        raise UserError(f"{path}: Kd: expected one or three numbers, got {rest!r}")
    rgb = numbers if len(numbers) == 3 else [numbers[0]] * 3
    return tuple(min(max(value, 0.0), 1.0) for value in rgb)


def map_of(material: Material) -> tuple[str, MapOptions]:
    """Path and options of a material's texture. Raises UserError where it is not there, or an option is not read."""
    line, library = material.map_line, material.library
    whole = find_named_file(os.path.dirname(library), line)
    if whole is not None:  # a name may hold what looks like an option
        return whole, MapOptions()
    name, options = parse_map_line(line)
    if find_named_file(os.path.dirname(library), name) is None:
        name, options = parse_map_line(without_comment(line))
    if options.unread:
        raise UserError(
            f"{library}: map_Kd: the option {options.unread[0]} is not read; expected -s, -o, -mm or -clamp in {line!r}"
        )
    return named_file(library, name, "the texture"), options


def texture_of(picture: str, options: MapOptions) -> Texture:
    texels = read_picture(picture, picture)
    if options.base_and_gain != (0.0, 1.0):
        base, gain = options.base_and_gain
        texels = ((base + gain * (texels / 255.0)).clamp(0, 1) * 255.0).round().byte()
    wrap = "clamp" if options.clamp else "repeat"
    return Texture(texels, wrap, wrap)


# How many words follow an option: a whole number of them, or up to three numbers.
_NUMBERS = ("-s", "-o", "-t")
_WORDS = {
    "-blendu": 1, "-blendv": 1, "-boost": 1, "-cc": 1, "-clamp": 1, "-texres": 1, "-bm": 1, "-imfchan": 1, "-type": 1,
    "-mm": 2,
}  # fmt: skip
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def parse_map_line(line: str) -> tuple[str, MapOptions]:
    """The file name, which may hold blanks and be quoted, and the options around it."""
    words = [(match.group(), match.start(), match.end()) for match in re.finditer(r'"[^"]*"|\S+', line)]
    options, at, name = MapOptions(), 0, []
    while at < len(words):
        option = words[at][0].lower()
        if option not in _NUMBERS and option not in _WORDS:
            name.append(words[at])
            at += 1
            continue
        at += 1
        values = []
        most = 3 if option in _NUMBERS else _WORDS[option]
        while at < len(words) and len(values) < most:
            # A number that the picture's name begins with is no value: the name is the last word at least.
            is_last = at == len(words) - 1 and not name
            if is_last or option in _NUMBERS and not _NUMBER.fullmatch(words[at][0]):
                break
            values.append(words[at][0])
            at += 1
        _take(options, option, values)
    return (line[name[0][1] : name[-1][2]] if name else ""), options


def _take(options: MapOptions, option: str, values: list[str]) -> None:
    numbers = [float(value) for value in values if _NUMBER.fullmatch(value)]
    if option == "-s":
        options.scale = (*numbers, *(1.0, 1.0)[len(numbers) :])[:2]
    elif option == "-o":
        options.offset = (*numbers, *(0.0, 0.0)[len(numbers) :])[:2]
    elif option == "-clamp":
        options.clamp = values == ["on"]
    elif option == "-mm" and len(numbers) == 2:
        options.base_and_gain = (numbers[0], numbers[1])
    elif option in ("-imfchan", "-type", "-mm") or option == "-t" and any(numbers):
        options.unread.append(option)
