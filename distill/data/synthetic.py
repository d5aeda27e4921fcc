"""The embedded data set: a small harbour, drawn anew for every index, at changing hours and in changing weather.

It lets the whole pipeline run without a download, and it is made to be hard for a small network: colours overlap
between classes (a mirrored house is water, the sun is sky, a mast belongs to its boat while a lamp post is a pole),
so texture, shape and context have to tell; thin and rare things decide the mIoU.

A scene is painted from back to front on one uint8 canvas `[h, w, 4]` of red, green, blue and class id, at least
twice as large as the image. Things are polygons in metres on a ground plane seen from a little above, so their
size follows from where they stand. Waves, texture, shadows and sensor noise come last. No random number but the
sensor noise depends on the size: another size shows the same scene.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import cv2
import numpy as np

from distill.batch import VOID

Array = np.ndarray
Shapes = list[tuple[Array, Array]]  # polygons `[K, 2]` in metres, y up, each with its colour `[3]`, back to front

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
SKY, HILLS, WATER, GROUND, TREE, HOUSE, BOAT, POLE, PERSON, BALLOON = range(len(CLASSES))

SMALLEST_SIZE = 32
EYE_HEIGHT_METRES = 4.8
SUBPIXEL_BITS = 3  # polygon corners are rounded to eighths of a pixel of the canvas


def _colours(*rgb: tuple[float, float, float]) -> Array:
    return np.array(rgb, np.float32)


# From dawn over noon to night: the sky above, the sky at the horizon, the light, deep water.
HOURS = np.stack(
    [
        _colours((104, 126, 178), (252, 200, 176), (224, 196, 200), (62, 96, 128)),
        _colours((104, 172, 220), (228, 238, 232), (255, 248, 234), (44, 120, 142)),
        _colours((66, 146, 214), (196, 226, 236), (255, 255, 252), (26, 110, 150)),
        _colours((118, 156, 190), (255, 214, 146), (255, 222, 168), (54, 108, 122)),
        _colours((84, 76, 132), (248, 140, 100), (212, 156, 150), (52, 60, 100)),
        _colours((34, 42, 90), (122, 110, 156), (136, 136, 176), (28, 44, 82)),
    ]
)
GROUNDS = _colours((134, 158, 84), (104, 136, 74), (176, 160, 96), (214, 194, 148), (160, 152, 140))
LEAVES = _colours(
    (70, 120, 62), (104, 146, 66), (52, 96, 78), (86, 128, 84), (204, 134, 52), (178, 78, 54), (222, 162, 170)
)
NEEDLES = LEAVES[2:3]
WALLS = _colours(
    (240, 232, 214), (226, 184, 112), (176, 72, 56), (156, 184, 196), (226, 166, 150), (150, 158, 126), (126, 110, 98)
)
ROOFS = _colours((186, 92, 66), (96, 100, 116), (122, 78, 62), (70, 92, 96), (150, 118, 92))
HULLS = _colours((244, 240, 230), (182, 60, 50), (44, 74, 118), (58, 112, 100), (162, 108, 66), (60, 54, 60))
SAILS = _colours((250, 246, 234), (240, 222, 184), (198, 84, 60), (84, 120, 150))
CLOTHES = _colours(
    (206, 64, 60), (238, 190, 72), (58, 92, 146), (244, 240, 232), (66, 62, 70), (110, 142, 96), (150, 96, 140)
)
IRON = _colours((60, 54, 60), (52, 76, 78))
SKINS = _colours((236, 196, 168), (196, 146, 112), (128, 88, 66))
WOOD, AMBER, GLASS, CREAM = _colours((92, 72, 58), (255, 214, 124), (84, 104, 122), (250, 246, 232))

# How strongly fine grain, waves and blotches modulate each class: a table for `cv2.LUT`.
TEXTURE = np.zeros((256, 3), np.float32)
TEXTURE[: len(CLASSES)] = [
    (0.00, 0.00, 0.00),
    (0.05, 0.00, 0.10),
    (0.01, 0.12, 0.02),
    (0.04, 0.03, 0.08),
    (0.13, 0.00, 0.05),
    (0.03, 0.00, 0.05),
    (0.02, 0.00, 0.04),
    (0.05, 0.00, 0.00),
    (0.03, 0.00, 0.00),
    (0.02, 0.00, 0.02),
]


def _blend(a: Array, b: Array, share: float | Array) -> Array:
    """`a` where `share` is 0, `b` where it is 1."""
    return a + (b - a) * share


def _pick(rng: np.random.Generator, colours: Array) -> Array:
    """One of the colours, a little different every time."""
    return colours[rng.integers(len(colours))] + rng.uniform(-12, 12, 3)


def _noise(rng: np.random.Generator, rows: int, columns: int, height: int, width: int) -> Array:
    """Smooth noise through a grid of standard normal numbers: float32 `[height, width]`."""
    grid = rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def _ridge(rng: np.random.Generator, gain: float = 0.5) -> Array:
    """A fractal profile of 97 values, about -1 to 1; the higher `gain`, the more jagged."""
    x, line = np.linspace(0, 1, 97), np.zeros(97)
    for octave, knots in enumerate((4, 7, 13, 25, 49)):
        line += gain**octave * np.interp(x, np.linspace(0, 1, knots), rng.uniform(-1, 1, knots))
    return line


def _between(one: Array, other: Array, x: Array) -> Array:
    """The polygon between two profiles over `x`."""
    return np.concatenate([np.stack([x, one], 1), np.stack([x, other], 1)[::-1]])


def _polygon(*corners: tuple[float, float]) -> Array:
    return np.array(corners)


def _box(left: float, bottom: float, right: float, top: float) -> Array:
    return np.array([(left, bottom), (right, bottom), (right, top), (left, top)])


_ANGLES = np.arange(14) * np.pi / 7
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)


def _disc(x: float, y: float, width: float, height: float) -> Array:
    """An ellipse by its centre and half axes."""
    return _CIRCLE * (width, height) + (x, y)


@dataclass
class Setting:
    """The hour, the weather and the season.

    Attributes:
        above: colour of the sky above.
        low: colour of the sky at the horizon, and of the haze.
        tint: what the light leaves of a colour, 0.4 to 1, `[3]`.
        water: colour of deep water.
        sun: where the sun stands, -1 (left) to 1 (right).
        haze: how much haze there is, 0 to 1.
        cloud: how much of the sky is covered, 0 to 1.
        lamps: whether windows and lamps are lit.
        leaves: the season's colours `[2, 3]`.
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
        above, low, light, water = _blend(HOURS[int(hour)], HOURS[int(hour) + 1], hour % 1)
        cloud = rng.uniform(0.1, 1)
        grey, overcast = 2 * max(0.0, cloud - 0.7), np.full(3, 0.7 * light.mean())
        return cls(
            above=_blend(above, overcast * 0.85, grey),
            low=_blend(low, overcast * 1.1, grey),
            tint=light / 255,
            water=water,
            sun=rng.uniform(-1, 1),
            haze=rng.uniform(0.2, 0.9),
            cloud=cloud,
            lamps=bool(light.mean() < rng.uniform(150, 200)),
            leaves=LEAVES[rng.permutation(len(LEAVES))[:2]],
        )

    def shining(self, lit: Array, unlit: Array) -> Array:
        """A colour that shines by itself while the lamps are lit."""
        return lit / self.tint if self.lamps else unlit


