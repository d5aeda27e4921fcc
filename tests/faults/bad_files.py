"""Bad files: each is named with a fix before the first step, and none is trained on. Odd ones are read right."""

import contextlib
import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import giant_files
import numpy as np
from conftest import tiny_config
from harness import Figure
from PIL import Image

from distill.cli import run_here as main
from distill.data.synthetic import scene

HEIGHT, WIDTH = 64, 96
IMAGE, MASK = "train/images/scene_2.jpg", "train/masks/scene_2.png"
# Every message has a fix: one of these words.
FIX = re.compile(r"\b(replace|remove|rename|store|set|make|expected|keep|check|matched|holds no images)\b")
SETTINGS = {
    "data__format": "folders",
    "data__classes": list(scene.CLASSES),
    "data__allow_missing_classes": "true",  # a few scenes do not show them all
    "baseline__enabled": "false",
    "export__enabled": "false",
    "num_sample_images": 1,
}


def draw(root: Path) -> Path:
    """Scenes as files: JPEG images and PNG masks, four to train and three to validate."""
    for seed, (split, count) in enumerate((("train", 4), ("val", 3))):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            image, mask = scene.render(seed, i, HEIGHT, WIDTH)
            Image.fromarray(image).save(root / split / "images" / f"scene_{i if seed == 0 else f'val_{i}'}.jpg")
            Image.fromarray(mask).save(root / split / "masks" / f"scene_{i if seed == 0 else f'val_{i}'}.png")
    return root


def cut(name: str, share: float) -> Callable[[Path], None]:
    return lambda root: os.truncate(root / name, int((root / name).stat().st_size * share))


def flip(name: str, place: float) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        data = bytearray((root / name).read_bytes())
        data[int(len(data) * place)] ^= 16
        (root / name).write_bytes(data)

    return damage


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda root: (root / name).write_bytes(content) and None


def as_image(
    name: str, mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT), kind: str | None = None, **options
) -> Callable[[Path], None]:
    """A blank picture of some mode, size and format in the place of a file."""
    return lambda root: Image.new(mode, size).save(root / name, kind, **options)


def paint(dtype: type, value: int, name: str = MASK) -> Callable[[Path], None]:
    """One label of the mask replaced, in a file whose pixels hold it; TIFF where PNG does not."""

    def damage(root: Path) -> None:
        mask = np.array(Image.open(root / MASK)).astype(dtype)
        mask[0, 0] = value
        (root / MASK).unlink()
        Image.fromarray(mask).save(root / name)

    return damage


