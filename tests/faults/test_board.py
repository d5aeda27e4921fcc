"""The board keeps what it has, whatever a figure does."""

import json
import sys

import board
import pytest
from harness import Figure


def test_a_figure_that_crashes_does_not_lose_the_others(tmp_path, monkeypatch, capsys):
    def crash(folder):
        (folder / "a").touch()
        raise ZeroDivisionError("oh")

    def fine(folder):
        return Figure("long name", "2 / 2", "2 / 2", True)

    figures = {"one": ("first", crash, fine), "two": ("second", fine, fine), "three": ("third", fine, fine)}
    monkeypatch.setattr(board, "FIGURES", figures)
    monkeypatch.setattr(sys, "argv", ["board.py", "--json", str(tmp_path / "board.json"), "one", "two"])
    assert board.main() == 1
    told = capsys.readouterr()
    assert told.out.splitlines()[2:] == [
        "| `one` | first | to run through | **crashed** | 0 |",
        "| `two` | second | 2 / 2 | 2 / 2 | 0 |",
    ]
    assert "ZeroDivisionError: oh" in told.err
    monkeypatch.setattr(sys, "argv", ["board.py", "--json", str(tmp_path / "board.json"), "one", "--quick"])
    assert board.main() == 0
    kept = json.loads((tmp_path / "board.json").read_text())
    assert {name: line["ok"] for name, line in kept.items()} == {"one": True, "two": True}
    assert kept["one"]["command"] == "python scripts/board.py one --quick"


def test_an_unknown_figure_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["board.py", "kill"])
    with pytest.raises(SystemExit):
        board.main()
    assert "kill: the figures are kills, kills-2" in capsys.readouterr().err
