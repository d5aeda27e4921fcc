"""Data sets of Hugging Face on disk: Arrow folders of `save_to_disk`, and Parquet files as repositories hold them.

Both keep each image as a struct of its file's bytes and its path. They are unpacked once into files, byte by byte, so
that everything that is done with files (checks, names in messages, fingerprints) is done with these, too, and since
single rows of Parquet are slow to get at. By pyarrow alone: the library `datasets` would bring pandas, aiohttp and
more, to read the same two formats. Nothing is fetched from the Hub.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.config.data import DataConfig
from distill.data.arrays import first_line
from distill.data.pairs import PairOfFiles
from distill.errors import ConfigError, harmless
from distill.storage import publish

IMAGE_COLUMNS, MASK_COLUMNS = ("image", "pixel_values"), ("label", "annotation", "mask", "labels", "segmentation")
TRAIN, VAL = ("train", "training"), ("validation", "valid", "val", "dev", "test")
STARTS = (
    *((b"\x89PNG", ".png"), (b"\xff\xd8", ".jpg"), (b"RIFF", ".webp")),
    *((b"II*\0", ".tif"), (b"MM\0*", ".tif"), (b"BM", ".bmp")),
)
PLACE = "unpacked"  # in the data set's folder
ROWS = 16  # that are read at once


@dataclass
class HuggingFace:
    """What such a folder holds.

    Attributes:
        train: images and masks to learn from.
        val: those to score on; empty if there is no such split.
        names: of the classes, if it says them.
        notes: what was taken for granted, to be said aloud.
    """

    train: list[PairOfFiles]
    val: list[PairOfFiles]
    names: list[str] | None
    notes: list[str] = field(default_factory=list)


@dataclass
class Split:
    """Files of one split, `kind` `arrow` or `parquet`."""

    name: str
    kind: str
    files: list[Path]


def read_hugging_face(config: DataConfig, root: Path) -> HuggingFace:
    """Finds the splits of a folder, and unpacks those that are wanted, once.

    Raises:
        ConfigError: no such folder, a column or split that is not there, a row without image or mask.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise ConfigError("data.format: hf needs pyarrow, which is not installed; pip install 'distill[hf]'") from None
    splits = {split.name: split for split in find_splits(root)}
    train = next((splits[name] for name in TRAIN if name in splits), None)
    if train is None and len(splits) == 1:
        train = next(iter(splits.values()))
    if train is None:
        raise ConfigError(f"{root}: has the splits {', '.join(splits)}, and none of them is called train")
    val = None if config.val_from_train else next((splits[name] for name in VAL if name in splits), None)
    if val is None and not config.val_from_train:
        raise ConfigError(
            f"data.val_fraction: {root} has no split called {', '.join(VAL[:-1])} or {VAL[-1]}; set the share to set "
            f"aside, e.g. 0.1"
        )
    found: list[list[PairOfFiles]] = []
    notes: list[str] = []
    names: list[str] | None = None
    for split in (train, val):
        if split is None:
            found.append([])
            continue
        fields, about = described(split)
        image = column_of(fields, config.image_column, IMAGE_COLUMNS, "image_column")
        mask = None
        if config.train_masks is not None:
            mask = column_of(fields, config.mask_column, MASK_COLUMNS, "mask_column")
        names = names or class_names(root, about)
        folder, pairs = unpacked(split, root, Path(config.unpacked or root / PLACE), image, mask)
        columns = f"column {image!r}" if mask is None else f"columns {image!r} and {mask!r}"
        notes.append(f"data.format hf: split {split.name!r}, {columns}: {len(pairs)} images in {folder}")
        found.append(pairs)
    if names and not config.classes:
        notes.append(f"data.classes: as the data set says: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}")
    return HuggingFace(found[0], found[1], names, notes)