def instead(name: str, action: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        (root / name).unlink()
        action(root / name)

    return damage


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A gray PNG that claims a size and holds what it is given."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def bmp(width: int, height: int) -> bytes:
    """A BMP header that claims a size."""
    return struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def sparse(path: Path, size: int) -> None:
    """A picture with gigabytes of nothing behind it that take no space on the disk."""
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    os.truncate(path, size)


def duplicate(root: Path) -> None:
    (root / "val/images/scene_val_1.jpg").write_bytes((root / IMAGE).read_bytes())


def exif(value: int) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        tags = Image.Exif()
        tags[0x0112] = value
        Image.open(root / IMAGE).save(root / IMAGE, exif=tags)

    return damage


def two_pages(root: Path) -> None:
    (root / MASK).unlink()
    pages = [Image.new("L", (WIDTH, HEIGHT)) for _ in range(2)]
    pages[0].save((root / MASK).with_suffix(".tif"), save_all=True, append_images=pages[1:])


def empty_split(root: Path) -> None:
    for path in (root / "val/images").iterdir():
        path.unlink()


TIFF = "train/masks/scene_2.tif"
BOMB = zlib.compress(bytes(20_000_000))
# What is broken, and the words that the message must have besides a fix.
BAD: dict[str, tuple[Callable[[Path], object], Sequence[str]]] = {
    "a missing mask": (lambda root: (root / MASK).unlink(), ("scene_2", "no mask")),
    "an empty image": (cut(IMAGE, 0), (IMAGE, "empty")),
    "an empty mask": (cut(MASK, 0), (MASK, "empty")),
    "a page named jpg": (write(IMAGE, b"<html>404</html>"), (IMAGE,)),
    "text named png": (write(MASK, b"0 0 1 1\n"), (MASK,)),
    **{f"a JPEG cut at {p} %": (cut(IMAGE, p / 100), (IMAGE,)) for p in (10, 50, 90, 99)},
    **{f"a PNG mask cut at {p} %": (cut(MASK, p / 100), (MASK,)) for p in (10, 50, 90)},
    "a flipped bit in a PNG's header": (flip(MASK, 20 / 1000), (MASK,)),
    **{f"a flipped bit in a PNG at {p} %": (flip(MASK, p / 100), (MASK,)) for p in (30, 60)},
    "a PNG signature and zeros": (write(MASK, b"\x89PNG\r\n\x1a\n" + bytes(30)), (MASK,)),
    "a narrower mask": (as_image(MASK, "L", (WIDTH - 1, HEIGHT)), (MASK, f"{WIDTH - 1}×{HEIGHT}")),
    "a transposed mask": (as_image(MASK, "L", (HEIGHT, WIDTH)), (MASK, f"{HEIGHT}×{WIDTH}")),
    **{f"a mask of mode {m}": (as_image(MASK, m), (MASK, f"mode {m}")) for m in ("RGB", "RGBA", "LA", "1")},
    "a mask of mode CMYK": (lambda r: (as_image(TIFF, "CMYK")(r), (r / MASK).unlink()), (TIFF, "mode CMYK")),
    "a mask of floats": (paint(np.float32, 1, TIFF), (TIFF, "mode F")),
    "a JPEG mask named png": (as_image(MASK, "L", kind="JPEG"), (MASK,)),
    "a JPEG mask": (lambda r: (as_image("train/masks/scene_2.jpg", "L")(r), (r / MASK).unlink()), ("no mask",)),
    "a WebP mask named png": (as_image(MASK, "RGB", kind="WEBP"), (MASK,)),
    "a mask of two pages": (two_pages, (TIFF, "2 pictures")),
    "a 16-bit image": (instead(IMAGE, lambda p: Image.new("I;16", (WIDTH, HEIGHT)).save(p, "PNG")), (IMAGE, "8 bits")),
    "a 32-bit image": (instead(IMAGE, lambda p: Image.new("I", (WIDTH, HEIGHT)).save(p, "TIFF")), (IMAGE, "8 bits")),
    "an image of floats": (
        instead(IMAGE, lambda p: Image.new("F", (WIDTH, HEIGHT)).save(p, "TIFF")),
        (IMAGE, "8 bits"),
    ),
    "a label above the classes": (paint(np.uint8, 10), (MASK, "label 10", "1 pixel")),
    "a label 254": (paint(np.uint8, 254), (MASK, "label 254")),
    "a label of 16 bits": (paint(np.uint16, 1000), (MASK, "label 1000")),
    "a label below zero": (paint(np.int32, -1, TIFF), (TIFF, "label -1")),
    "a label that wraps around": (paint(np.int32, 65536 + 3, TIFF), (TIFF, "label 65539")),
    **{f"an image with EXIF orientation {v}": (exif(v), (IMAGE, "EXIF")) for v in (2, 6)},
    "the same image in train and val": (duplicate, ("scene_val_1.jpg", "scene_2.jpg")),
    "two images of one stem": (as_image("train/images/scene_2.png"), ("scene_2", "stem")),
    "a broken link": (instead(IMAGE, lambda p: p.symlink_to("nowhere")), (IMAGE,)),
    "a link to itself": (instead(IMAGE, lambda p: p.symlink_to(p.name)), (IMAGE,)),
    "a link to a folder": (instead(IMAGE, lambda p: p.symlink_to("..")), (IMAGE,)),
    "a folder named png": (instead(MASK, lambda p: p.mkdir()), (MASK,)),
    "a pipe": (instead(IMAGE, os.mkfifo), (IMAGE,)),
    "a link to a device": (instead(IMAGE, lambda p: p.symlink_to("/dev/zero")), (IMAGE,)),
    "an empty split": (empty_split, ("val/images",)),
    "a bomb of a PNG": (write(MASK, png(30_000, 30_000, chunk(b"IDAT", BOMB))), (MASK, "max_pixels")),
    "a bomb of a BMP": (write(IMAGE, bmp(50_000, 50_000)), (IMAGE, "max_pixels")),
    "a bomb of a text": (write(MASK, png(WIDTH, HEIGHT, chunk(b"zTXt", b"a\0\0" + BOMB))), (MASK,)),
    "a bomb of a TIFF's tile": (instead(IMAGE, giant_files.tile), (IMAGE, "max_pixels")),
    "a huge file": (instead(IMAGE, lambda p: sparse(p, 1 << 34)), (IMAGE, "bytes")),
    "a PostScript program": (write(IMAGE, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 64\n"), (IMAGE,)),
    "a GIF named png": (as_image(MASK, "L", kind="GIF"), (MASK,)),
}


def bad_files(names: Sequence[str], folder: Path) -> Figure:
    """Breaks one file at a time and starts a run, which has to end before anything is trained."""
    failures = []
    for i, name in enumerate(names):
        damage, words = BAD[name]
        root = draw(folder / f"data-{i}")
        damage(root)
        code, message = start(folder / f"run-{i}", root)
        if code != 1 or any((folder / f"run-{i}").glob("t*")):
            failures.append(f"{name}: exit code {code}")
        elif len(message.splitlines()) != 1 or not FIX.search(message) or not all(word in message for word in words):
            failures.append(f"{name}: {message}")
    return Figure(
        "bad files, each named with a fix, none trained on",
        f"{len(names)} / {len(names)}",
        f"{len(names) - len(failures)} / {len(names)}",
        not failures,
        failures,
    )


def start(run: Path, root: Path, **settings) -> tuple[int, str]:
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        code = main(tiny_config(run, data__root=root, **SETTINGS | settings))
    return code, printed.getvalue().strip()
