"""A stopped or finished run goes on with the data and the teacher that it began with, or says what is another."""

import json
from pathlib import Path

import pytest
from mixing import IN_STUDENT, RUNTIME_SETTINGS, STANDS, WAYS, Way, mixings, ready, start_again


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mixing")


@pytest.mark.parametrize("stands", STANDS)
def test_nothing_is_mixed(folder, stands):
    names = [name for name, way in WAYS.items() if way.stands == stands]
    figure = mixings(names if stands != IN_STUDENT else names[1::2], folder)
    assert figure.ok, "\n".join(figure.failures)


@pytest.mark.faults
def test_nothing_is_mixed_in_any_way(folder):
    figure = mixings(list(WAYS), folder)
    assert figure.ok, "\n".join(figure.failures)


def test_what_is_the_same_goes_on_and_ends_with_the_same_bits(folder):
    results = []
    for way in RUNTIME_SETTINGS.values():
        place = ready(folder, way.stands)
        code, said = start_again(place, way)
        assert (code, said) == (0, "")
        results.append((place / "run" / "student" / "model.safetensors").read_bytes())
    assert results[1:] == results[:-1]


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("a label, teacher from elsewhere", "data.train_files"),
        ("an image more without labels", "data.unlabeled_files"),
        ("the teacher's mean", "teacher.files"),
    ],
)
def test_who_means_it_goes_on_and_it_is_recorded(folder, name, allowed):
    place = ready(folder, WAYS[name].stands)
    code, said = start_again(place, WAYS[name], allow_change=f"[{allowed}]")
    assert (code, said) == (0, "")
    (change,) = json.loads((place / "run" / "student" / "stage.json").read_text())["changes"]
    assert (change["step"], list(change["settings"])) == (2, [allowed])
    code, said = start_again(place, Way(IN_STUDENT, lambda f: None, ""))
    assert (code, said) == (0, ""), "what was allowed once is now what it was made from"