def find_splits(root: Path) -> list[Split]:
    """The splits of a folder: of `save_to_disk`, or by the names of its Parquet files.

    Raises:
        ConfigError: neither is there.
    """
    if not root.is_dir():
        raise ConfigError(f"data.root: {root} is not a folder")
    if (root / "dataset_dict.json").is_file():
        names = [str(name) for name in _json(root / "dataset_dict.json").get("splits", [])]
        if bad := [name for name in names if not re.fullmatch(r"[\w.-]+", name) or not name.strip(".")]:
            raise ConfigError(f"{root / 'dataset_dict.json'}: {bad[0]!r} is no name of a split; correct it")
        return [_saved(name, root / name) for name in names]
    if (root / "state.json").is_file():
        return [_saved("train", root)]
    splits: dict[str, Split] = {}
    for path in sorted(root.rglob("*.parquet")):
        words = re.findall(r"[a-z]+", path.relative_to(root).as_posix().lower().removesuffix(".parquet"))
        name = next((word for word in reversed(words) if word in (*TRAIN, *VAL)), "train")
        splits.setdefault(name, Split(name, "parquet", [])).files.append(path)
    if not splits:
        raise ConfigError(
            f"data.root: {root} holds neither what save_to_disk writes (dataset_dict.json or state.json) nor Parquet "
            f"files; is it another data.format?"
        )
    return list(splits.values())


def described(split: Split) -> tuple[list[str], Any]:
    """Names of a split's columns, and what its features say of themselves.

    Raises:
        ConfigError: a file that is not there or cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = split.files[0]
    with _readable(path):
        if split.kind == "parquet":
            schema = pq.read_schema(path)
        else:
            with pa.memory_map(str(path)) as source:
                schema = pa.ipc.open_stream(source).schema
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    info = path.parent / "dataset_info.json"
    features = about.get("info", {}).get("features") if isinstance(about, dict) else None
    if not features and split.kind == "arrow" and info.is_file():
        features = _json(info).get("features")
    return list(schema.names), features


def column_of(there: Sequence[str], wanted: str | None, usual: Sequence[str], setting: str) -> str:
    """The column that a setting names, or the usual one.

    Raises:
        ConfigError: it is not there.
    """
    name = wanted or next((column for column in usual if column in there), None)
    if name not in there or name is None:
        what = f"{wanted!r} is not" if wanted else f"none of {', '.join(usual)} is"
        fix = "" if setting == "image_column" else ", or data.train_masks null for images alone"
        raise ConfigError(f"data.{setting}: {what} among the columns {', '.join(there)}; set it{fix}")
    return name


def class_names(root: Path, features: Any) -> list[str] | None:
    """Names of classes: of `id2label.json`, or of the only list of class labels that a row has many of.

    The label of a whole image, such as a kind of scene, is none of its pixels'.
    """
    if (root / "id2label.json").is_file():
        table = _json(root / "id2label.json")
        if table and all(key.isdecimal() for key in table):
            return [str(table[key]) for key in sorted(table, key=int)]
    found: list[list[str]] = []

    def look(node: Any, many: bool) -> None:
        if isinstance(node, list):
            for part in node:
                look(part, True)
        elif isinstance(node, dict):
            if node.get("_type") == "ClassLabel" and many and isinstance(node.get("names"), list):
                found.append([str(name) for name in node["names"]])
            many = many or node.get("_type") in ("Sequence", "List", "LargeList")
            for part in node.values():
                look(part, many)

    look(features, False)
    return found[0] if len(found) == 1 else None


def unpacked(split: Split, root: Path, place: Path, image: str, mask: str | None) -> tuple[Path, list[PairOfFiles]]:
    """The folder of a split's files, and its pairs; written if it is not there.

    Args:
        split: the split.
        root: the data set's folder.
        place: where such folders go.
        image: column of the images.
        mask: column of the masks, if there are any.

    Raises:
        ConfigError: a row without image or mask, or the place cannot be written.
    """
    facts = [(str(p.relative_to(root)), p.stat().st_size, p.stat().st_mtime_ns) for p in split.files]
    key = hashlib.sha256(json.dumps([facts, image, mask]).encode()).hexdigest()[:12]
    folder = place / f"{split.name}-{key}"
    if not folder.is_dir():
        try:
            place.mkdir(parents=True, exist_ok=True)
            with (place / f".{folder.name}.lock").open("w") as turn:
                fcntl.flock(turn, fcntl.LOCK_EX)  # of several processes the first unpacks
                if not folder.is_dir():
                    needed = sum(size for _, size, _ in facts)
                    publish(folder, lambda temporary: _write(split, temporary, image, mask), needed)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(f"data.unpacked: {place} cannot be written ({reason}); set another folder") from None
    images = {path.stem: path for path in sorted((folder / "images").iterdir())}
    masks = {path.stem: path for path in (folder / "masks").iterdir()} if mask else {}
    return folder, [PairOfFiles(stem, path, masks.get(stem)) for stem, path in images.items()]


def _write(split: Split, folder: Path, image: str, mask: str | None) -> None:
    """Unpacks a split into `images` and `masks`."""
    columns = {"images": image} | ({"masks": mask} if mask else {})
    for kind in columns:
        (folder / kind).mkdir(parents=True)
    for number, (path, row) in enumerate(_rows(split, list(columns.values()))):
        named = Path(str((row[image] or {}).get("path") or "")).stem if isinstance(row[image], dict) else ""
        stem = f"{number:06d}" + (f"_{named}" if re.fullmatch(r"[\w.-]{1,80}", named) and harmless(named) else "")
        for kind, column in columns.items():
            where = f"{path}: row {number} of split {split.name!r}, column {column!r}"
            content = _content(row[column], path.parent, where)
            if not (suffix := next((s for start, s in STARTS if content.startswith(start)), "")):
                raise ConfigError(f"{where}: is no PNG, JPEG, TIFF, BMP or WebP; store it as one")
            if kind == "masks" and suffix in (".jpg", ".webp"):
                raise ConfigError(f"{where}: a mask as {suffix[1:]}, which alters labels; store masks as PNG")
            (folder / kind / f"{stem}{suffix}").write_bytes(content)


def _content(value: Any, beside: Path, where: str) -> bytes:
    """The bytes of an image's file: its own, or those of the file that it names."""
    if isinstance(value, bytes):
        return value
    if value is None or (isinstance(value, dict) and not value.get("bytes") and not value.get("path")):
        raise ConfigError(f"{where}: is empty; remove the row, or fill it")
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: is a {type(value).__name__}; expected an image, a struct of bytes and path")
    if value.get("bytes"):
        return bytes(value["bytes"])
    path = beside / str(value["path"])
    if not path.is_file():
        raise ConfigError(f"{where}: names the file {path}, which is not there; save it with its images inside")
    return path.read_bytes()


