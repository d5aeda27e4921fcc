"""What was found good is not read again, unless something changed."""

import json
import os
import shutil

import pytest
from conftest import tiny_config
from PIL import Image

from distill.config import ConfigError
from distill.data import check_once, open_splits
from distill.pipeline import main


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
    assert look(camvid, tmp_path / "run")[:2] == (0, ["checked already: 12 files, none has changed"])
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
    assert look(camvid, tmp_path / "run", data__check="off") == (0, [], None)


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
    assert said.out.count("checked already: 12 files") == 1
