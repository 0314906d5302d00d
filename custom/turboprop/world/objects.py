"""The kinds of object of the world: solids with coloured parts.

An object stands upright (z up) and looks at +x, inside a ball of radius 0.95 around
the origin. Its shape is fixed by its kind; its two colours are free, so that every
caption names one exact solid. A part has a role: MAIN and ACCENT take the caption's
two colours, DETAIL (eyes, windows) is always dark.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .primitives import SignedDistance, box, capsule, cone, convex_prism, cylinder, intersect, sphere, subtract, torus

MAIN, ACCENT, DETAIL = 0, 1, 2
DETAIL_COLOR = (0.10, 0.10, 0.12)

# sRGB in [0, 1]. No grey: the teachers' backgrounds are greyish.
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.10),
    "orange": (0.95, 0.50, 0.08),
    "yellow": (0.95, 0.85, 0.15),
    "green": (0.15, 0.62, 0.20),
    "blue": (0.12, 0.30, 0.85),
    "purple": (0.50, 0.15, 0.65),
    "pink": (0.98, 0.55, 0.72),
    "brown": (0.45, 0.27, 0.12),
    "white": (0.96, 0.96, 0.96),
    "black": (0.08, 0.08, 0.08),
}


@dataclass(frozen=True)
class Kind:
    """A shape: its noun, the noun of its second part, and its solids with their roles."""

    name: str
    accent_phrase: str  # with its article where it has one, a slot for the colour: "a {} stem"
    solids: tuple[tuple[int, SignedDistance], ...]
    has_front: bool  # front and back differ

    def signed_distance(self, points: Tensor) -> Tensor:  # [..., 3] -> [...]
        """Distance to the union of the solids (world units, negative inside)."""
        return torch.stack([solid(points) for _, solid in self.solids]).amin(0)

    def roles(self, points: Tensor) -> Tensor:  # [..., 3] -> [...] int64
        """The role (MAIN, ACCENT, DETAIL) of the solid nearest to each point."""
        nearest = torch.stack([solid(points) for _, solid in self.solids]).argmin(0)
        return torch.tensor([role for role, _ in self.solids], device=points.device)[nearest]


def _four_legs(x: float, y: float, top: float, bottom: float, radius: float) -> list:
    return [
        (ACCENT, cylinder((sx * x, sy * y, bottom), (sx * x, sy * y, top), radius, 0.01))
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]


def _mushroom():
    dome = intersect(sphere((0, 0, 0.0), 0.62), box((0, 0, 0.4), (0.7, 0.7, 0.4)))
    return [(MAIN, dome), (ACCENT, cone((0, 0, -0.6), (0, 0, 0.02), 0.26, 0.17))]


def _table():
    return [(MAIN, cylinder((0, 0, 0.18), (0, 0, 0.34), 0.68, 0.03))] + _four_legs(0.36, 0.36, 0.2, -0.5, 0.075)


def _chair():
    seat = box((0, 0, 0), (0.4, 0.4, 0.07), 0.03)
    back = box((-0.35, 0, 0.36), (0.07, 0.4, 0.36), 0.03)
    return [(MAIN, seat), (MAIN, back)] + _four_legs(0.32, 0.32, 0.0, -0.6, 0.07)


def _car():
    body = box((0, 0, -0.12), (0.72, 0.34, 0.15), 0.06)
    cabin = convex_prism([(-0.55, 0.0), (0.28, 0.0), (0.08, 0.3), (-0.45, 0.3)], 1, 0.0, 0.28)
    windshield = convex_prism([(0.235, 0.075), (0.265, 0.075), (0.125, 0.285), (0.095, 0.285)], 1, 0.0, 0.23)
    wheels = [
        (ACCENT, cylinder((x, y - 0.09, -0.26), (x, y + 0.09, -0.26), 0.19, 0.03))
        for x in (-0.42, 0.42)
        for y in (-0.3, 0.3)
    ]
    lights = [(ACCENT, sphere((0.7, y, -0.08), 0.08)) for y in (-0.2, 0.2)]
    return [(MAIN, body), (MAIN, cabin), (DETAIL, windshield)] + wheels + lights


def _snowman():
    balls = [(MAIN, sphere((0, 0, -0.34), 0.36)), (MAIN, sphere((0, 0, 0.16), 0.26))]
    hat = [
        (ACCENT, cylinder((0, 0, 0.33), (0, 0, 0.39), 0.3, 0.02)),
        (ACCENT, cylinder((0, 0, 0.36), (0, 0, 0.7), 0.19, 0.02)),
    ]
    nose = [(ACCENT, cone((0.2, 0, 0.14), (0.52, 0, 0.12), 0.08, 0.015))]
    eyes = [(DETAIL, sphere((0.22, y, 0.24), 0.045)) for y in (-0.1, 0.1)]
    buttons = [(DETAIL, sphere((0.34, 0, z), 0.045)) for z in (-0.22, -0.4)]
    return balls + hat + nose + eyes + buttons


def _house():
    walls = box((0, 0, -0.25), (0.45, 0.5, 0.35))
    gable = convex_prism([(-0.45, 0.08), (0.45, 0.08), (0.0, 0.5)], 1, 0.0, 0.46)
    roof = convex_prism([(-0.62, 0.05), (0.62, 0.05), (0.0, 0.65)], 1, 0.0, 0.58)
    door = box((0.45, -0.18, -0.38), (0.04, 0.12, 0.22))
    window = box((0.45, 0.24, -0.2), (0.04, 0.12, 0.11))
    return [(MAIN, walls), (MAIN, gable), (ACCENT, roof), (ACCENT, door), (DETAIL, window)]


def _lamp():
    shade = cone((0, 0, 0.08), (0, 0, 0.62), 0.5, 0.26)
    pole = cylinder((0, 0, -0.55), (0, 0, 0.1), 0.06)
    foot = cylinder((0, 0, -0.62), (0, 0, -0.52), 0.34, 0.03)
    return [(MAIN, shade), (ACCENT, pole), (ACCENT, foot)]


def _tree():
    crown = [
        (MAIN, cone((0, 0, -0.28), (0, 0, 0.2), 0.54, 0.16)),
        (MAIN, cone((0, 0, 0.02), (0, 0, 0.44), 0.42, 0.1)),
        (MAIN, cone((0, 0, 0.28), (0, 0, 0.74), 0.3, 0.02)),
    ]
    return crown + [(ACCENT, cylinder((0, 0, -0.7), (0, 0, -0.26), 0.14))]


def _mug():
    wall = subtract(cylinder((0, 0, -0.46), (0, 0, 0.42), 0.42, 0.03), cylinder((0, 0, -0.36), (0, 0, 0.6), 0.34))
    handle = intersect(torus((-0.42, 0, -0.02), 1, 0.25, 0.075), box((-0.85, 0, 0), (0.45, 0.2, 0.6)))
    return [(MAIN, wall), (ACCENT, handle)]


def _sofa():
    seat = box((0.04, 0, -0.2), (0.34, 0.6, 0.14), 0.05)
    back = box((-0.32, 0, 0.08), (0.13, 0.68, 0.42), 0.06)
    arms = [(MAIN, box((0.02, y, -0.08), (0.36, 0.12, 0.26), 0.06)) for y in (-0.6, 0.6)]
    pillows = [(ACCENT, box((-0.1, y, 0.1), (0.09, 0.2, 0.2), 0.06)) for y in (-0.25, 0.25)]
    feet = [(ACCENT, cylinder((x, y, -0.46), (x, y, -0.3), 0.07)) for x in (-0.3, 0.28) for y in (-0.56, 0.56)]
    return [(MAIN, seat), (MAIN, back)] + arms + pillows + feet


def _boat():
    hull = intersect(
        convex_prism([(-0.5, -0.55), (0.36, -0.55), (0.74, -0.15), (-0.62, -0.15)], 1, 0.0, 0.3),
        box((0, 0, -0.35), (0.8, 0.27, 0.3), 0.12),
    )
    sail = convex_prism([(-0.5, 0.0), (0.02, 0.0), (0.02, 0.72)], 1, 0.0, 0.035)
    jib = convex_prism([(0.1, 0.0), (0.56, 0.0), (0.1, 0.56)], 1, 0.0, 0.035)
    mast = cylinder((0.06, 0, -0.2), (0.06, 0, 0.75), 0.04)
    return [(MAIN, hull), (ACCENT, sail), (ACCENT, jib), (DETAIL, mast)]


def _duck():
    body = [
        (MAIN, capsule((-0.2, 0, -0.26), (0.16, 0, -0.26), 0.34)),
        (MAIN, cone((-0.3, 0, -0.16), (-0.66, 0, 0.12), 0.24, 0.04)),
    ]
    head = [(MAIN, sphere((0.28, 0, 0.28), 0.25)), (MAIN, capsule((0.2, 0, -0.1), (0.27, 0, 0.2), 0.17))]
    beak = [(ACCENT, box((0.56, 0, 0.22), (0.16, 0.13, 0.05), 0.04))]
    feet = [(ACCENT, box((0.14, y, -0.62), (0.2, 0.11, 0.05), 0.03)) for y in (-0.16, 0.16)]
    eyes = [(DETAIL, sphere((0.44, y, 0.38), 0.05)) for y in (-0.14, 0.14)]
    return body + head + beak + feet + eyes


def _rocket():
    body = [(MAIN, cylinder((0, 0, -0.45), (0, 0, 0.25), 0.24)), (MAIN, cone((0, 0, 0.25), (0, 0, 0.76), 0.24, 0.02))]
    fins = []
    for sign in (-1, 1):
        corners = [(0.2, -0.7), (0.56, -0.7), (0.56, -0.5), (0.2, -0.1)]
        if sign < 0:
            corners = [(-a, b) for a, b in reversed(corners)]
        fins += [(ACCENT, convex_prism(corners, 1, 0.0, 0.045)), (ACCENT, convex_prism(corners, 0, 0.0, 0.045))]
    window = [(DETAIL, sphere((0.2, 0, 0.12), 0.11))]
    return body + fins + window


def _robot():
    body = [(MAIN, box((0, 0, -0.14), (0.24, 0.34, 0.3), 0.04)), (MAIN, box((0, 0, 0.38), (0.2, 0.26, 0.19), 0.04))]
    legs = [(ACCENT, box((0, y, -0.56), (0.14, 0.11, 0.16), 0.03)) for y in (-0.18, 0.18)]
    arms = [(ACCENT, capsule((0.0, y, 0.04), (0.14, y * 1.1, -0.26), 0.09)) for y in (-0.44, 0.44)]
    antenna = [(ACCENT, cylinder((0, 0, 0.55), (0, 0, 0.68), 0.03)), (ACCENT, sphere((0, 0, 0.7), 0.07))]
    eyes = [(DETAIL, sphere((0.19, y, 0.42), 0.07)) for y in (-0.11, 0.11)]
    mouth = [(DETAIL, box((0.2, 0, 0.27), (0.02, 0.12, 0.025)))]
    return body + legs + arms + antenna + eyes + mouth


def _cactus():
    plant = [
        (MAIN, capsule((0, 0, -0.3), (0, 0, 0.52), 0.19)),
        (MAIN, capsule((0, 0, -0.02), (0, 0.42, -0.02), 0.12)),
        (MAIN, capsule((0, 0.42, -0.02), (0, 0.42, 0.3), 0.12)),
        (MAIN, capsule((0, 0, 0.12), (0, -0.4, 0.12), 0.12)),
        (MAIN, capsule((0, -0.4, 0.12), (0, -0.4, 0.42), 0.12)),
    ]
    pot = [(ACCENT, cone((0, 0, -0.7), (0, 0, -0.3), 0.26, 0.36))]
    return plant + pot


def _umbrella():
    shell = subtract(sphere((0, 0, -0.08), 0.68), sphere((0, 0, -0.14), 0.66))
    canopy = intersect(shell, box((0, 0, 0.5), (0.8, 0.8, 0.42)))
    pole = cylinder((0, 0, -0.62), (0, 0, 0.72), 0.045)
    hook = intersect(torus((0.13, 0, -0.62), 1, 0.13, 0.045), box((0.13, 0, -0.8), (0.3, 0.2, 0.18)))
    return [(MAIN, canopy), (ACCENT, pole), (ACCENT, hook)]


def _bed():
    mattress = box((0.04, 0, -0.16), (0.66, 0.42, 0.13), 0.05)
    frame = box((0, 0, -0.33), (0.7, 0.45, 0.07), 0.02)
    headboard = box((-0.68, 0, -0.02), (0.06, 0.45, 0.34), 0.03)
    pillow = box((-0.42, 0, 0.02), (0.15, 0.3, 0.08), 0.05)
    feet = [(ACCENT, box((x, y, -0.45), (0.05, 0.05, 0.09))) for x in (-0.6, 0.6) for y in (-0.36, 0.36)]
    return [(MAIN, mattress), (ACCENT, frame), (ACCENT, headboard), (ACCENT, pillow)] + feet


def _kind(name: str, accent_phrase: str, solids: list, has_front: bool = False) -> Kind:
    return Kind(name, accent_phrase, tuple(solids), has_front)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        _kind("mushroom", "a {} stem", _mushroom()),
        _kind("table", "{} legs", _table()),
        _kind("chair", "{} legs", _chair(), has_front=True),
        _kind("car", "{} wheels", _car(), has_front=True),
        _kind("snowman", "a {} hat", _snowman(), has_front=True),
        _kind("house", "a {} roof", _house(), has_front=True),
        _kind("lamp", "a {} base", _lamp()),
        _kind("tree", "a {} trunk", _tree()),
        _kind("mug", "a {} handle", _mug(), has_front=True),
        _kind("sofa", "{} pillows", _sofa(), has_front=True),
        _kind("boat", "{} sails", _boat(), has_front=True),
        _kind("duck", "a {} beak", _duck(), has_front=True),
        _kind("rocket", "{} fins", _rocket()),
        _kind("robot", "{} arms", _robot(), has_front=True),
        _kind("cactus", "a {} pot", _cactus()),
        _kind("umbrella", "a {} pole", _umbrella()),
        _kind("bed", "a {} frame", _bed(), has_front=True),
    )
}
