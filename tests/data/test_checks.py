"""What was found good is not read again, unless something changed."""

import json
import os
import re
import shutil
import sys

import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image

from distill.cli import run_here as main
from distill.data import check_once, open_splits
from distill.errors import ConfigError


def look(camvid, folder, **settings) -> tuple[int, list[str], dict]:
    """How many items were looked at, what was said, and what is to be remembered."""
    config = tiny_config(folder, data__format="camvid", data__root=camvid, **settings).data
    said: list[str] = []
    looked: list[int] = []

    def watched(items, **_):
        looked.extend(items)
        return items

    record = folder / "checked.json"
    found = check_once(open_splits(config), config, record, watched, said.append)
    if found:
        folder.mkdir(exist_ok=True)
        record.write_text(json.dumps(found))
    return len(looked), said, found


def test_the_second_time_nothing_is_read(camvid, tmp_path):
    assert look(camvid, tmp_path / "run")[:2] == (6, [])
    assert look(camvid, tmp_path / "run")[:2] == (0, ["already checked: 12 files, none has changed"])
    assert look(camvid, tmp_path / "other")[0] == 6


def in_place(path) -> None:
    """Other content of the same size and modification time."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        lambda root: os.utime(root / "train" / "train_0.jpg"),
        lambda root: in_place(root / "train" / "train_0.jpg"),
        lambda root: (root / "val" / "val_1.jpg").unlink() or (root / "valannot" / "val_1.png").unlink(),
        lambda root: (
            shutil.copy(root / "train" / "train_0.jpg", root / "x")
            and (root / "x").replace(root / "train" / "train_0.jpg")
        ),
        lambda root: Image.new("L", (56, 40)).save(root / "trainannot" / "train_2.png"),
    ],
    ids=["touched", "in place", "fewer", "replaced", "mask"],
)
def test_a_change_is_noticed(camvid, tmp_path, change):
    look(camvid, tmp_path / "run")
    change(camvid)
    assert look(camvid, tmp_path / "run")[0] >= 5
    assert look(camvid, tmp_path / "run")[0] == 0


def test_a_verdict_holds_for_what_it_was_about(camvid, tmp_path):
    assert look(camvid, tmp_path / "run", data__check="headers")[0] == 6
    assert look(camvid, tmp_path / "run", data__check="full")[0] == 6
    assert look(camvid, tmp_path / "run", data__check="headers")[0] == 0
    assert look(camvid, tmp_path / "run", data__max_pixels=10_000)[0] == 6
    assert look(camvid, tmp_path / "run", data__check="off")[:2] == (0, [])
    assert look(camvid, tmp_path / "run", data__check="headers")[0] == 6


@pytest.mark.parametrize("level", ["off", "headers", "full"])
def test_fingerprints_are_those_of_the_contents_whatever_is_looked_at(camvid, tmp_path, level, monkeypatch):
    settings = {"data__unlabeled": "train", "data__check": level}
    _, _, found = look(camvid, tmp_path / "run", **settings)
    assert list(found["contents"]) == ["data.train_files", "data.unlabeled_files", "data.val_files"]
    assert found["contents"]["data.train_files"].startswith("8 files, sha256 ")
    shutil.copytree(camvid, tmp_path / "moved")
    assert (
        look(tmp_path / "moved", tmp_path / "other", **settings | {"data__check": "full"})[2]["contents"]
        == (found["contents"])
    )
    with monkeypatch.context() as patch:  # a restart takes them from the record
        patch.setattr(
            sys.modules["distill.data.contents"], "content_hash", lambda path: pytest.fail(f"{path} was read again")
        )
        assert look(camvid, tmp_path / "run", **settings)[2] == found
    in_place(camvid / "trainannot" / "train_3.png")
    mask = Image.fromarray(np.zeros((40, 56), np.uint8))
    mask.save(camvid / "valannot" / "val_0.png")
    after = look(camvid, tmp_path / "run", **settings | {"data__check": "off"})[2]["contents"]
    assert [key for key in after if after[key] != found["contents"][key]] == ["data.train_files", "data.val_files"]


def test_what_cannot_be_read_is_named_though_nothing_is_looked_at(camvid, tmp_path):
    path = camvid / "trainannot" / "train_1.png"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=r"train_1\.png: is not a file"):
        look(camvid, tmp_path / "run", data__check="off")


def test_an_image_that_comes_to_both_splits_later_is_found(camvid, tmp_path):
    look(camvid, tmp_path / "run")
    shutil.copy(camvid / "train" / "train_1.jpg", camvid / "val" / "val_0.jpg")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"val_0\.jpg: the same image as .*train_1\.jpg"):
            look(camvid, tmp_path / "run")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"sha256": 1}', "[" * 9_000])
def test_a_record_that_is_not_one_counts_for_nothing(camvid, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checked.json").write_text(content)
    assert look(camvid, tmp_path / "run")[0] == 6


def test_a_run_remembers_and_a_folder_of_something_else_stays_untouched(camvid, tmp_path, capsys):
    settings = {"data__format": "camvid", "data__root": camvid, "teacher__learning_rate": 1e15}
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").touch()
    assert main(tiny_config(folder, **settings)) == 1
    assert [path.name for path in folder.iterdir()] == ["cat.jpg"]
    for _ in range(2):
        assert main(tiny_config(tmp_path / "run", **settings)) == 1
    said = capsys.readouterr()
    assert said.err.count("is not finite at step 2") == 2
    assert said.out.count("already checked: 12 files") == 1


def label(camvid, change) -> None:
    """Every training mask anew."""
    for path in (camvid / "trainannot").iterdir():
        Image.fromarray(change(np.array(Image.open(path)))).save(path)


FOLDERS = {
    "data__format": "folders",
    "data__train_images": "train",
    "data__train_masks": "trainannot",
    "data__val_images": "val",
    "data__val_masks": "valannot",
}
NEVER = r"no training mask shows 'sign' \(id 6\)"


def test_a_class_that_no_training_mask_shows_stops_the_run(camvid, tmp_path):
    label(camvid, lambda mask: np.where(mask == 6, 3, mask))
    with pytest.raises(ConfigError, match=NEVER + ".*data.allow_missing_classes"):
        look(camvid, tmp_path / "run")
    assert look(camvid, tmp_path / "run", data__allow_missing_classes="true")[0] == 6
    # What was counted is remembered, so those who do not mean it are stopped without a second look.
    said: list[str] = []
    config = tiny_config(tmp_path / "run", data__format="camvid", data__root=camvid).data
    with pytest.raises(ConfigError, match=NEVER):
        check_once(open_splits(config), config, tmp_path / "run" / "checked.json", say=said.append)
    assert said == ["already checked: 12 files, none has changed"]
    for level in ("off", "headers"):  # nothing is counted, so nothing is known
        look(camvid, tmp_path / level, data__check=level)


def test_masks_of_0_and_255_stop_with_the_cause(camvid, tmp_path, capsys):
    for folder in ("trainannot", "valannot"):
        for path in (camvid / folder).iterdir():
            mask = np.array(Image.open(path))
            Image.fromarray(np.where(mask > 2, 255, 0).astype(np.uint8)).save(path)
    settings = FOLDERS | {"data__root": camvid, "data__classes": '["background", "lane"]'}
    assert main(tiny_config(tmp_path / "run", **settings)) == 1
    message = capsys.readouterr().err
    assert re.search(
        r"no training mask shows 'lane' \(id 1\) and 7\d\.\d % of the training masks' pixels are void", message
    )
    assert "label 255 mean a class, as in masks of 0 and 255" in message
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_masks_that_are_void_stop_the_run(camvid, tmp_path):
    label(camvid, lambda mask: np.where(np.arange(56) < 30, 11, mask).astype(np.uint8))
    with pytest.raises(
        ConfigError, match=r"data.classes: 5\d\.\d % of .* pixels are void; does the label 11 mean a class"
    ):
        look(camvid, tmp_path / "run")
    assert look(camvid, tmp_path / "run", data__max_void_share=0.7)[0] == 6
    label(camvid, lambda mask: np.full_like(mask, 11))
    with pytest.raises(ConfigError, match=r"no training mask shows 'sky' \(id 0\), .* and 6 more and 100\.0 %"):
        look(camvid, tmp_path / "run")


def test_validation_masks_without_a_label_stop_the_run(camvid, tmp_path):
    for path in (camvid / "valannot").iterdir():
        Image.new("L", (56, 40), 11).save(path)
    with pytest.raises(ConfigError, match="no pixel of the 2 validation masks has a class"):
        look(camvid, tmp_path / "run")


@pytest.mark.parametrize(
    ("classes", "words"), [(["background"], "nothing to decide"), (["a", "b", "a"], "'a' stands twice")]
)
def test_classes_that_cannot_be_told_apart_are_refused(camvid, tmp_path, classes, words):
    config = tiny_config(tmp_path, data__root=camvid, data__classes=json.dumps(classes), **FOLDERS).data
    with pytest.raises(ConfigError, match=f"data.classes: .*{words}"):
        open_splits(config)


def test_an_image_too_small_to_be_augmented_is_named_before_the_first_step(camvid, tmp_path, capsys):
    for folder, suffix in (("train", "jpg"), ("trainannot", "png")):
        Image.new("L", (1, 1)).save(camvid / folder / f"train_2.{suffix}")
    settings = {"data__format": "camvid", "data__root": camvid, "num_threads": 1}
    assert main(tiny_config(tmp_path / "run", **settings)) == 1
    message = capsys.readouterr().err
    assert re.search(r"train_2\.jpg: is 1×1, which data\.augmentations cannot work on", message)
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "run").exists()
    for workers in (0, 1):  # what is not looked at is named when it is met
        more = settings | {"data__check": "off", "data__num_workers": workers, "eval_steps": 10}
        assert main(tiny_config(tmp_path / f"off{workers}", **more)) == 1
        message = capsys.readouterr().err
        assert "train_2.jpg: is 1×1" in message
        assert len(message.splitlines()) == 1