def _rows(split: Split, columns: list[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The file and the values of each row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in split.files:
        with _readable(path):
            if split.kind == "parquet":
                with pq.ParquetFile(path) as file:
                    for batch in file.iter_batches(ROWS, columns=columns):
                        yield from ((path, row) for row in batch.to_pylist())
            else:
                with pa.memory_map(str(path)) as source:
                    for batch in pa.ipc.open_stream(source):
                        part = batch.select(columns)
                        for start in range(0, len(part), ROWS):
                            yield from ((path, row) for row in part.slice(start, ROWS).to_pylist())


def _saved(name: str, folder: Path) -> Split:
    """What `save_to_disk` wrote into a folder."""
    state = _json(folder / "state.json")
    listed = state.get("_data_files")
    files = [str(one.get("filename")) for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    paths = [folder / Path(file).name for file in files]
    if missing := [path for path in paths if not path.is_file()]:
        raise ConfigError(f"{missing[0]}: is not there, but {folder / 'state.json'} lists it; copy the whole folder")
    if not paths:
        raise ConfigError(f"{folder / 'state.json'}: lists no files; expected what save_to_disk writes")
    if state.get("_indices_data_files"):
        raise ConfigError(f"{folder}: was saved with its rows in another order; call flatten_indices() before saving")
    return Split(name, "arrow", paths)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raises ConfigError for what pyarrow raises of a file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, ValueError, KeyError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read ({first_line(error)}); replace it") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read ({first_line(error)}); copy the whole folder") from None
    return found if isinstance(found, dict) else {}
