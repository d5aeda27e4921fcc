"""The embedded data set: a small harbor, drawn anew for every index, at changing hours and in changing weather.

It lets the whole pipeline run without a download, and it is made to be hard for a small network: colors overlap
between classes (a mirrored house is water, the sun is sky, a mast belongs to its boat while a lamp post is a pole),
so texture, shape and context have to tell; thin and rare things decide the mIoU.

A scene is painted from back to front on one uint8 canvas `[h, w, 4]` of red, green, blue and class id, at least
twice as large as the image. Things are polygons in meters on a ground plane seen from a little above, so their
size follows from where they stand. Waves, texture, shadows and sensor noise come last. No random number but the
sensor noise depends on the size: another size shows the same scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import cv2
import numpy as np

from distill.batch import VOID
from distill.data.synthetic.shapes import (
    BALLOON,
    BOAT,
    CLASSES,
    CREAM,
    GROUND,
    GROUNDS,
    HILLS,
    HOUSE,
    PERSON,
    PLANES,
    POLE,
    THINGS,
    TREE,
    WATER,
    Array,
    Setting,
    Shapes,
    balloon,
    blend,
    colors_of,
    pick,
)

SMALLEST_SIZE = 32
EYE_HEIGHT_METERS = 4.8
SUBPIXEL_BITS = 3  # polygon corners are rounded to eighths of a pixel of the canvas


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


@dataclass
class Thing:
    """A thing and where its foot stands, in shares of the width and the height; `scale` is canvas pixels a meter."""

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
        land: uint8 `[h, w]`: class ids of sky, hills, water and ground, as if no thing stood before them.
        things: uint8 `[h, w]` by class id: 1 where such things are, whatever stands before them.
    """

    def __init__(self, height: int, width: int, horizon: float, setting: Setting) -> None:
        """An empty canvas, all sky."""
        self.height, self.width, self.horizon, self.setting = height, width, horizon, setting
        self.unit = (height * width / 1.25) ** 0.5
        self.pixels = np.zeros((height, width, 4), np.uint8)
        self.shade = np.zeros((height, width), np.uint8)
        self.land = np.zeros((height, width), np.uint8)
        self.things = {label: np.zeros((height, width), np.uint8) for label in THINGS}

    def seen(self, colors: Array, label: int, distance: float) -> list[list[int]]:
        """Colors `[N, 3]` under this light through haze (distance 0 to 1), with the label: ready to be painted."""
        colors = blend(colors * self.setting.tint, self.setting.low, distance * self.setting.haze)
        return [[*color, label] for color in colors.clip(0, 255).astype(int).tolist()]

    def fill(self, points: Array, color: Array, label: int, distance: float) -> None:
        """Paint a polygon `[K, 2]` in shares of the width and the height."""
        corners = (points * (self.width, self.height) * 2**SUBPIXEL_BITS).astype(np.int32)
        cv2.fillPoly(self.pixels, [corners], self.seen(color[None], label, distance)[0], shift=SUBPIXEL_BITS)
        cv2.fillPoly(self.land, [corners], label, shift=SUBPIXEL_BITS)

    def make(self, rng: np.random.Generator, label: int, x: float, y: float) -> Thing:
        """A thing that stands at (x, y), in perspective; its thinnest parts are told how thin they may be."""
        scale = (y - self.horizon) / EYE_HEIGHT_METERS * self.unit
        return Thing(THINGS[label](rng, self.setting, 0.02 * self.unit / scale), label, x, y, scale)

    def corners(self, thing: Thing, axes: Array) -> list[Array]:
        """Its polygons on the canvas; `axes` maps meters right and up to meters right and down."""
        foot = np.array((thing.x * self.width, thing.y * self.height))
        points = np.concatenate([polygon for polygon, _ in thing.shapes])
        points = ((points @ axes * thing.scale + foot) * 2**SUBPIXEL_BITS).astype(np.int32)
        ends = list(accumulate(len(polygon) for polygon, _ in thing.shapes))
        return [points[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def stamp(self, thing: Thing, mirrored: bool = False) -> None:
        """Paint a thing, or its mirror image in the water below it."""
        distance = min(1, 0.05 / (0.02 + thing.scale / self.unit * EYE_HEIGHT_METERS))
        colors, axes, label = np.stack([color for _, color in thing.shapes]), np.diag((1, -1)), thing.label
        if mirrored:
            colors = blend(colors * 0.8, self.setting.water / self.setting.tint, 0.5)
            axes, label = np.eye(2), WATER
        for polygon, color in zip(self.corners(thing, axes), self.seen(colors, label, distance), strict=True):
            cv2.fillPoly(self.pixels, [polygon], color, shift=SUBPIXEL_BITS)
            if not mirrored:
                cv2.fillPoly(self.things[label], [polygon], 1, shift=SUBPIXEL_BITS)

    def cast(self, thing: Thing) -> None:
        """The shadow that a thing throws on the ground."""
        for polygon in self.corners(thing, np.array([(1, 0), (-1.1 * self.setting.sun, 0.2)])):
            cv2.fillPoly(self.shade, [polygon], 255, shift=SUBPIXEL_BITS)


EDGE_TO_EDGE = np.linspace(-0.01, 1.01, 97)


def _paint_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    """A gradient, the glow of the sun or the moon, and clouds, worked at low resolution."""
    setting, rows, columns = canvas.setting, 96, 120
    y, x = np.mgrid[0 : 1 : rows * 1j, 0 : 1 : columns * 1j].astype(np.float32)[..., None]
    sky = blend(setting.above, setting.low, np.minimum(1, y / canvas.horizon) ** 1.4)
    away = np.hypot((x - 0.5 - 0.42 * setting.sun) * 1.25, y - canvas.horizon * rng.uniform(0.15, 0.8))
    shine = blend(setting.low, CREAM, 0.75)
    sky = blend(sky, shine, 0.7 * np.exp(-((away / 0.22) ** 1.2)))
    if rng.random() < 0.7:
        sky = blend(sky, shine, np.clip((0.045 - away) * 150, 0, 1))
    cover = sum(_noise(rng, n, n, rows, columns) / n**0.6 for n in (4, 8, 16, 40)) + 1.6 * setting.cloud - 1.1
    cover = np.clip(cover * 1.6, 0, 1)[..., None] * np.clip(1.4 - y / canvas.horizon, 0, 1)
    cloud = blend(CREAM * setting.tint, setting.low, 0.35)
    sky = blend(sky, blend(cloud, cloud * 0.78, np.roll(cover, -3, 0) * cover), cover * 0.85)
    canvas.pixels[..., :3] = cv2.resize(sky.clip(0, 255).astype(np.uint8), (canvas.width, canvas.height))


def _paint_hills(canvas: Canvas, rng: np.random.Generator) -> None:
    """Two to four ridges, the farther the hazier."""
    base, gain, ridges = np.full(97, canvas.horizon + 0.03), rng.uniform(0.35, 0.6), rng.integers(2, 5)
    color = blend(pick(rng, GROUNDS[:3]) * 0.7, colors_of((88, 100, 128))[0], rng.uniform(0, 0.9))
    for near in np.arange(1, ridges + 1) / ridges:
        rise = rng.uniform(0.05, 0.22) * (1.2 - 0.8 * near)
        top = canvas.horizon - rise - 0.5 * rise * _ridge(rng, gain)
        ridge = _between(np.minimum(top, canvas.horizon), base, EDGE_TO_EDGE)
        canvas.fill(ridge, color * (1.1 - 0.3 * near), HILLS, 1 - 0.7 * near)


def _paint_balloons(canvas: Canvas, rng: np.random.Generator) -> None:
    """On some days, a few balloons over the hills."""
    for _ in range(max(0, int(rng.integers(-1, 4)))):
        x, y, scale = rng.uniform(0.05, 0.95), rng.uniform(0.4, 1) * canvas.horizon, rng.uniform(0.012, 0.024)
        canvas.stamp(Thing(balloon(rng, canvas.setting, 0), BALLOON, x, y, scale * canvas.unit))


def _paint_far_shore(canvas: Canvas, rng: np.random.Generator, waterline: float) -> None:
    """A strip of land with a village and a wood; below it the water, which mirrors all that."""
    top = canvas.horizon - 0.012 + 0.012 * _ridge(rng)
    canvas.fill(_between(top, np.full(97, waterline), EDGE_TO_EDGE), pick(rng, GROUNDS), GROUND, 0.6)
    village, wood = rng.uniform(0, 1, 2)
    for y in np.sort(rng.uniform(canvas.horizon + 0.025, waterline, rng.integers(4, 11))):
        label, x = (HOUSE, village) if rng.random() < 0.4 else (TREE, wood)
        canvas.stamp(canvas.make(rng, label, x + rng.normal(0, 0.2), y))
    first = round(waterline * canvas.height)
    mirrored = canvas.pixels[np.maximum(0, 2 * first - 1 - np.arange(first, canvas.height)), :, :3]
    depth = np.linspace(0.3, 0.8, len(mirrored), dtype=np.float32)[:, None, None]
    canvas.pixels[first:, :, :3] = blend(mirrored * np.float32(0.94), canvas.setting.water, depth)
    canvas.pixels[first:, :, 3] = canvas.land[first:] = WATER


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
    canvas.fill(_between(back, front, np.abs(side - along * reach)), pick(rng, GROUNDS), GROUND, 0.3)
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
    canvas.fill(_between(shore, bottom, EDGE_TO_EDGE), pick(rng, GROUNDS[2:]), GROUND, 0.05)
    canvas.fill(_between(np.minimum(edge, 1.05), bottom, EDGE_TO_EDGE), pick(rng, GROUNDS), GROUND, 0.05)
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
    # Rows of the wave pattern are packed toward the horizon, as perspective packs them.
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


def _majority(label: Array, height: int, width: int) -> Array:
    """The label that covers most of each pixel: uint8 `[height, width]`.

    A single sub-pixel's label would lie beside the pixel's center, and with it the whole mask beside the picture. Of
    two labels that cover the same, the higher and the lower one take turns: ground lies below sky in both senses.
    """
    labels = np.array([*range(len(CLASSES)), VOID], np.uint8)
    size = (width, height)
    shares = np.stack([cv2.resize((label == i).view(np.uint8) * 255, size, None, 0, 0, cv2.INTER_AREA) for i in labels])
    first, last = labels[shares.argmax(0)], labels[::-1][shares[::-1].argmax(0)]
    return np.where(np.indices((height, width)).sum(0) % 2, first, last)


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
    canvas, image, times = _painted(seed, index, height, width)
    label = canvas.pixels[..., 3]
    return image, _majority(np.where(_outlines(label, times), np.uint8(VOID), label), height, width)


def render_planes(seed: int, index: int, height: int, width: int) -> tuple[Array, Array]:
    """The same scene with many labels a pixel; see `render`.

    Returns:
        The image, and for each of `PLANES` where it is, whatever stands before it: uint8 `[C, H, W]` of 0 and 1.
    """
    canvas, image, _ = _painted(seed, index, height, width)
    apart = {"water": canvas.land == WATER, "ground": canvas.land == GROUND}
    apart["shadow"] = (canvas.shade > 0) & apart["ground"]
    apart |= {CLASSES[label]: drawn > 0 for label, drawn in canvas.things.items()}
    planes = [
        cv2.resize(apart[name].view(np.uint8) * 255, (width, height), None, 0, 0, cv2.INTER_AREA) for name in PLANES
    ]
    return image, (np.stack(planes) > 128).astype(np.uint8)  # of more than half a pixel


def _painted(seed: int, index: int, height: int, width: int) -> tuple[Canvas, Array, int]:
    """The canvas of a scene, its image uint8 `[H, W, 3]`, and how many times larger the canvas is."""
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
    return canvas, image.clip(0, 255).astype(np.uint8), times
