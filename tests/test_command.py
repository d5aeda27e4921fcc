"""The installed command: from a wheel in another folder, in one process and in several."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, TINY, flags

from distill import cli

SMALL = {**TINY, "teacher.max_train_steps": 1, "student.max_train_steps": 1, "baseline.enabled": False}
SMALL |= {"export.enabled": False, "data.check": "off", "num_sample_images": 1}


def run(arguments, folder: Path, package: Path = ROOT, code: int = 0) -> subprocess.CompletedProcess:
    """Runs Python from a folder that is not the repository's, and sees no package but the one given."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(package)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel's content in a folder; the installed libraries stand beside it, the repository does not."""
    folder = tmp_path_factory.mktemp("wheel")
    run(["-m", "pip", "wheel", str(ROOT), "--no-deps", "-q", "-w", str(folder)], folder)
    (built,) = folder.glob("distill-*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def test_a_wheel_is_whole(wheel, tmp_path):
    assert not {path.name for path in wheel.iterdir()} & {"scripts", "tests", "configs"}
    assert (wheel / "distill" / "py.typed").is_file()
    (about,) = wheel.glob("*.dist-info")
    assert "distill = distill.cli:main" in (about / "entry_points.txt").read_text()
    code = (
        "import sys, time; t = time.process_time(); import distill; t = time.process_time() - t\n"
        f"assert 'torch' not in sys.modules and t < 0.3, t\nassert distill.__file__.startswith({str(wheel)!r})"
    )
    run(["-c", code], tmp_path, wheel)
    assert "usage: distill COMMAND" in run(["-m", "distill", "--help"], tmp_path, wheel).stdout
    for command in ("predict", "evaluate", "sweep", "compare"):
        assert "usage" in run(["-m", "distill", command, "--help"], tmp_path, wheel).stdout
    run(["-m", "distill", "train", *flags(SMALL)], tmp_path, wheel)
    assert (tmp_path / "checkpoints" / "default" / "report.md").is_file()


def test_several_processes_are_started_and_say_one_line_when_they_fail(tmp_path):
    wanted = flags(SMALL | {"num_processes": 2})
    assert "2 process(es)" in run(["-m", "distill", "train", *wanted], tmp_path).stdout
    (tmp_path / "file").touch()
    failed = run(["-m", "distill", "train", *wanted, "--output_dir=file"], tmp_path, code=1)
    assert failed.stderr.splitlines() == ["distill: error: file: is not a folder; set another --name or --output_dir"]


def test_a_wrong_command_is_one_line(capsys):
    assert cli.main(["trian"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"distill: error: 'trian' is not one of {', '.join(cli.COMMANDS)}; see distill --help"
    ]
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    capsys.readouterr()
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("distill 0.")


def test_the_readme_shows_what_distill_results_prints(monkeypatch, capsys):
    readme = (ROOT / "README.md").read_text()
    (paths,) = re.findall(r"^    distill results (.*)$", readme, re.M)
    monkeypatch.chdir(ROOT)
    assert cli.main(["results", *paths.split()]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) > 3
    assert [line for line in readme.splitlines() if line in rows] == rows


def test_results_of_something_else_are_named(tmp_path, capsys):
    assert cli.main(["results", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"distill: error: {tmp_path}: holds no results of a run or a comparison")
