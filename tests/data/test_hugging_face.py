"""Data sets of Hugging Face on disk, written as its library writes them."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.config.data import DataConfig
from distill.data import open_splits
from distill.errors import ConfigError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = ["ground", "lane"]
FEATURES = {
    "image": {"_type": "Image"},
    "scene": {"names": ["street", "park"], "_type": "ClassLabel"},
    "objects": {"feature": {"category": {"names": NAMES, "_type": "ClassLabel"}}, "_type": "Sequence"},
}


def as_file(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def table(count: int, first: int = 0, mask: str = "label", **columns) -> "pa.Table":
    images = [np.full((16, 24, 3), 10 * (first + i), np.uint8) for i in range(count)]
    masks = [np.full((16, 24), (first + i) % 2, np.uint8) for i in range(count)]
    rows = {
        "image": [{"bytes": as_file(x, "PNG"), "path": f"photo{first + i}.png"} for i, x in enumerate(images)],
        mask: [{"bytes": as_file(x), "path": None} for x in masks],
    } | columns
    made = pa.table({name: pa.array(values, STRUCT) for name, values in rows.items()})
    return made.replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": FEATURES}}).encode()})


def saved(folder: Path, *parts: "pa.Table") -> None:
    """As `Dataset.save_to_disk` writes them."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(parts):05d}.arrow" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, part.schema) as writer:
            writer.write_table(part)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))


def opened(root: Path, **settings):
    return open_splits(DataConfig(format="hf", root=str(root), crop_size=[16, 16], **settings))


def check(splits, train: int, val: int) -> None:
    assert (len(splits.train), len(splits.val)) == (train, val)
    for i in range(train):
        image, mask = splits.train.read(i)
        assert (image == 10 * i).all() and (mask == i % 2).all()
    assert splits.val.read(0)[0].max() == 10 * train


def test_what_save_to_disk_writes_is_unpacked_once(tmp_path):
    root = tmp_path / "set"
    saved(root / "train", table(2), table(1, 2))
    saved(root / "validation", table(2, 3))
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    splits = opened(root)
    check(splits, 3, 2)
    assert splits.classes == NAMES, "of the objects, not of the scene"
    assert "split 'train', columns 'image' and 'label': 3 images in" in splits.notes[0]
    assert splits.notes[2] == "data.classes: as the data set says: ground, lane"
    files = splits.train.files
    assert files[2][0].name == "000002_photo2.png"
    times = [path.stat().st_mtime_ns for paths in files for path in paths]
    assert opened(root).train.files == files
    assert [path.stat().st_mtime_ns for paths in files for path in paths] == times
    elsewhere = opened(root, unpacked=str(tmp_path / "there"), classes=["a", "b"])
    assert elsewhere.classes == ["a", "b"] and (tmp_path / "there").is_dir()


def test_a_part_of_the_only_split_may_be_left_out(tmp_path):
    saved(tmp_path / "set", table(4))
    splits = opened(tmp_path / "set", leave_out="photo[12]")
    assert [name[-1] for name in splits.train.names + splits.val.names] == ["0", "3", "1", "2"]


def test_parquet_files_are_read_by_their_names(tmp_path):
    (tmp_path / "data").mkdir()
    for name, count, first in (("train-00000-of-00002", 2, 0), ("train-00001-of-00002", 1, 2), ("test-00000", 1, 3)):
        pq.write_table(table(count, first, "annotation"), tmp_path / "data" / f"{name}.parquet")
    (tmp_path / "id2label.json").write_text(json.dumps({"1": "road", "0": "else"}))
    splits = opened(tmp_path)
    check(splits, 3, 1)
    assert splits.classes == ["else", "road"] and "split 'test'" in splits.notes[1]
    alone = opened(tmp_path, train_masks=None, val_fraction=0.73, image_column="image")
    assert not alone.labeled and len(alone.train) + len(alone.val) == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"mask_column": "masks"},
            r"data\.mask_column: 'masks' is not among the columns .*train_masks null",
        ),
        ({"image_column": "photo"}, r"data\.image_column: 'photo' is not among the columns image, label; set it"),
        ({}, r"data\.val_fraction: .* has no split called validation, .*; set the share to set aside"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, settings, words):
    pq.write_table(table(2), tmp_path / "train.parquet")
    with pytest.raises(ConfigError, match=words):
        opened(tmp_path, **settings | ({"val_fraction": 0.5} if settings else {}))


def test_bad_rows_and_files_are_named(tmp_path):
    whole = {"bytes": as_file(np.zeros((16, 24), np.uint8)), "path": None}
    lossy = {"bytes": as_file(np.zeros((16, 24), np.uint8), "JPEG"), "path": None}
    for i, (bad, words) in enumerate(
        [
            ({"bytes": None, "path": None}, r"row 1 of split 'train', column 'label': is empty"),
            ({"bytes": None, "path": "gone.png"}, r"names the file .*gone\.png, which is not there"),
            ({"bytes": b"GIF89a", "path": None}, r"is no PNG, JPEG, TIFF, BMP or WebP"),
            (lossy, r"a mask as jpg, which alters labels; store masks as PNG"),
        ]
    ):
        root = tmp_path / str(i)
        root.mkdir()
        pq.write_table(table(2, label=[whole, bad]), root / "train.parquet")
        with pytest.raises(ConfigError, match=words):
            opened(root, val_fraction=0.5)
        assert not list((root / "unpacked").glob("train-*"))
    (tmp_path / "0" / "train.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(ConfigError, match=r"train\.parquet: cannot be read"):
        opened(tmp_path / "0", val_fraction=0.5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds neither what save_to_disk writes"):
        opened(tmp_path / "empty")