def _tree(rng: np.random.Generator, setting: Setting, thin: float) -> Shapes:
    """A conifer, a poplar, a bush or a round crown of many blobs."""
    kind = rng.choice(("conifer", "poplar", "bush", "round", "round"))
    leaf, side = _pick(rng, NEEDLES if kind == "conifer" else setting.leaves), np.sign(setting.sun)
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
        centres, radii = rng.uniform((-0.26, 0.42), (0.26, 0.8), (6, 2)), rng.uniform(0.14, 0.21, 6)
        if kind == "bush":
            centres, radii = centres * (0.5, 0.3) - (0, 0.06), radii * 0.5
        for shade, shift, size in ((0.7, 0.0, 1.0), (0.95, 0.18, 0.8), (1.2, 0.42, 0.42)):
            for (x, y), r in zip(centres, radii, strict=True):
                blob = _disc(x + side * shift * r, y + shift * r, size * r, 0.92 * size * r)
                shapes.append((height * blob, leaf * shade))
    return shapes


def _house(rng: np.random.Generator, setting: Setting, thin: float) -> Shapes:
    """A tower, a long house or a house with its gable in front, seen from the corner."""
    kind, side = rng.choice(("tower", "long", "gable", "gable", "gable")), rng.choice((-1, 1))
    wall, roof = _pick(rng, WALLS), _pick(rng, ROOFS)
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
    frame, columns = _blend(wall, CREAM, 0.7), int(half / 0.7)
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
    hull, trim, mast = _pick(rng, HULLS), _pick(rng, SAILS), max(0.1, 0.6 * thin) / length / 2
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
        shapes.append((_box(-0.32, 0.1, -0.02, 0.42), _pick(rng, WALLS)))
        shapes.append((_box(-0.35, 0.4, 0.0, 0.46), hull))
        shapes.append((_box(-0.2, 0.27, -0.06, 0.37), setting.shining(AMBER, GLASS)))
    shapes.append((_polygon((-0.5, 0.15), (0.52, 0.2), (0.38, -0.01), (-0.43, -0.01)), hull))
    shapes.append((_polygon((-0.5, 0.15), (0.52, 0.2), (0.49, 0.15), (-0.48, 0.1)), _blend(hull, trim, 0.7)))
    return [(points * (bow * length, length), colour) for points, colour in shapes]


