"""Draws pages of text with exact masks, for configs/text_detector.yaml: any fonts, any number, nothing downloaded.

    python scripts/draw_pages.py data/pages --fonts /usr/share/fonts

Writes `train` and `val`, each with `images` and `masks` (0 background, 1 text). The makes of fonts and the kinds of
background of `val` are kept aside: `train` shows neither. The same arguments give the same pixels.

A mask shows the core of each line of text, as DBNet and its kind mark it (Liao et al., 2020, arXiv:1911.08947): its box
without a border of D = A (1 - r²) / L, where A is the box's area and L its circumference. DBNet has r = 0.4; PP-OCRv4
fits r = 0.6 best (IoU of text 0.50, 0.59, 0.63, 0.61 at r = 0.4, 0.5, 0.6, 0.7).
"""

import argparse
import hashlib
import re
import string
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = (320, 480)  # height and width of a page
HEIGHTS = (12, 40)  # of letters, in pixels
LETTERS = string.ascii_letters + string.digits
SIGNS = ".,:;!?-()&%/+"
KINDS = ("plain", "slope", "noise", "stripes", "boxes", "clouds", "checks")  # of background
KINDS_ASIDE = ("clouds", "checks")  # which only `val` has
SHARE_ASIDE = 0.25  # of the makes of fonts
SIGNS_ALONE = (
    "cmsy",
    "cmex",
    "cmmi",
    "math",
    "symbols",
    "keyboard",
)  # parts of the names of fonts without plain letters
Fonts = dict[str, list[Path]]


def makes(folders: list[Path]) -> Fonts:
    """The fonts that have Latin letters, by make: the first word of the family, such as DejaVu.

    Args:
        folders: where `.ttf` and `.otf` files lie, or folders of these.
    """
    found: Fonts = {}
    for path in sorted(p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in (".ttf", ".otf")):
        try:
            font = ImageFont.truetype(path, 24)
            missing = bytes(font.getmask("\uffff"))
            shapes = {bytes(font.getmask(letter)) for letter in LETTERS}
        except OSError:
            continue
        family = str(font.getname()[0])
        plain = not any(part in family.lower() for part in SIGNS_ALONE)
        if plain and missing not in shapes and len(shapes) > 0.8 * len(LETTERS):  # not one sign for all of them
            make = "Computer" if re.fullmatch(r"cm[a-z]+\d+", family) else family.split()[0]
            found.setdefault(make, []).append(path)
    return found


def aside(fonts: Fonts) -> tuple[Fonts, Fonts]:
    """Makes to train on, and a quarter that is kept aside; which ones follows from their names alone."""
    names = sorted(fonts, key=lambda name: hashlib.sha256(name.encode()).digest())
    count = max(1, round(SHARE_ASIDE * len(names)))
    return {name: fonts[name] for name in names[count:]}, {name: fonts[name] for name in names[:count]}


def border(width: float, height: float, ratio: float) -> float:
    """D, what a box is shrunken by on every side."""
    return width * height * (1 - ratio**2) / (2 * (width + height))


