"""The embedded data set: a small harbour, drawn anew for every index, at changing hours and in changing weather.

It lets the whole pipeline run without a download, and it is made to be hard for a small network: colours overlap
between classes (a reflected house is water, a cloud is sky, a mast belongs to its boat while a lamp post is a
pole), so texture, shape and context have to tell; thin and rare things decide the mIoU.

A scene is painted from back to front on one uint8 canvas `[h, w, 4]` of red, green, blue and class id, at least
twice as large as the image. Things are polygons in metres on a ground plane seen from a little above, so their
size follows from where they stand. Texture, waves, shadows and sensor noise come last. No random number but the
sensor noise depends on the size: another size shows the same scene.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import cv2
import numpy as np

from distill.batch import VOID

CLASSES = ("sky", "hills", "water", "ground", "tree", "house", "boat", "pole", "person", "bird")
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
SKY, HILLS, WATER, GROUND, TREE, HOUSE, BOAT, POLE, PERSON, BIRD = range(len(CLASSES))
SMALLEST_SIZE = 32

Array = np.ndarray
Shapes = list[tuple[Array, Array]]  # polygons `[K, 2]` in metres, y up, each with its colour `[3]`, back to front

EYE_HEIGHT_METRES = 5.0
# Colours of the sky above, of the sky at the horizon, of the light, of deep water: from dawn over noon to night.
HOURS = np.float32(
    [
        [(104, 126, 178), (252, 200, 176), (224, 196, 200), (62, 96, 128)],
        [(104, 172, 220), (228, 238, 232), (255, 248, 234), (44, 120, 142)],
        [(66, 146, 214), (196, 226, 236), (255, 255, 252), (26, 110, 150)],
        [(118, 156, 190), (255, 214, 146), (255, 222, 168), (54, 108, 122)],
        [(84, 76, 132), (248, 140, 100), (212, 156, 150), (52, 60, 100)],
        [(30, 36, 80), (112, 100, 146), (120, 120, 162), (26, 40, 76)],
    ]
)
FOLIAGE = np.float32(
    [(70, 120, 62), (104, 146, 66), (52, 96, 78), (86, 128, 84), (204, 134, 52), (178, 78, 54), (222, 162, 170)]
)
WALLS = np.float32(
    [(240, 232, 214), (226, 184, 112), (176, 72, 56), (156, 184, 196), (226, 166, 150), (150, 158, 126), (126, 110, 98)]
)
ROOFS = np.float32([(186, 92, 66), (96, 100, 116), (122, 78, 62), (70, 92, 96), (150, 118, 92)])
HULLS = np.float32([(244, 240, 230), (182, 60, 50), (44, 74, 118), (58, 112, 100), (162, 108, 66), (60, 54, 60)])
SAILS = np.float32([(250, 246, 234), (240, 222, 184), (198, 84, 60), (84, 120, 150)])
CLOTHES = np.float32(
    [(206, 64, 60), (238, 190, 72), (58, 92, 146), (244, 240, 232), (66, 62, 70), (110, 142, 96), (150, 96, 140)]
)
SKINS = np.float32([(236, 196, 168), (196, 146, 112), (128, 88, 66)])
GROUNDS = np.float32([(134, 158, 84), (104, 136, 74), (176, 160, 96), (214, 194, 148), (160, 152, 140)])
WOOD = np.float32((92, 72, 58))
AMBER = np.float32((255, 214, 124))
GLASS = np.float32((84, 104, 122))

# How strongly fine grain, waves and blotches modulate each class; a table of 256 for `cv2.LUT`.
TEXTURE = np.zeros((256, 3), np.float32)
TEXTURE[: len(CLASSES)] = [
    (0.00, 0.00, 0.00),
    (0.05, 0.00, 0.10),
    (0.01, 0.12, 0.02),
    (0.05, 0.03, 0.09),
    (0.13, 0.00, 0.05),
    (0.03, 0.00, 0.05),
    (0.02, 0.00, 0.04),
    (0.05, 0.00, 0.00),
    (0.03, 0.00, 0.00),
    (0.02, 0.00, 0.00),
]


def _blend(a: Array, b: Array, share: float | Array) -> Array:
    """`a` where `share` is 0, `b` where it is 1."""
    return a + (b - a) * share


def _pick(rng: np.random.Generator, colours: Array, jitter: float = 12) -> Array:
    """One of the colours, a little different every time."""
    return colours[rng.integers(len(colours))] + rng.uniform(-jitter, jitter, 3)


def _noise(rng: np.random.Generator, rows: int, columns: int, height: int, width: int) -> Array:
    """Smooth noise through a grid of standard normal numbers: float32 `[height, width]`."""
    grid = rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def _ridge(rng: np.random.Generator, gain: float) -> Array:
    """A fractal profile of 97 values, about -1 to 1; the higher `gain`, the more jagged."""
    x, line = np.linspace(0, 1, 97), np.zeros(97)
    for octave, knots in enumerate((4, 7, 13, 25, 49)):
        line += gain**octave * np.interp(x, np.linspace(0, 1, knots), rng.uniform(-1, 1, knots))
    return line


def _box(left: float, bottom: float, right: float, top: float) -> Array:
    return np.array([(left, bottom), (right, bottom), (right, top), (left, top)])


_CIRCLE = np.stack([np.cos(np.arange(14) * np.pi / 7), np.sin(np.arange(14) * np.pi / 7)], 1)


def _disc(x: float, y: float, width: float, height: float) -> Array:
    """An ellipse by its centre and half axes."""
    return _CIRCLE * (width, height) + (x, y)


@dataclass
class Setting:
    """The hour, the weather and the season.

    Attributes:
        top: colour of the sky above.
        low: colour of the sky at the horizon, and of the haze.
        tint: what the light leaves of a colour, 0.4 to 1, `[3]`.
        water: colour of deep water.
        sun: where the sun stands, -1 (left) to 1 (right).
        haze: how much haze there is, 0 to 1.
        cloud: how much of the sky is covered, 0 to 1.
        lamps: whether windows and lamps are lit.
        foliage: this season's colours `[2, 3]`.
    """

    top: Array
    low: Array
    tint: Array
    water: Array
    sun: float
    haze: float
    cloud: float
    lamps: bool
    foliage: Array

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Setting:
        """Some hour of some day."""
        hour = rng.uniform(0, len(HOURS) - 1.001)
        top, low, tint, water = _blend(HOURS[int(hour)], HOURS[int(hour) + 1], hour % 1)
        cloud = rng.uniform(0.1, 1)
        grey = max(0.0, cloud - 0.7) * 2
        overcast = np.float32([172, 178, 182]) * (tint.mean() / 255)
        lamps = tint.mean() < rng.uniform(150, 200)
        foliage = FOLIAGE[rng.permutation(len(FOLIAGE))[:2]]
        return cls(
            _blend(top, overcast * 0.85, grey),
            _blend(low, overcast * 1.1, grey),
            tint / 255,
            water,
            rng.uniform(-1, 1),
            rng.uniform(0.2, 0.9),
            cloud,
            bool(lamps),
            foliage,
        )

    def lit(self, colour: Array, otherwise: Array) -> Array:
        """A colour that shines by itself while the lamps are lit."""
        return colour / self.tint if self.lamps else otherwise


def _tree(rng: np.random.Generator, setting: Setting, slim: float) -> Shapes:
    """A conifer, a poplar, a bush or a round crown of many blobs."""
    height, kind = rng.uniform(2.5, 6), rng.choice(5)
    leaf, side = _pick(rng, setting.foliage), np.sign(setting.sun)
    shapes: Shapes = [(_box(-0.03 * height, 0, 0.03 * height, 0.5 * height), WOOD)]
    if kind == 0:
        leaf = _pick(rng, FOLIAGE[2:3])
        for step in range(4):
            half, low, top = height * (0.25 - 0.05 * step), height * (0.12 + 0.19 * step), height * 0.33
            shapes.append((np.array([(-half, low), (half, low), (0, low + top)]), leaf * 0.78))
            shapes.append((np.array([(0.2 * side * half, low), (side * half, low), (0, low + top)]), leaf * 1.1))
    elif kind == 1:
        shapes.append((_disc(0, 0.56 * height, 0.13 * height, 0.46 * height), leaf * 0.78))
        shapes.append((_disc(0.03 * side * height, 0.6 * height, 0.08 * height, 0.38 * height), leaf * 1.08))
    else:
        centres = rng.uniform((-0.26, 0.42), (0.26, 0.8), (7, 2)) * height
        radii = rng.uniform(0.13, 0.21, 7) * height
        if kind == 2:
            centres, radii = centres * (0.5, 0.3) - (0, 0.06 * height), radii * 0.5
        for shade, shift, size in ((0.7, 0.0, 1.0), (0.95, 0.18, 0.8), (1.2, 0.42, 0.42)):
            for (x, y), radius in zip(centres, radii, strict=True):
                middle = (x + side * shift * radius, y + shift * radius)
                shapes.append((_disc(*middle, size * radius, size * radius * 0.92), leaf * shade))
    return shapes


def _house(rng: np.random.Generator, setting: Setting, slim: float) -> Shapes:
    """A gabled house, a long house or a tower, seen from the corner."""
    wall, roof, side = _pick(rng, WALLS), _pick(rng, ROOFS), rng.choice((-1, 1))
    kind = rng.choice(5)
    if kind == 0:
        width, height, rise, depth = 2.2, rng.uniform(5, 7), rng.uniform(2.4, 4), 0.8
    elif kind == 1:
        width, height, rise, depth = rng.uniform(5, 7), rng.uniform(2.2, 3), rng.uniform(1.2, 1.8), 1.4
    else:
        width, height, rise, depth = rng.uniform(3, 4), rng.uniform(2.2, 4), rng.uniform(1.4, 2), rng.uniform(2, 3)
    half, edge = width / 2, 1.08 * width / 2
    sunny = 1.06 if side * setting.sun > 0 else 0.72
    far = side * (half + depth)
    shapes: Shapes = [
        (_box(side * half, 0, far, height), wall * sunny),
        (np.array([(side * edge, height), (far, height), (far - side * half, height + rise), (0, height + rise)]), roof),
        (_box(-half, 0, half, height), wall),
        (np.array([(-edge, height), (edge, height), (0, height + rise)]), wall * 0.96 if kind > 1 else roof * 0.9),
        (np.array([(0, height + rise), (side * edge, height), (side * half * 0.86, height), (0, height + rise * 0.86)]),
         roof * 0.8),
    ]
    if kind > 1:
        shapes.insert(0, (_box(side * 1.2, height, side * 1.9, height + rise * 1.25), wall * 0.7))
    frame = _blend(wall, np.float32((250, 248, 240)), 0.7)
    for y in np.arange(0.9, height - 1.2, 2.5):
        for x in np.linspace(-half, half, int(width / 1.5) + 1)[:-1] + width / int(width / 1.5) / 2:
            pane = setting.lit(AMBER, GLASS) if rng.random() < 0.7 else GLASS * 0.8
            shapes.append((_box(x - 0.5, y - 0.1, x + 0.5, y + 1.4), frame))
            shapes.append((_box(x - 0.36, y, x + 0.36, y + 1.25), pane))
        if depth > 2.5:
            shapes.append((_box(far - side * depth * 0.7, y, far - side * depth * 0.4, y + 1.2), GLASS * 0.8))
    shapes.append((_box(-0.55, 0, 0.55, 2.0), roof * 0.7))
    return shapes


def _boat(rng: np.random.Generator, setting: Setting, slim: float) -> Shapes:
    """A sailing boat, with its sails set or furled, a fishing boat or a small open one."""
    kind, length, bow = rng.choice(4), rng.uniform(5, 8), rng.choice((-1, 1))
    if kind == 3:
        length = 3.6
    hull, trim, mast = _pick(rng, HULLS), _pick(rng, SAILS), max(0.1, slim)
    deck = np.array([(-0.5, 0.15), (0.52, 0.2), (0.38, -0.01), (-0.43, -0.01)])
    shapes: Shapes = []
    if kind < 2:
        shapes.append((_box(-mast / 2, 0.1 * length, mast / 2, 1.25 * length), WOOD * 1.3))
        sail = np.array([(-0.03, 0.27), (-0.03, 1.2), (-0.45, 0.3)])
        shapes.append((sail * length if kind == 0 else sail * (1, 0.12) * length + (0, 0.2 * length), trim))
        if kind == 0:
            shapes.append((np.array([(0.04, 0.28), (0.04, 1.1), (0.47, 0.24)]) * length, trim * 0.9))
    elif kind == 2:
        shapes.append((_box(-mast / 2, 0.1 * length, mast / 2, 0.8 * length), WOOD))
        shapes.append((_box(-0.32 * length, 0.1 * length, -0.02 * length, 0.42 * length), _pick(rng, WALLS)))
        shapes.append((_box(-0.35 * length, 0.4 * length, 0.0, 0.46 * length), hull))
        shapes.append((_box(-0.2 * length, 0.27 * length, -0.06 * length, 0.37 * length), setting.lit(AMBER, GLASS)))
    shapes.append((deck * length, hull))
    shapes.append((np.array([(-0.5, 0.15), (0.52, 0.2), (0.49, 0.15), (-0.48, 0.1)]) * length, _blend(hull, trim, 0.7)))
    return [(points * (bow, 1), colour) for points, colour in shapes]


def _person(rng: np.random.Generator, setting: Setting, slim: float) -> Shapes:
    """Someone who stands or walks, with or without a hat."""
    coat, trousers, skin, stride = _pick(rng, CLOTHES), _pick(rng, CLOTHES) * 0.7, _pick(rng, SKINS), rng.uniform(0, 0.3)
    tall = rng.uniform(0.8, 1.1)
    shapes = [
        (np.array([(-0.22, 0.95), (0.02, 0.95), (-stride + 0.08, 0), (-stride - 0.14, 0)]), trousers * 0.85),
        (np.array([(-0.02, 0.95), (0.22, 0.95), (stride + 0.14, 0), (stride - 0.08, 0)]), trousers),
        (np.array([(-0.24, 0.85), (0.24, 0.85), (0.3, 1.5), (-0.3, 1.5)]), coat),
        (np.array([(-0.3, 1.5), (-0.2, 1.5), (-0.32 - stride / 2, 0.85), (-0.44 - stride / 2, 0.85)]), coat * 0.85),
        (np.array([(0.3, 1.5), (0.2, 1.5), (0.32 + stride / 2, 0.85), (0.44 + stride / 2, 0.85)]), coat * 0.85),
        (_disc(0, 1.72, 0.2, 0.23), skin),
    ]
    if rng.random() < 0.6:
        shapes.append((_box(-0.22, 1.78, 0.22, 1.96), _pick(rng, CLOTHES)))
    return [(points * tall, colour) for points, colour in shapes]


def _pole(rng: np.random.Generator, setting: Setting, slim: float) -> Shapes:
    """A lamp post or a telegraph pole."""
    half, height, dark = max(0.13, slim) / 2, rng.uniform(4.2, 6), _pick(rng, HULLS[4:])
    shapes: Shapes = [(_box(-half, 0, half, height), dark)]
    if rng.random() < 0.6:
        shapes.append((_box(-2 * half, 0, 2 * half, 0.5), dark))
        shapes.append((_disc(0, height, max(0.3, slim), max(0.36, slim)), setting.lit(AMBER, HULLS[0])))
    else:
        for y in (0.8, 0.92):
            shapes.append((_box(-0.9, height * y - half, 0.9, height * y + half), dark))
    return shapes


def _pile(rng: np.random.Generator, setting: Setting, slim: float) -> Shapes:
    """A mooring post in the water."""
    half, height = max(0.2, slim / 2), rng.uniform(1.2, 2.2)
    return [
        (_box(-half, 0, half, height), _pick(rng, WOOD[None])),
        (_box(-half, height * 0.8, half, height), np.float32((226, 222, 210))),
    ]


def _bird(rng: np.random.Generator, setting: Setting, slim: float) -> Shapes:
    """A gull on the wing."""
    lift, feather = rng.uniform(-0.1, 0.5), rng.choice((235, 190, 90)) * np.ones(3)
    wing = np.array([(0, 0.12), (0.5, 0.28 + lift), (1.1, lift), (0.55, 0.06 + lift), (0.1, -0.12)])
    body = np.array([(-0.32, -0.14), (0.05, 0.12), (0.4, -0.02), (0.05, -0.16)])
    return [(wing * (-1, 1), feather * 0.8), (wing, feather), (body, feather * 0.92)]


Maker = Callable[[np.random.Generator, Setting, float], Shapes]


@dataclass
class Thing:
    """A thing and where its foot stands, in shares of the width and the height; `scale` is pixels a metre."""

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

    def light(self, colours: Array, label: int, distance: float) -> list[list[int]]:
        """What is seen of colours `[N, 3]` at a distance (0 to 1), with the label: ready to be painted."""
        seen = _blend(colours * self.setting.tint, self.setting.low, distance * self.setting.haze)
        return [[*colour, label] for colour in seen.clip(0, 255).astype(int).tolist()]

    def fill(self, points: Array, colour: Array, label: int, distance: float) -> None:
        """A polygon `[K, 2]` in shares of the width and the height."""
        corners = (points * (self.width * 8, self.height * 8)).astype(np.int32)
        cv2.fillPoly(self.pixels, [corners], self.light(colour[None], label, distance)[0], shift=3)

    def make(self, rng: np.random.Generator, maker: Maker, label: int, x: float, y: float) -> Thing:
        """A thing that stands at (x, y), in perspective."""
        scale = (y - self.horizon) / EYE_HEIGHT_METRES * self.unit
        return Thing(maker(rng, self.setting, 0.018 * self.unit / scale), label, x, y, scale)

    def corners(self, thing: Thing, axes: Array) -> list[Array]:
        """Its polygons in eighths of a pixel, after the linear map `axes` of metres right and up."""
        foot = (8 * thing.x * self.width, 8 * thing.y * self.height)
        points = np.concatenate([polygon for polygon, _ in thing.shapes])
        points = (points @ axes * (8 * thing.scale) + foot).astype(np.int32)
        ends = list(accumulate(len(polygon) for polygon, _ in thing.shapes))
        return [points[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def stamp(self, thing: Thing, mirrored: bool = False) -> None:
        """Paint a thing, or its mirror image in the water below it."""
        distance = 0.05 / max(0.05, thing.y - self.horizon + 0.02)
        colours, up, label = np.stack([colour for _, colour in thing.shapes]), -1, thing.label
        if mirrored:
            colours, up, label = _blend(colours * 0.8, self.setting.water / self.setting.tint, 0.5), 1, WATER
        corners = self.corners(thing, np.diag((1.0, up)))
        for polygon, colour in zip(corners, self.light(colours, label, distance), strict=True):
            cv2.fillPoly(self.pixels, [polygon], colour, shift=3)

    def cast(self, thing: Thing) -> None:
        """The shadow that a thing throws on the ground."""
        for polygon in self.corners(thing, np.array([(1, 0), (-1.1 * self.setting.sun, 0.2)])):
            cv2.fillPoly(self.shade, [polygon], 255, shift=3)


def _paint_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    """A gradient, the glow of the sun or the moon, and clouds, worked at low resolution."""
    setting, rows, columns = canvas.setting, 96, 120
    y, x = np.linspace(0, 1, rows)[:, None, None], np.linspace(0, 1, columns)[None, :, None]
    sky = _blend(setting.top, setting.low, np.minimum(1, y / canvas.horizon) ** 1.4)
    sun_x, sun_y = 0.5 + 0.42 * setting.sun, canvas.horizon * rng.uniform(0.15, 0.8)
    away = np.hypot((x - sun_x) * 1.25, y - sun_y)
    shine = _blend(setting.low, np.float32((255, 250, 228)), 0.75)
    sky = _blend(sky, shine, 0.7 * np.exp(-((away / 0.22) ** 1.2)))
    if rng.random() < 0.7:
        sky = _blend(sky, shine, np.clip((0.045 - away) * 150, 0, 1))
    cover = sum(_noise(rng, n, n, rows, columns) / n**0.6 for n in (4, 8, 16, 40)) + 1.6 * setting.cloud - 1.1
    cover = np.clip(cover * 1.6, 0, 1)[..., None] * np.clip(1.4 - y / canvas.horizon, 0, 1)
    body = _blend(np.float32((255, 252, 248)) * setting.tint, setting.low, 0.35)
    sky = _blend(sky, _blend(body, body * 0.78, np.roll(cover, -3, 0) * cover), cover * 0.85)
    grown = cv2.resize(sky.astype(np.float32), (canvas.width, canvas.height), interpolation=cv2.INTER_LINEAR)
    canvas.pixels[..., :3] = np.clip(grown, 0, 255)


def _paint_hills(canvas: Canvas, rng: np.random.Generator) -> None:
    """Two to four ridges, the farther the hazier."""
    base, gain, layers = np.full(97, canvas.horizon + 0.03), rng.uniform(0.35, 0.6), rng.integers(2, 5)
    colour = _blend(_pick(rng, GROUNDS[:3]) * 0.7, np.float32((88, 100, 128)), rng.uniform(0, 0.9))
    for layer in range(layers):
        near = (layer + 1) / layers
        rise = rng.uniform(0.05, 0.22) * (1.2 - 0.8 * near)
        top = np.minimum(canvas.horizon - rise - 0.5 * rise * _ridge(rng, gain), base - 0.03)
        canvas.fill(_strip(top, base), colour * (1.1 - 0.3 * near), HILLS, 1 - 0.7 * near)


def _strip(top: Array, bottom: Array) -> Array:
    """The area between two profiles, from edge to edge."""
    x = np.linspace(-0.01, 1.01, len(top))
    return np.concatenate([np.stack([x, top], 1), np.stack([x, bottom], 1)[::-1]])


def _paint_far_shore(canvas: Canvas, rng: np.random.Generator, waterline: float) -> None:
    """A strip of land with a village and a wood; below it, mirrored, the water."""
    top = canvas.horizon - 0.012 + 0.012 * _ridge(rng, 0.5)
    canvas.fill(_strip(top, np.full(97, waterline)), _pick(rng, GROUNDS), GROUND, 0.6)
    village, wood = rng.uniform(0, 1, 2)
    for y in np.sort(rng.uniform(canvas.horizon + 0.025, waterline - 0.002, rng.integers(6, 14))):
        if rng.random() < 0.4:
            canvas.stamp(canvas.make(rng, _house, HOUSE, village + rng.normal(0, 0.16), y))
        else:
            canvas.stamp(canvas.make(rng, _tree, TREE, wood + rng.normal(0, 0.3), y))
    first = round(waterline * canvas.height)
    rows = np.arange(first, canvas.height)
    mirrored = canvas.pixels[np.maximum(0, 2 * first - 1 - rows), :, :3] * np.float32(0.94)
    depth = np.linspace(0.3, 0.8, len(rows), dtype=np.float32)[:, None, None]
    canvas.pixels[first:, :, :3] = _blend(mirrored, canvas.setting.water, depth)
    canvas.pixels[first:, :, 3] = WATER


def _paint_headland(canvas: Canvas, rng: np.random.Generator, waterline: float) -> None:
    """A tongue of land from one side, with houses and trees that the water mirrors."""
    foot, tip, side = waterline + rng.uniform(0.05, 0.12), rng.uniform(0.25, 0.6), rng.choice((0, 1))
    along = np.linspace(0, 1, 97)
    back, front = foot - 0.05 * (1 - along**2), foot + 0.02 * (1 - along**3) + 0.006 * _ridge(rng, 0.5)
    x = np.abs(side - along * tip)
    things = []
    for at in rng.uniform(0, 0.85, rng.integers(4, 9)):
        maker, label = (_house, HOUSE) if rng.random() < 0.45 else (_tree, TREE)
        y = foot + (0.012 - 0.04 * rng.random()) * (1 - at**2)
        things.append(canvas.make(rng, maker, label, abs(side - at * tip), y))
    things.sort(key=lambda thing: thing.y)
    for thing in things:
        canvas.stamp(thing, mirrored=True)
    edge = np.concatenate([np.stack([x, back], 1), np.stack([x, front], 1)[::-1]])
    canvas.fill(edge, _pick(rng, GROUNDS), GROUND, 0.3)
    for thing in things:
        canvas.cast(thing)
        canvas.stamp(thing)


def _paint_boats(canvas: Canvas, rng: np.random.Generator, waterline: float, shore: Array) -> None:
    """Boats, some with people aboard, and mooring posts near the shore."""
    things = []
    for _ in range(rng.integers(1, 6)):
        x = rng.uniform(0.02, 0.98)
        y = rng.uniform(waterline + 0.05, max(waterline + 0.07, shore[int(96 * x)] - 0.02))
        things.append(canvas.make(rng, _boat, BOAT, x, y))
        if rng.random() < 0.5:
            things.append(canvas.make(rng, _person, PERSON, x + 0.1 * (y - canvas.horizon), y - 1e-4))
            things[-1].y -= 0.05 * (y - canvas.horizon)
    start = rng.uniform(0, 0.9)
    for step in range(rng.integers(0, 7)):
        x = min(1.0, start + 0.03 * step)
        things.append(canvas.make(rng, _pile, POLE, x, shore[int(96 * x)] - 0.01 - 0.006 * step))
    for thing in sorted(things, key=lambda thing: thing.y):
        canvas.stamp(thing, mirrored=True)
        canvas.stamp(thing)


def _paint_near_shore(canvas: Canvas, rng: np.random.Generator, shore: Array) -> None:
    """The land in front: a beach or a quay, a meadow or a square, and all that stands there."""
    canvas.fill(_strip(shore, np.full(97, 1.01)), _pick(rng, GROUNDS[2:]), GROUND, 0.05)
    beach = rng.uniform(0.008, 0.05) + 0.01 * _ridge(rng, 0.5)
    canvas.fill(_strip(shore + beach, np.full(97, 1.02)), _pick(rng, GROUNDS), GROUND, 0.05)
    crowd = rng.uniform(0.1, 0.9)
    things = []
    for maker, label, most, spread, reach in (
        (_house, HOUSE, 2, 1.0, 0.1),
        (_tree, TREE, 6, 1.0, 0.6),
        (_pole, POLE, 5, 1.0, 1.0),
        (_person, PERSON, 7, 0.3, 1.0),
    ):
        for _ in range(rng.integers(most + 1)):
            x = rng.uniform(0, 1) * spread + crowd * (1 - spread)
            y = _blend(shore[int(96 * x)] + 0.01, 1.03, rng.uniform(0, reach))
            things.append(canvas.make(rng, maker, label, x, y))
    for thing in sorted(things, key=lambda thing: thing.y):
        canvas.cast(thing)
        canvas.stamp(thing)


def _paint_birds(canvas: Canvas, rng: np.random.Generator) -> None:
    """A flock of gulls, mostly before the sky."""
    x, y = rng.uniform(0.15, 0.85), rng.uniform(0.1, canvas.horizon)
    for _ in range(rng.integers(0, 8)):
        at = (x + rng.normal(0, 0.16), y + rng.normal(0, 0.09))
        canvas.stamp(Thing(_bird(rng, canvas.setting, 0), BIRD, *at, rng.uniform(0.03, 0.08) * canvas.unit))


def _develop(canvas: Canvas, rng: np.random.Generator) -> Array:
    """Shadows, waves and texture over the painted canvas: float32 `[h, w, 3]`."""
    height, width, label = canvas.height, canvas.width, canvas.pixels[..., 3]
    y = np.arange(height, dtype=np.float32)[:, None]
    below = np.maximum(0, y / height - canvas.horizon)
    fine = _noise(rng, 128, 160, height, width)
    blotch = _noise(rng, 14, 12, height, width)
    # Rows of the wave pattern are packed towards the horizon, as perspective packs them.
    packed = (160 * np.log1p(below[:, 0] * 8)).astype(int) % 320
    waves = _noise(rng, 160, 20, 320, width)[packed]
    shift = waves * below * (0.03 * canvas.unit)
    x = np.arange(width, dtype=np.float32)[None]
    wet = cv2.remap(canvas.pixels[..., :3], x + shift, y + 0.3 * shift, cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
    colour = np.where((label == WATER)[..., None], wet, canvas.pixels[..., :3])
    gain = 1 + sum(cv2.LUT(label, table) * noise for table, noise in zip(TEXTURE.T, (fine, waves, blotch)))
    shadow = cv2.blur(canvas.shade, (3, 3)) * np.float32(0.45 / 255 * (1.1 - canvas.setting.cloud))
    gain *= 1 - shadow * (label == GROUND)
    return colour * gain[..., None]


def _outline(label: Array, width: int) -> Array:
    """Where two classes meet, thin things apart: bool `[h, w]`."""
    kernel = np.ones((width + 1, width + 1), np.uint8)
    low, high = cv2.erode(label, kernel), cv2.dilate(label, kernel)
    return (low != high) & (high > WATER) & (high < POLE)


def render(seed: int, index: int, height: int, width: int) -> tuple[Array, Array]:
    """A scene and its labels.

    Args:
        seed: names the set; training and validation take different ones. Not negative.
        index: names the scene within the set. Not negative.
        height: of the image in pixels, at least 32.
        width: of the image in pixels, at least 32.

    Returns:
        The image, uint8 RGB `[H, W, 3]`, and the mask, uint8 `[H, W]`: indices into `CLASSES`, or `VOID` along
        some outlines.

    Raises:
        ValueError: if the image is smaller than 32x32, or `seed` or `index` is negative.
    """
    if min(height, width) < SMALLEST_SIZE:
        raise ValueError(f"a scene of {height}x{width} is too small: ask for {SMALLEST_SIZE}x{SMALLEST_SIZE} or more")
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    times = max(2, -(-192 // min(height, width)))
    horizon = rng.uniform(0.34, 0.5)
    waterline = horizon + rng.uniform(0.045, 0.08)
    canvas = Canvas(height * times, width * times, horizon, Setting.draw(rng))
    shore = rng.uniform(0.66, 0.86) + rng.uniform(-0.2, 0.2) * np.linspace(-1, 1, 97) + 0.025 * _ridge(rng, 0.5)
    shore = np.maximum(shore, waterline + 0.08)
    _paint_sky(canvas, rng)
    _paint_hills(canvas, rng)
    _paint_far_shore(canvas, rng, waterline)
    if rng.random() < 0.6:
        _paint_headland(canvas, rng, waterline)
    _paint_boats(canvas, rng, waterline, shore)
    _paint_near_shore(canvas, rng, shore)
    _paint_birds(canvas, rng)
    image = cv2.resize(_develop(canvas, rng), (width, height), interpolation=cv2.INTER_AREA)
    image += rng.standard_normal((height, width, 3), dtype=np.float32) * np.float32(rng.uniform(2, 6))
    label = canvas.pixels[..., 3]
    mask = np.where(_outline(label, times), VOID, label)[times // 2 :: times, times // 2 :: times]
    return np.clip(image, 0, 255).astype(np.uint8), np.ascontiguousarray(mask, dtype=np.uint8)