def _person(rng: np.random.Generator, setting: Setting, thin: float) -> Shapes:
    """Someone who stands or walks, with or without a hat."""
    coat, trousers, size = _pick(rng, CLOTHES), 0.7 * _pick(rng, CLOTHES), rng.uniform(1.0, 1.3)
    step = rng.uniform(0, 0.3)
    hand = 0.38 + step / 2
    shapes: Shapes = [
        (_polygon((-0.22, 0.95), (0.02, 0.95), (0.08 - step, 0), (-0.14 - step, 0)), trousers * 0.85),
        (_polygon((0.22, 0.95), (-0.02, 0.95), (step - 0.08, 0), (step + 0.14, 0)), trousers),
        (_polygon((-0.24, 0.85), (0.24, 0.85), (0.3, 1.5), (-0.3, 1.5)), coat),
        (_polygon((-0.3, 1.5), (-0.2, 1.5), (0.06 - hand, 0.85), (-0.06 - hand, 0.85)), coat * 0.85),
        (_polygon((0.3, 1.5), (0.2, 1.5), (hand - 0.06, 0.85), (hand + 0.06, 0.85)), coat * 0.85),
        (_disc(0, 1.72, 0.2, 0.23), _pick(rng, SKINS)),
    ]
    if rng.random() < 0.6:
        shapes.append((_box(-0.22, 1.78, 0.22, 1.96), _pick(rng, CLOTHES)))
    return [(points * size, colour) for points, colour in shapes]


def _pole(rng: np.random.Generator, setting: Setting, thin: float) -> Shapes:
    """A lamp post or a telegraph pole."""
    lamp, half, height = rng.random() < 0.6, max(0.28, thin) / 2, rng.uniform(3.2, 4.4)
    colour = _pick(rng, IRON if lamp else WOOD[None])
    shapes: Shapes = [(_box(-half, 0, half, height), colour)]
    if lamp:
        shapes.append((_box(-2 * half, 0, 2 * half, 0.5), colour))
        shapes.append((_disc(0, height, max(0.36, thin), max(0.42, thin)), setting.shining(AMBER, CREAM)))
    else:
        shapes += [(_box(-0.8, y * height, 0.8, y * height + 1.4 * half), colour) for y in (0.7, 0.9)]
    return shapes


