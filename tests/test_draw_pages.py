"""The pages of configs/text_detector.yaml: exact masks, fonts and backgrounds kept aside, the same every time."""

import importlib.util
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from conftest import ROOT

SPEC = importlib.util.spec_from_file_location("draw_pages", ROOT / "scripts" / "draw_pages.py")
draw_pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(draw_pages)


@pytest.fixture(scope="module")
def fonts():
    return draw_pages.makes([Path(matplotlib.get_data_path()) / "fonts" / "ttf"])


def test_makes_are_kept_aside_whole(fonts):
    assert {"DejaVu", "STIXGeneral", "Computer"} == set(fonts)
    train, val = draw_pages.aside(fonts)
    assert train and val and not train.keys() & val.keys() and train | val == fonts
    names = {path.name for paths in fonts.values() for path in paths}
    assert not names & {"cmsy10.ttf", "cmex10.ttf", "cmmi10.ttf", "LastResortHE-Regular.ttf"}  # not letters


def test_a_mask_is_the_box_without_its_border(fonts, monkeypatch):
    width, height, ratio = 120.0, 20.0, 0.6
    box = draw_pages.Image.new("L", (140, 40)), (4, 4, width, height)
    monkeypatch.setattr(draw_pages, "line", lambda *_: box)
    for seed in range(20):
        _, mask = draw_pages.page(np.random.default_rng(seed), fonts, ("plain",), ratio)
        if mask.any():
            break
    border = width * height * (1 - ratio**2) / (2 * (width + height))
    area = (width - 2 * border) * (height - 2 * border)
    count = mask.sum() / area
    assert abs(count - round(count)) < 0.05 and count > 0.9, "whole boxes, to the rounding of their edges"


def test_the_same_arguments_give_the_same_pages(fonts):
    first, again = (list(draw_pages.pages("train", 2, fonts, 0.6, 0)) for _ in range(2))
    for (name, image, mask), (name2, image2, mask2) in zip(first, again, strict=True):
        assert name == name2 and image.size == (480, 320) and set(np.unique(mask)) <= {0, 1}
        assert (np.asarray(image) == np.asarray(image2)).all() and (mask == mask2).all()
    other = next(iter(draw_pages.pages("val", 1, fonts, 0.6, 0)))
    assert (np.asarray(other[1]) != np.asarray(first[0][1])).any()


def test_the_command_writes_both_splits_or_says_what_it_lacks(fonts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(draw_pages, "makes", lambda _: fonts)
    monkeypatch.setattr("sys.argv", ["draw_pages.py", str(tmp_path), "--train", "2", "--val", "1"])
    assert draw_pages.main() == 0
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    pages = ["train/{}/00000.png", "train/{}/00001.png", "val/{}/00000.png"]
    assert written == sorted(page.format(kind) for page in pages for kind in ("images", "masks"))
    assert "val: 1 pages, 1 makes of fonts: " in capsys.readouterr().out
    monkeypatch.setattr(draw_pages, "makes", lambda _: {"DejaVu": fonts["DejaVu"]})
    assert draw_pages.main() == 2
    assert capsys.readouterr().err.count("\n") == 1
