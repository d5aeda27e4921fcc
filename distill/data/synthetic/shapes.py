"""What stands in the drawn scenes, in meters and as polygons: trees, houses, boats, people; and their light."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Shapes = list[tuple[Array, Array]]  # polygons `[K, 2]` in meters, y up, each with its color `[3]`, back to front

CLASSES = ("sky", "hills", "water", "ground", "tree", "house", "boat", "pole", "person", "balloon")
PALETTE = (
    (176, 216, 238),
    (148, 134, 176),
    (52, 112, 176),
    (226, 204, 142),
    (84, 148, 82),
    (206, 98, 76),
    (250, 244, 232),
    (64, 56, 72),
    (232, 62, 140),
    (250, 190, 40),
)
# What overlaps where each plane of labels is drawn by itself: things as wholes, with what others hide of them.
PLANES = {
    "water": PALETTE[2],
    "ground": PALETTE[3],
    "shadow": (96, 84, 120),
    "tree": PALETTE[4],
    "house": PALETTE[5],
    "boat": PALETTE[6],
    "person": PALETTE[8],
}
SKY, HILLS, WATER, GROUND, TREE, HOUSE, BOAT, POLE, PERSON, BALLOON = range(len(CLASSES))


def colors_of(*rgb: tuple[float, float, float]) -> Array:
    """A table of colors, float32 `[N, 3]`, 0 to 255."""
    return np.array(rgb, np.float32)


# From dawn over noon to night: the sky above, the sky at the horizon, the light, deep water.
HOURS = np.stack(
    [
        colors_of((104, 126, 178), (252, 200, 176), (224, 196, 200), (62, 96, 128)),
        colors_of((104, 172, 220), (228, 238, 232), (255, 248, 234), (44, 120, 142)),
        colors_of((66, 146, 214), (196, 226, 236), (255, 255, 252), (26, 110, 150)),
        colors_of((118, 156, 190), (255, 214, 146), (255, 222, 168), (54, 108, 122)),
        colors_of((84, 76, 132), (248, 140, 100), (212, 156, 150), (52, 60, 100)),
        colors_of((34, 42, 90), (122, 110, 156), (136, 136, 176), (28, 44, 82)),
    ]
)
GROUNDS = colors_of((134, 158, 84), (104, 136, 74), (176, 160, 96), (214, 194, 148), (160, 152, 140))
LEAVES = colors_of(
    (70, 120, 62), (104, 146, 66), (52, 96, 78), (86, 128, 84), (204, 134, 52), (178, 78, 54), (222, 162, 170)
)
NEEDLES = LEAVES[2:3]
WALLS = colors_of(
    (240, 232, 214), (226, 184, 112), (176, 72, 56), (156, 184, 196), (226, 166, 150), (150, 158, 126), (126, 110, 98)
)
ROOFS = colors_of((186, 92, 66), (96, 100, 116), (122, 78, 62), (70, 92, 96), (150, 118, 92))
HULLS = colors_of((244, 240, 230), (182, 60, 50), (44, 74, 118), (58, 112, 100), (162, 108, 66), (60, 54, 60))
SAILS = colors_of((250, 246, 234), (240, 222, 184), (198, 84, 60), (84, 120, 150))
CLOTHES = colors_of(
    (206, 64, 60), (238, 190, 72), (58, 92, 146), (244, 240, 232), (66, 62, 70), (110, 142, 96), (150, 96, 140)
)
IRON = colors_of((60, 54, 60), (52, 76, 78))
SKINS = colors_of((236, 196, 168), (196, 146, 112), (128, 88, 66))
WOOD, AMBER, GLASS, CREAM = colors_of((92, 72, 58), (255, 214, 124), (84, 104, 122), (250, 246, 232))


def blend(a: Array, b: Array, share: float | Array) -> Array:
    """`a` where `share` is 0, `b` where it is 1."""
    return a + (b - a) * share


def pick(rng: np.random.Generator, colors: Array) -> Array:
    """One of the colors, a little different every time."""
    return colors[rng.integers(len(colors))] + rng.uniform(-12, 12, 3)


def _polygon(*corners: tuple[float, float]) -> Array:
    return np.array(corners)


def _box(left: float, bottom: float, right: float, top: float) -> Array:
    return np.array([(left, bottom), (right, bottom), (right, top), (left, top)])


_ANGLES = np.arange(14) * np.pi / 7
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)


def _disc(x: float, y: float, width: float, height: float) -> Array:
    """An ellipse by its center and half axes."""
    return _CIRCLE * (width, height) + (x, y)


@dataclass
class Setting:
    """The hour, the weather and the season.

    Attributes:
        above: color of the sky above.
        low: color of the sky at the horizon, and of the haze.
        tint: what the light leaves of a color, 0.4 to 1, `[3]`.
        water: color of deep water.
        sun: where the sun stands, -1 (left) to 1 (right).
        haze: how much haze there is, 0 to 1.
        cloud: how much of the sky is covered, 0 to 1.
        lamps: whether windows and lamps are lit.
        leaves: the season's colors `[2, 3]`.
    """

    above: Array
    low: Array
    tint: Array
    water: Array
    sun: float
    haze: float
    cloud: float
    lamps: bool
    leaves: Array

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Setting:
        """Some hour of some day."""
        hour = rng.uniform(0, len(HOURS) - 1.001)
        above, low, light, water = blend(HOURS[int(hour)], HOURS[int(hour) + 1], hour % 1)
        cloud = rng.uniform(0.1, 1)
        gray, overcast = 2 * max(0.0, cloud - 0.7), np.full(3, 0.7 * light.mean())
        return cls(
            above=blend(above, overcast * 0.85, gray),
            low=blend(low, overcast * 1.1, gray),
            tint=light / 255,
            water=water,
            sun=rng.uniform(-1, 1),
            haze=rng.uniform(0.2, 0.9),
            cloud=cloud,
            lamps=bool(light.mean() < rng.uniform(150, 200)),
            leaves=LEAVES[rng.permutation(len(LEAVES))[:2]],
        )

    def shining(self, lit: Array, unlit: Array) -> Array:
        """A color that shines by itself while the lamps are lit."""
        return lit / self.tint if self.lamps else unlit


def _tree(rng: np.random.Generator, setting: Setting, thin: float) -> Shapes:
    """A conifer, a poplar, a bush or a round crown of many blobs."""
    kind = rng.choice(("conifer", "poplar", "bush", "round", "round"))
    leaf, side = pick(rng, NEEDLES if kind == "conifer" else setting.leaves), np.sign(setting.sun)
    height = rng.uniform(2.5, 6)
    shapes: Shapes = [(_box(-0.03 * height, 0, 0.03 * height, 0.5 * height), WOOD)]
    if kind == "conifer":
        for step in range(4):
            half, low, top = 0.25 - 0.05 * step, 0.12 + 0.19 * step, 0.45 + 0.19 * step
            shapes.append((height * _polygon((-half, low), (half, low), (0, top)), leaf * 0.78))
            shapes.append((height * _polygon((0.2 * side * half, low), (side * half, low), (0, top)), leaf * 1.1))
    elif kind == "poplar":
        shapes.append((height * _disc(0, 0.56, 0.13, 0.46), leaf * 0.78))
        shapes.append((height * _disc(0.03 * side, 0.6, 0.08, 0.38), leaf * 1.08))
    else:
        centers, radii = rng.uniform((-0.26, 0.42), (0.26, 0.8), (6, 2)), rng.uniform(0.14, 0.21, 6)
        if kind == "bush":
            centers, radii = centers * (0.5, 0.3) - (0, 0.06), radii * 0.5
        for shade, shift, size in ((0.7, 0.0, 1.0), (0.95, 0.18, 0.8), (1.2, 0.42, 0.42)):
            for (x, y), r in zip(centers, radii, strict=True):
                blob = _disc(x + side * shift * r, y + shift * r, size * r, 0.92 * size * r)
                shapes.append((height * blob, leaf * shade))
    return shapes


def _house(rng: np.random.Generator, setting: Setting, thin: float) -> Shapes:
    """A tower, a long house or a house with its gable in front, seen from the corner."""
    kind, side = rng.choice(("tower", "long", "gable", "gable", "gable")), rng.choice((-1, 1))
    wall, roof = pick(rng, WALLS), pick(rng, ROOFS)
    low, high = {
        "tower": ((1.1, 5.0, 2.4, 0.8), (1.2, 7.0, 4.0, 0.9)),
        "long": ((2.5, 2.2, 1.2, 1.3), (3.5, 3.0, 1.8, 1.5)),
        "gable": ((1.4, 2.2, 1.3, 1.6), (1.8, 3.6, 1.8, 2.6)),
    }[kind]
    half, height, rise, depth = rng.uniform(low, high)
    far, edge, top = side * (half + depth), 1.08 * half, height + rise
    gable = kind == "gable"
    shapes: Shapes = [
        (_box(side * 1.2, height, side * 1.8, height + rise * (1.25 if gable else 0.5)), wall * 0.7),
        (_box(side * half, 0, far, height), wall * (1.06 if side * setting.sun > 0 else 0.72)),
        (_polygon((side * edge, height), (far, height), (far - side * half, top), (0, top)), roof),
        (_box(-half, 0, half, height), wall),
        (_polygon((-edge, height), (edge, height), (0, top)), wall * 0.96 if gable else roof * 0.9),
        (_polygon((0, top), (side * edge, height), (side * 0.86 * half, height), (0, top - 0.14 * rise)), roof * 0.8),
        (_box(-0.5, 0, 0.5, 1.9), roof * 0.7),
    ]
    frame, columns = blend(wall, CREAM, 0.7), int(half / 0.7)
    for y in np.arange(0.9, height - 1.2, 2.4):
        for x in half * (2 * np.arange(columns) + 1 - columns) / columns:
            if y > 1 or abs(x) > 0.8:
                pane = setting.shining(AMBER, GLASS) if rng.random() < 0.7 else GLASS * 0.8
                shapes.append((_box(x - 0.45, y - 0.1, x + 0.45, y + 1.3), frame))
                shapes.append((_box(x - 0.32, y, x + 0.32, y + 1.2), pane))
    return shapes


def _boat(rng: np.random.Generator, setting: Setting, thin: float) -> Shapes:
    """A boat under sail, one with furled sails, a fishing boat or a small open one."""
    kind = rng.choice(("sailing", "furled", "fishing", "open"), p=(0.45, 0.1, 0.25, 0.2))
    length, bow = 3.6 if kind == "open" else rng.uniform(5, 8), rng.choice((-1, 1))
    hull, trim, mast = pick(rng, HULLS), pick(rng, SAILS), max(0.1, 0.6 * thin) / length / 2
    shapes: Shapes = []
    if kind in ("sailing", "furled"):
        shapes.append((_box(-mast, 0.1, mast, 1.25), WOOD * 1.3))
    if kind == "sailing":
        shapes.append((_polygon((-0.03, 0.27), (-0.03, 1.2), (-0.45, 0.3)), trim))
        shapes.append((_polygon((0.04, 0.28), (0.04, 1.1), (0.47, 0.24)), trim * 0.9))
    elif kind == "furled":
        shapes.append((_polygon((-0.03, 0.23), (-0.03, 0.34), (-0.45, 0.24)), trim))
    elif kind == "fishing":
        shapes.append((_box(-mast, 0.1, mast, 0.8), WOOD))
        shapes.append((_box(-0.32, 0.1, -0.02, 0.42), pick(rng, WALLS)))
        shapes.append((_box(-0.35, 0.4, 0.0, 0.46), hull))
        shapes.append((_box(-0.2, 0.27, -0.06, 0.37), setting.shining(AMBER, GLASS)))
    shapes.append((_polygon((-0.5, 0.15), (0.52, 0.2), (0.38, -0.01), (-0.43, -0.01)), hull))
    shapes.append((_polygon((-0.5, 0.15), (0.52, 0.2), (0.49, 0.15), (-0.48, 0.1)), blend(hull, trim, 0.7)))
    return [(points * (bow * length, length), color) for points, color in shapes]


def _person(rng: np.random.Generator, setting: Setting, thin: float) -> Shapes:
    """Someone who stands or walks, with or without a hat."""
    coat, trousers, size = pick(rng, CLOTHES), 0.7 * pick(rng, CLOTHES), rng.uniform(1.0, 1.3)
    step = rng.uniform(0, 0.3)
    hand = 0.38 + step / 2
    shapes: Shapes = [
        (_polygon((-0.22, 0.95), (0.02, 0.95), (0.08 - step, 0), (-0.14 - step, 0)), trousers * 0.85),
        (_polygon((0.22, 0.95), (-0.02, 0.95), (step - 0.08, 0), (step + 0.14, 0)), trousers),
        (_polygon((-0.24, 0.85), (0.24, 0.85), (0.3, 1.5), (-0.3, 1.5)), coat),
        (_polygon((-0.3, 1.5), (-0.2, 1.5), (0.06 - hand, 0.85), (-0.06 - hand, 0.85)), coat * 0.85),
        (_polygon((0.3, 1.5), (0.2, 1.5), (hand - 0.06, 0.85), (hand + 0.06, 0.85)), coat * 0.85),
        (_disc(0, 1.72, 0.2, 0.23), pick(rng, SKINS)),
    ]
    if rng.random() < 0.6:
        shapes.append((_box(-0.22, 1.78, 0.22, 1.96), pick(rng, CLOTHES)))
    return [(points * size, color) for points, color in shapes]


def _pole(rng: np.random.Generator, setting: Setting, thin: float) -> Shapes:
    """A lamp post or a telegraph pole."""
    lamp, half, height = rng.random() < 0.6, max(0.28, thin) / 2, rng.uniform(3.2, 4.4)
    color = pick(rng, IRON if lamp else WOOD[None])
    shapes: Shapes = [(_box(-half, 0, half, height), color)]
    if lamp:
        shapes.append((_box(-2 * half, 0, 2 * half, 0.5), color))
        shapes.append((_disc(0, height, max(0.36, thin), max(0.42, thin)), setting.shining(AMBER, CREAM)))
    else:
        shapes += [(_box(-0.8, y * height, 0.8, y * height + 1.4 * half), color) for y in (0.7, 0.9)]
    return shapes


def balloon(rng: np.random.Generator, setting: Setting, thin: float) -> Shapes:
    """A striped hot-air balloon."""
    cloth, stripe, radius = pick(rng, CLOTHES), pick(rng, SAILS), rng.uniform(2.5, 5)
    shapes: Shapes = [
        (_polygon((-0.92, 1.6), (0.92, 1.6), (0.16, 0.55), (-0.16, 0.55)), cloth * 0.85),
        (_disc(0, 2, 1, 1.05), cloth),
        (_disc(0, 2, 0.68, 1.05), stripe),
        (_disc(0, 2, 0.3, 1.05), cloth),
        (_disc(0.3 * np.sign(setting.sun), 2.3, 0.5, 0.55), blend(cloth, CREAM, 0.35)),
        (_box(-0.16, 0.2, 0.16, 0.48), WOOD),
    ]
    return [(points * radius, color) for points, color in shapes]


Maker = Callable[[np.random.Generator, Setting, float], Shapes]
THINGS: dict[int, Maker] = {TREE: _tree, HOUSE: _house, BOAT: _boat, POLE: _pole, PERSON: _person, BALLOON: balloon}