def _balloon(rng: np.random.Generator, setting: Setting, thin: float) -> Shapes:
    """A striped hot-air balloon."""
    cloth, stripe, radius = _pick(rng, CLOTHES), _pick(rng, SAILS), rng.uniform(2.5, 5)
    shapes: Shapes = [
        (_polygon((-0.92, 1.6), (0.92, 1.6), (0.16, 0.55), (-0.16, 0.55)), cloth * 0.85),
        (_disc(0, 2, 1, 1.05), cloth),
        (_disc(0, 2, 0.68, 1.05), stripe),
        (_disc(0, 2, 0.3, 1.05), cloth),
        (_disc(0.3 * np.sign(setting.sun), 2.3, 0.5, 0.55), _blend(cloth, CREAM, 0.35)),
        (_box(-0.16, 0.2, 0.16, 0.48), WOOD),
    ]
    return [(points * radius, colour) for points, colour in shapes]


Maker = Callable[[np.random.Generator, Setting, float], Shapes]
THINGS: dict[int, Maker] = {TREE: _tree, HOUSE: _house, BOAT: _boat, POLE: _pole, PERSON: _person, BALLOON: _balloon}


@dataclass
class Thing:
    """A thing and where its foot stands, in shares of the width and the height; `scale` is canvas pixels a metre."""

    shapes: Shapes
    label: int
    x: float
    y: float
    scale: float


