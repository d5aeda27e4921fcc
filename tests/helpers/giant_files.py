"""Small files of images and videos that ask for gigabytes, made without needing them."""

import io
import struct
import zlib
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 16000, 12000
TILE = 25984


def jpeg(width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """A gray JPEG of 12 bits a block: 2.25 MB for 16000×12000 pixels."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 128).save(buffer, "JPEG", quality=75)
    header, start = bytearray(buffer.getvalue()), buffer.getvalue().index(b"\xff\xda")
    frame = header.index(b"\xff\xc0")
    header[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    scan = start + 2 + struct.unpack(">H", header[start + 2 : start + 4])[0]
    blocks = -(-width // 8) * -(-height // 8)
    return (
        bytes(header[:scan]) + b"\x28\xa2\x8a" * -(-blocks // 4) + b"\xff\xd9"
    )  # each block: no difference, no detail


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def avi(frames: list[bytes], width: int, height: int) -> bytes:
    """JPEGs as a video of 10 frames a second, with the size that its header says."""
    most, count = max(map(len, frames)), len(frames)
    main = struct.pack("<14I", 100_000, 0, 0, 0x10, count, 0, 1, most, width, height, 0, 0, 0, 0)
    stream = b"vidsMJPG" + struct.pack("<10I4H", 0, 0, 0, 1, 10, 0, count, most, 0, 0, 0, 0, width, height)
    bitmap = struct.pack("<IiiHH4sIiiII", 40, width, height, 1, 24, b"MJPG", 3 * width * height, 0, 0, 0, 0)
    stream_list = _chunk(b"LIST", b"strl" + _chunk(b"strh", stream) + _chunk(b"strf", bitmap))
    content = _chunk(b"LIST", b"hdrl" + _chunk(b"avih", main) + stream_list)
    content += _chunk(b"LIST", b"movi" + b"".join(_chunk(b"00dc", frame) for frame in frames))
    return _chunk(b"RIFF", b"AVI " + content)


def video(path: Path, honest: bool = True) -> Path:
    """An AVI of frames of 16000×12000; or its header and its first frame say 64×48."""
    width, height = (WIDTH, HEIGHT) if honest else (64, 48)
    path.write_bytes(avi([jpeg(width, height), jpeg(), jpeg()], width, height))
    return path


def tile(path: Path, channels: int = 3) -> Path:
    """A TIFF of 2 MB and 10×10 pixels, which lie in one tile of 25984×25984."""
    part = zlib.compressobj(9)
    block = part.compress(bytes(3 * TILE * TILE // 64)) + part.flush(zlib.Z_FULL_FLUSH)
    header, body = block[:2], block[2:]
    checksum = (3 * TILE * TILE % 65521) << 16 | 1
    data = header + 64 * body + zlib.compressobj(9, zlib.DEFLATED, -15).flush() + struct.pack(">I", checksum)
    short, long = 3, 4
    at = 8 + 2 + 11 * 12 + 4  # behind the directory
    entries = [(256, short, 1, 10), (257, short, 1, 10), (258, short, channels, at), (259, short, 1, 8)]
    entries += [
        (262, short, 1, 2 if channels == 3 else 1),
        (277, short, 1, channels),
        (284, short, 1, 1),
        (322, long, 1, TILE),
        (323, long, 1, TILE),
    ]
    entries += [(324, long, 1, at + 2 * channels), (325, long, 1, len(data))]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + directory + channels * struct.pack("<H", 8) + data)
    return path