def page(
    generator: np.random.Generator, fonts: Fonts, kinds: tuple[str, ...], ratio: float
) -> tuple[Image.Image, np.ndarray]:
    """A page, and its mask uint8 `[H, W]` of 0 and 1."""
    height, width = SIZE
    canvas = background(generator, str(generator.choice(kinds)))
    mask, taken = np.zeros(SIZE, np.uint8), np.zeros(SIZE, bool)
    common = generator.normal(0, 4) if generator.random() < 0.7 else generator.uniform(-30, 30)  # degrees
    for _ in range(int(generator.integers(0, 4)) * int(generator.integers(1, 9))):
        text, box = line(generator, fonts)
        angle = np.deg2rad(common + generator.normal(0, 1))
        center = generator.uniform(0, 1, 2) * (width, height)
        # Where each pixel's center lies, from the middle of the line and along it.
        y, x = np.mgrid[:height, :width] + 0.5 - center[::-1, None, None]
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        half = np.array(box[2:]) / 2
        inside = (abs(along) <= half[0] + 3) & (abs(across) <= half[1] + 3)
        edge = inside[0].any() or inside[-1].any() or inside[:, 0].any() or inside[:, -1].any()
        if edge or (inside & taken).any():
            continue
        taken |= inside
        start = np.array(box[:2]) + half  # the middle of the line, in its own picture
        c, s = np.cos(angle), np.sin(angle)
        back = (c, s, start[0] - c * center[0] - s * center[1], -s, c, start[1] + s * center[0] - c * center[1])
        ink = text.transform((width, height), Image.Transform.AFFINE, back, Image.Resampling.BICUBIC)
        canvas.paste(color_against(generator, np.asarray(canvas)[inside].mean(0)), (0, 0), ink)
        core = half - border(2 * half[0], 2 * half[1], ratio)
        mask |= ((abs(along) <= core[0]) & (abs(across) <= core[1])).astype(np.uint8)
    return worn(generator, canvas), mask


def line(generator: np.random.Generator, fonts: Fonts) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """A line of words in a picture of its own, and where its ink is: left, top, width and height."""
    files = fonts[str(generator.choice(sorted(fonts)))]
    font = opened(files[int(generator.integers(len(files)))], int(np.exp(generator.uniform(*np.log(HEIGHTS)))))
    text = " ".join(word(generator) for _ in range(int(generator.integers(1, 6))))
    left, top, right, bottom = font.getbbox(text)
    picture = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8))
    ImageDraw.Draw(picture).text((4 - left, 4 - top), text, 255, font)
    x0, y0, x1, y1 = picture.getbbox() or (4, 4, 5, 5)
    return picture, (x0, y0, x1 - x0, y1 - y0)