class Canvas:
    """The picture while it is painted, and the labels with it.

    Attributes:
        pixels: uint8 `[h, w, 4]`: red, green, blue, class id.
        shade: uint8 `[h, w]`: 255 where a thing keeps the sun from the ground.
        unit: pixels that stand for one height of the scene.
        horizon: its place in the picture, 0 (top) to 1.
    """

    def __init__(self, height: int, width: int, horizon: float, setting: Setting) -> None:
        """An empty canvas, all sky."""
        self.height, self.width, self.horizon, self.setting = height, width, horizon, setting
        self.unit = (height * width / 1.25) ** 0.5
        self.pixels = np.zeros((height, width, 4), np.uint8)
        self.shade = np.zeros((height, width), np.uint8)

    def seen(self, colours: Array, label: int, distance: float) -> list[list[int]]:
        """Colours `[N, 3]` under this light through haze (distance 0 to 1), with the label: ready to be painted."""
        colours = _blend(colours * self.setting.tint, self.setting.low, distance * self.setting.haze)
        return [[*colour, label] for colour in colours.clip(0, 255).astype(int).tolist()]

    def fill(self, points: Array, colour: Array, label: int, distance: float) -> None:
        """Paint a polygon `[K, 2]` in shares of the width and the height."""
        corners = (points * (self.width, self.height) * 2**SUBPIXEL_BITS).astype(np.int32)
        cv2.fillPoly(self.pixels, [corners], self.seen(colour[None], label, distance)[0], shift=SUBPIXEL_BITS)

    def make(self, rng: np.random.Generator, label: int, x: float, y: float) -> Thing:
        """A thing that stands at (x, y), in perspective; its thinnest parts are told how thin they may be."""
        scale = (y - self.horizon) / EYE_HEIGHT_METRES * self.unit
        return Thing(THINGS[label](rng, self.setting, 0.02 * self.unit / scale), label, x, y, scale)

    def corners(self, thing: Thing, axes: Array) -> list[Array]:
        """Its polygons on the canvas; `axes` maps metres right and up to metres right and down."""
        foot = np.array((thing.x * self.width, thing.y * self.height))
        points = np.concatenate([polygon for polygon, _ in thing.shapes])
        points = ((points @ axes * thing.scale + foot) * 2**SUBPIXEL_BITS).astype(np.int32)
        ends = list(accumulate(len(polygon) for polygon, _ in thing.shapes))
        return [points[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def stamp(self, thing: Thing, mirrored: bool = False) -> None:
        """Paint a thing, or its mirror image in the water below it."""
        distance = min(1, 0.05 / (0.02 + thing.scale / self.unit * EYE_HEIGHT_METRES))
        colours, axes, label = np.stack([colour for _, colour in thing.shapes]), np.diag((1, -1)), thing.label
        if mirrored:
            colours = _blend(colours * 0.8, self.setting.water / self.setting.tint, 0.5)
            axes, label = np.eye(2), WATER
        for polygon, colour in zip(self.corners(thing, axes), self.seen(colours, label, distance), strict=True):
            cv2.fillPoly(self.pixels, [polygon], colour, shift=SUBPIXEL_BITS)

    def cast(self, thing: Thing) -> None:
        """The shadow that a thing throws on the ground."""
        for polygon in self.corners(thing, np.array([(1, 0), (-1.1 * self.setting.sun, 0.2)])):
            cv2.fillPoly(self.shade, [polygon], 255, shift=SUBPIXEL_BITS)


EDGE_TO_EDGE = np.linspace(-0.01, 1.01, 97)


def _paint_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    """A gradient, the glow of the sun or the moon, and clouds, worked at low resolution."""
    setting, rows, columns = canvas.setting, 96, 120
    y, x = np.mgrid[0 : 1 : rows * 1j, 0 : 1 : columns * 1j].astype(np.float32)[..., None]
    sky = _blend(setting.above, setting.low, np.minimum(1, y / canvas.horizon) ** 1.4)
    away = np.hypot((x - 0.5 - 0.42 * setting.sun) * 1.25, y - canvas.horizon * rng.uniform(0.15, 0.8))
    shine = _blend(setting.low, CREAM, 0.75)
    sky = _blend(sky, shine, 0.7 * np.exp(-((away / 0.22) ** 1.2)))
    if rng.random() < 0.7:
        sky = _blend(sky, shine, np.clip((0.045 - away) * 150, 0, 1))
    cover = sum(_noise(rng, n, n, rows, columns) / n**0.6 for n in (4, 8, 16, 40)) + 1.6 * setting.cloud - 1.1
    cover = np.clip(cover * 1.6, 0, 1)[..., None] * np.clip(1.4 - y / canvas.horizon, 0, 1)
    cloud = _blend(CREAM * setting.tint, setting.low, 0.35)
    sky = _blend(sky, _blend(cloud, cloud * 0.78, np.roll(cover, -3, 0) * cover), cover * 0.85)
    canvas.pixels[..., :3] = cv2.resize(sky.clip(0, 255).astype(np.uint8), (canvas.width, canvas.height))


def _paint_hills(canvas: Canvas, rng: np.random.Generator) -> None:
    """Two to four ridges, the farther the hazier."""
    base, gain, ridges = np.full(97, canvas.horizon + 0.03), rng.uniform(0.35, 0.6), rng.integers(2, 5)
    colour = _blend(_pick(rng, GROUNDS[:3]) * 0.7, _colours((88, 100, 128))[0], rng.uniform(0, 0.9))
    for near in np.arange(1, ridges + 1) / ridges:
        rise = rng.uniform(0.05, 0.22) * (1.2 - 0.8 * near)
        top = canvas.horizon - rise - 0.5 * rise * _ridge(rng, gain)
        ridge = _between(np.minimum(top, canvas.horizon), base, EDGE_TO_EDGE)
        canvas.fill(ridge, colour * (1.1 - 0.3 * near), HILLS, 1 - 0.7 * near)


def _paint_balloons(canvas: Canvas, rng: np.random.Generator) -> None:
    """On some days, a few balloons over the hills."""
    for _ in range(max(0, int(rng.integers(-1, 4)))):
        x, y, scale = rng.uniform(0.05, 0.95), rng.uniform(0.4, 1) * canvas.horizon, rng.uniform(0.012, 0.024)
        canvas.stamp(Thing(_balloon(rng, canvas.setting, 0), BALLOON, x, y, scale * canvas.unit))


def _paint_far_shore(canvas: Canvas, rng: np.random.Generator, waterline: float) -> None:
    """A strip of land with a village and a wood; below it the water, which mirrors all that."""
    top = canvas.horizon - 0.012 + 0.012 * _ridge(rng)
    canvas.fill(_between(top, np.full(97, waterline), EDGE_TO_EDGE), _pick(rng, GROUNDS), GROUND, 0.6)
    village, wood = rng.uniform(0, 1, 2)
    for y in np.sort(rng.uniform(canvas.horizon + 0.025, waterline, rng.integers(4, 11))):
        label, x = (HOUSE, village) if rng.random() < 0.4 else (TREE, wood)
        canvas.stamp(canvas.make(rng, label, x + rng.normal(0, 0.2), y))
    first = round(waterline * canvas.height)
    mirrored = canvas.pixels[np.maximum(0, 2 * first - 1 - np.arange(first, canvas.height)), :, :3]
    depth = np.linspace(0.3, 0.8, len(mirrored), dtype=np.float32)[:, None, None]
    canvas.pixels[first:, :, :3] = _blend(mirrored * np.float32(0.94), canvas.setting.water, depth)
    canvas.pixels[first:, :, 3] = WATER


def _paint_headland(canvas: Canvas, rng: np.random.Generator, waterline: float) -> None:
    """A tongue of land from one side, with houses and trees that the water mirrors."""
    foot, reach, side = waterline + rng.uniform(0.05, 0.12), rng.uniform(0.25, 0.6), rng.choice((0, 1))
    things = []
    for along in rng.uniform(0, 0.85, rng.integers(4, 9)):
        y = foot + (0.012 - 0.04 * rng.random()) * (1 - along**2)
        things.append(canvas.make(rng, HOUSE if rng.random() < 0.45 else TREE, abs(side - along * reach), y))
    things.sort(key=lambda thing: thing.y)
    for thing in things:
        canvas.stamp(thing, mirrored=True)
    along = np.linspace(0, 1, 97)
    back, front = foot - 0.05 * (1 - along**2), foot + 0.02 * (1 - along**3) + 0.006 * _ridge(rng)
    canvas.fill(_between(back, front, np.abs(side - along * reach)), _pick(rng, GROUNDS), GROUND, 0.3)
    for thing in things:
        canvas.cast(thing)
        canvas.stamp(thing)


def _paint_boats(canvas: Canvas, rng: np.random.Generator, waterline: float, shore: Array) -> None:
    """One boat to four, anywhere on the near water."""
    things = []
    for _ in range(rng.integers(1, 5)):
        x = rng.uniform(0.02, 0.98)
        y = rng.uniform(waterline + 0.07, max(waterline + 0.08, shore[int(96 * x)] - 0.01))
        things.append(canvas.make(rng, BOAT, x, y))
    for thing in sorted(things, key=lambda thing: thing.y):
        canvas.stamp(thing, mirrored=True)
        canvas.stamp(thing)


def _paint_near_shore(canvas: Canvas, rng: np.random.Generator, shore: Array) -> None:
    """The land in front, a strip of beach or quay at its edge, and all that stands there."""
    edge, bottom = shore + rng.uniform(0.008, 0.05) + 0.01 * _ridge(rng), np.full(97, 1.05)
    canvas.fill(_between(shore, bottom, EDGE_TO_EDGE), _pick(rng, GROUNDS[2:]), GROUND, 0.05)
    canvas.fill(_between(np.minimum(edge, 1.05), bottom, EDGE_TO_EDGE), _pick(rng, GROUNDS), GROUND, 0.05)
    things, middle = [], rng.uniform(0.25, 0.75)
    for label, most, spread, reach in (
        (HOUSE, 2, 1.0, 0.02),
        (TREE, 4, 1.0, 0.3),
        (POLE, 3, 1.0, 0.9),
        (PERSON, 5, 0.5, 0.9),
    ):
        for _ in range(rng.integers(most + 1)):
            x = middle + (rng.random() - middle) * spread
            y = shore[int(96 * x)] + 0.01
            y += (1.03 - y) * rng.uniform(0, reach)
            things.append(canvas.make(rng, label, x, y))
    for thing in sorted(things, key=lambda thing: thing.y):
        canvas.cast(thing)
        canvas.stamp(thing)


def _develop(canvas: Canvas, rng: np.random.Generator) -> Array:
    """The painted canvas with waves, texture and shadows: float32 `[h, w, 3]`."""
    height, width, label = canvas.height, canvas.width, cv2.extractChannel(canvas.pixels, 3)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    below = np.maximum(0, y / height - canvas.horizon)
    # Rows of the wave pattern are packed towards the horizon, as perspective packs them.
    packed = (160 * np.log1p(below[:, 0] * 8)).astype(int) % 320
    waves = _noise(rng, 160, 20, 320, width)[packed]
    shift = waves * below * np.float32(0.03 * canvas.unit)
    wavy = cv2.remap(canvas.pixels, x + shift, y + 0.3 * shift, cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
    wet = (label == WATER).astype(np.uint8)
    fields = _noise(rng, 128, 160, height, width), waves, _noise(rng, 14, 12, height, width)
    gain = 1 + sum(cv2.LUT(label, table) * field for table, field in zip(TEXTURE.T, fields, strict=True))
    shadow = cv2.blur(canvas.shade, (3, 3)) * np.float32(0.45 / 255 * (1.1 - canvas.setting.cloud))
    gain *= 1 - shadow * (label == GROUND)
    picture = cv2.copyTo(wavy, wet, canvas.pixels.copy())
    return cv2.multiply(picture, cv2.merge([gain] * 4), dtype=cv2.CV_32F)[..., :3]


def _outlines(label: Array, width: int) -> Array:
    """Where land, trees, houses and boats meet each other or what lies behind, thin things apart: bool `[h, w]`."""
    kernel = np.ones((width + 1, width + 1), np.uint8)
    low, high = cv2.erode(label, kernel), cv2.dilate(label, kernel)
    return (low != high) & (high >= GROUND) & (high < POLE)


def render(seed: int, index: int, height: int, width: int) -> tuple[Array, Array]:
    """A scene and its labels.

    Args:
        seed: names the set; training and validation take different ones. Not negative.
        index: names the scene within the set. Not negative.
        height: of the image in pixels, at least 32.
        width: of the image in pixels, at least 32.

    Returns:
        The image, uint8 RGB `[H, W, 3]`, and the mask, uint8 `[H, W]`: indices into `CLASSES`, or `VOID` along
        most outlines.

    Raises:
        ValueError: if the image is smaller than 32x32, or `seed` or `index` is negative.
    """
    if min(height, width) < SMALLEST_SIZE:
        raise ValueError(f"a scene of {height}x{width} is too small: ask for {SMALLEST_SIZE}x{SMALLEST_SIZE} or more")
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    horizon = rng.uniform(0.34, 0.5)
    waterline = horizon + rng.uniform(0.045, 0.08)
    shore = rng.uniform(0.72, 0.9) + rng.uniform(-0.14, 0.14) * np.linspace(-1, 1, 97) + 0.025 * _ridge(rng)
    shore = np.maximum(shore, waterline + 0.08)
    times = max(2, -(-192 // min(height, width)))
    canvas = Canvas(height * times, width * times, horizon, Setting.draw(rng))
    _paint_sky(canvas, rng)
    _paint_hills(canvas, rng)
    _paint_balloons(canvas, rng)
    _paint_far_shore(canvas, rng, waterline)
    if rng.random() < 0.6:
        _paint_headland(canvas, rng, waterline)
    _paint_boats(canvas, rng, waterline, shore)
    _paint_near_shore(canvas, rng, shore)
    image = cv2.resize(_develop(canvas, rng), (width, height), interpolation=cv2.INTER_AREA)
    image = image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(1, 4))
    label = canvas.pixels[..., 3]
    mask = np.where(_outlines(label, times), np.uint8(VOID), label)[times // 2 :: times, times // 2 :: times]
    return image.clip(0, 255).astype(np.uint8), np.ascontiguousarray(mask)
