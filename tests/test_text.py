"""Names that others chose are shown, never obeyed."""

import json
import os
import re
import shutil
from pathlib import Path

import onnx_files
import pytest
from conftest import tiny_config
from PIL import Image

from distill import predict
from distill.config import ConfigError
from distill.config_parse import parse
from distill.data import open_splits
from distill.pipeline import main
from distill.text import cell, harmless, printable

RED = "\x1b[31mred\x1b]0;title\x07"


def test_what_a_terminal_would_obey_is_written_out():
    assert printable("улица 1 ü 日本\u3000‌é") == "улица 1 ü 日本\u3000‌é"
    assert printable("a\x1b[2J\n\x9b\udcff\u2028", keep="\n") == "a\\x1b[2J\n\\x9b\\udcff\\u2028"
    assert harmless("улица 1 ü")
    assert not any(harmless(name) for name in ("\x1b", "\n", "\x7f", "\x9b", "\udcff", "\u2028"))
    assert cell("a_b [1, 2] ü") == "a_b [1, 2] ü"
    assert cell("<b>|`*~[x](y)[z]\n") == r"&lt;b&gt;\|\`\*\~[x\](y)[z]\\n"


@pytest.mark.parametrize("name", [b"train_\xff", RED.encode(), b"two\nlines"])
def test_file_names_that_cannot_be_shown_stop_the_run_in_one_line(camvid, tmp_path, capsys, name):
    for folder, suffix in (("val", b"jpg"), ("valannot", b"png")):
        os.rename(
            camvid / folder / f"val_0.{suffix.decode()}", os.fsencode(camvid / folder) + b"/" + name + b"." + suffix
        )
    assert main(tiny_config(tmp_path / "run", data__format="camvid", data__root=camvid)) == 1
    message = capsys.readouterr().err
    assert "its name has a control character or is not UTF-8; rename it" in message
    assert printable(os.fsdecode(name)) in message
    assert len(message.splitlines()) == 1
    assert "\x1b" not in message
    assert not (tmp_path / "run").exists()


def test_class_names_and_settings_that_cannot_be_shown_are_refused(camvid, tmp_path, capsys):
    folders = {
        f"data__{s}_{kind}": f"{s}{end}" for s in ("train", "val") for kind, end in (("images", ""), ("masks", "annot"))
    }
    classes = json.dumps(["a", RED])
    config = tiny_config(tmp_path, data__format="folders", data__root=camvid, data__classes=classes, **folders)
    with pytest.raises(ConfigError, match=r"data\.classes: .*control character") as error:
        open_splits(config.data)
    assert "\x1b" not in str(error.value)
    with pytest.raises(SystemExit):
        parse([f"--data.root={os.fsdecode(b'/data/' + bytes([255]))}"])
    assert re.search(r"data\.root: /data/\\udcff is not UTF-8; rename it", capsys.readouterr().err)


def test_folders_of_any_name_are_shown_and_not_obeyed(camvid, tmp_path, capsys):
    odd = tmp_path / RED
    shutil.copytree(camvid, odd)
    (odd / "train" / "train_1.jpg").write_text("no image")
    assert main(tiny_config(tmp_path / "run", data__format="camvid", data__root=odd)) == 1
    message = capsys.readouterr().err
    assert printable(RED) in message
    assert "\x1b" not in message


def test_predict_shows_the_names_of_other_peoples_files_and_classes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(onnx_files, "CLASSES", ["sky", RED, "sea"])
    model = onnx_files.write(tmp_path / "model.onnx")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    for name in (RED.encode(), b"b\xff"):
        Path(os.fsdecode(os.fsencode(tmp_path / "photos") + b"/" + name + b".png")).write_text("no image")
    assert predict.main([str(model), str(tmp_path / "photos"), "--output_dir", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert printable(RED) in said.out
    assert printable(RED) in said.err
    assert "b\\udcff.png" in said.err
    assert "\x1b" not in said.out + said.err