@lru_cache(512)
def opened(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """A font whose letters are about so many pixels high."""
    return ImageFont.truetype(path, round(1.3 * size))


def word(generator: np.random.Generator) -> str:
    """Letters, or digits, or both."""
    draw, count = generator.random(), int(generator.integers(1, 10))
    letters = string.digits if draw < 0.2 else LETTERS if draw < 0.3 else string.ascii_lowercase
    text = "".join(generator.choice(list(letters), count))
    text = text.upper() if 0.8 < draw < 0.9 else text.title() if draw >= 0.9 else text
    return text + (str(generator.choice(list(SIGNS))) if generator.random() < 0.15 else "")


def color_against(generator: np.random.Generator, ground: np.ndarray) -> tuple[int, int, int]:
    """A color that can be read on a ground."""
    while True:
        color = generator.integers(0, 256, 3) if generator.random() < 0.6 else np.full(3, generator.integers(0, 256))
        if abs(float((color - ground) @ (0.3, 0.59, 0.11))) > 60:
            return int(color[0]), int(color[1]), int(color[2])


def background(generator: np.random.Generator, kind: str) -> Image.Image:
    """A page without text, RGB; with figures on it that are none."""
    height, width = SIZE
    first, second = (generator.integers(0, 256, 3).astype(np.float32) for _ in range(2))
    if generator.random() < 0.5:
        first = np.full(3, generator.uniform(200, 255), np.float32)  # paper
        second = first - generator.uniform(10, 120)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = generator.uniform(0, np.pi), generator.uniform(6, 60)
    along = x * np.cos(angle) + y * np.sin(angle)
    if kind == "slope":
        share = (along - along.min()) / (along.max() - along.min())
    elif kind == "noise":
        share = 0.4 * generator.random(SIZE, np.float32)
    elif kind == "stripes":
        share = (along / period % 1 < generator.uniform(0.1, 0.6)).astype(np.float32)
    elif kind == "checks":
        share = ((along / period % 1 < 0.5) ^ ((y * np.cos(angle) - x * np.sin(angle)) / period % 1 < 0.5)).astype("f4")
    elif kind == "clouds":
        few = generator.random((int(generator.integers(3, 12)), int(generator.integers(3, 12))), np.float32)
        share = cv2.resize(few, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    else:
        share = np.zeros(SIZE, np.float32)
    colors = first + share[..., None] * (second - first)
    canvas = Image.fromarray(colors.clip(0, 255).astype(np.uint8))
    figures(generator, canvas, 12 if kind == "boxes" else 3)
    return canvas


def figures(generator: np.random.Generator, canvas: Image.Image, most: int) -> None:
    """Rules, frames, discs and rows of bars: what stands on pages and is no text."""
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(generator.integers(0, most + 1))):
        x, y = generator.uniform(0, 1, 2) * canvas.size
        w, h = np.exp(generator.uniform(np.log(6), np.log(200), 2))
        color, thick = tuple(generator.integers(0, 256, 3).tolist()), int(generator.integers(1, 5))
        match int(generator.integers(5)):
            case 0:
                pen.line((x, y, x + w, y + generator.choice((0, h))), color, thick)
            case 1:
                pen.rectangle((x, y, x + w, y + h), color if generator.random() < 0.5 else None, color, thick)
            case 2:
                pen.ellipse((x, y, x + h, y + h), color if generator.random() < 0.5 else None, color, thick)
            case 3:
                for step in np.arange(0, w, generator.uniform(5, 14)):
                    pen.line((x + step, y, x + step, y + h), color, thick)
            case _:
                corners = generator.uniform(-1, 1, (int(generator.integers(3, 7)), 2)) * (w / 2, h / 2) + (x, y)
                pen.polygon([tuple(corner) for corner in corners], color)


def worn(generator: np.random.Generator, canvas: Image.Image) -> Image.Image:
    """The page as a camera or scanner would show it: a little blurred and noisy."""
    if generator.random() < 0.4:
        canvas = canvas.filter(ImageFilter.GaussianBlur(generator.uniform(0.3, 1.2)))
    pixels = np.asarray(canvas).astype(np.float32) * generator.uniform(0.7, 1.1)
    pixels += generator.normal(0, generator.uniform(0, 8), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def pages(
    split: str, count: int, fonts: Fonts, ratio: float, seed: int
) -> Iterator[tuple[str, Image.Image, np.ndarray]]:
    """Names, pages and masks of a split."""
    kinds = KINDS_ASIDE if split == "val" else tuple(kind for kind in KINDS if kind not in KINDS_ASIDE)
    for number in range(count):
        generator = np.random.default_rng([seed, split == "val", number])
        yield f"{number:05d}", *page(generator, fonts, kinds, ratio)


def main() -> int:
    """Runs the command line; returns the exit code."""
    import matplotlib

    own = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    parser = argparse.ArgumentParser(description="Draws pages of text with exact masks.")
    parser.add_argument("folder", type=Path, help="where they go")
    parser.add_argument("--fonts", type=Path, nargs="+", default=[], help="folders of fonts, beside matplotlib's own")
    parser.add_argument("--train", type=int, default=800, help="pages to learn from")
    parser.add_argument("--val", type=int, default=100, help="pages to score on")
    parser.add_argument("--ratio", type=float, default=0.6, help="r, by which boxes are shrunken; 1: not at all")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    args = parser.parse_args()
    fonts = makes([own, *args.fonts])
    if len(fonts) < 2:
        print(
            "draw_pages.py: error: --fonts: fewer than two makes with Latin letters; name more folders", file=sys.stderr
        )
        return 2
    for split, count, these in zip(("train", "val"), (args.train, args.val), aside(fonts), strict=True):
        for kind in ("images", "masks"):
            (args.folder / split / kind).mkdir(parents=True, exist_ok=True)
        print(f"{split}: {count} pages, {len(these)} makes of fonts: {', '.join(sorted(these))}")
        for name, picture, mask in pages(split, count, these, args.ratio, args.seed):
            picture.save(args.folder / split / "images" / f"{name}.png")
            Image.fromarray(mask).save(args.folder / split / "masks" / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
