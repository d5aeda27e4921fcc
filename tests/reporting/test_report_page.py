"""`report.html`: whole, harmless whatever names say, without what a run does not have, and the same every time."""

import json
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import tiny_config

from distill.evaluation.details import ImageScore
from distill.evaluation.pictures import Drawn
from distill.reporting import charts
from distill.reporting.curves import Curves, read_curves, thinned
from distill.reporting.report_page import write_page
from distill.reporting.results import ExportResults, Refused, Results

HOSTILE = "<img src=x onerror=alert(1)> & \"'$x^2$\x1b[2J</svg></style><script>alert(1)</script>\nb"
ALONE = {"meta", "img", "br", "path", "use", "rect"}


class Page(HTMLParser):
    """Tags with their attributes, sections, and the text; refuses tags that do not match."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.sections: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "section":
            self.sections.append(dict(attributes)["id"])
        if tag not in ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def results(finished):
    return Results.from_json(json.loads((finished / "results.json").read_text()), finished)


@pytest.fixture
def written(finished, tmp_path):
    """`written(results, …)`: the page of these results, parsed."""
    shutil.copytree(finished / "student", tmp_path / "run" / "student")

    def write(results, curves=None, pictures=None, command="command", **settings):
        config = tiny_config(tmp_path / "run", **settings)
        write_page(tmp_path / "run", config, results, curves or Curves(), command, pictures)
        return Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))

    return write


def test_the_page_of_a_run_has_every_part_and_needs_no_other_file(finished):
    text = (finished / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.sections == [
        "results",
        "accuracy-and-cost",
        "classes",
        "learning-curves",
        "calibration",
        "where-student-and-teacher-disagree",
        "worst-images",
        "best-images",
        "files",
        "settings-that-differ-from-the-defaults",
        "data-and-weights",
        "versions",
        "again",
    ]
    assert len(text) < 1_000_000
    assert not {"script", "link", "iframe", "object", "foreignobject"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert attributes.get("src", "data:image/").startswith("data:image/"), tag
        assert (attributes.get("href") or attributes.get("xlink:href") or "#").startswith("#"), tag
        assert not [name for name in attributes if name.startswith("on")]
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    words = " ".join(page.words)
    results = json.loads((finished / "results.json").read_text())
    for part in (
        f"{100 * results['student']['mean_iou']:.2f}",
        f"{100 * results['details']['networks']['teacher']['boundary_iou']:.2f}",
        results["onnx"]["sha256"],
        "teacher.max_train_steps",
        f"--config {finished}/config.yaml",
        results["details"]["worst"][0]["name"],
    ):
        assert part in words, part


def test_names_are_text(results, written):
    text = json.dumps(results.to_json()).replace('"balloon"', json.dumps(HOSTILE))
    hostile = Results.from_json(json.loads(text), results.student.path.parent)
    hostile.details.worst = [ImageScore(name=HOSTILE, index=0, mean_iou={"student": 0.1})]
    drawn = Drawn({"input": np.zeros((4, 4, 3), np.uint8)}, [(HOSTILE, (1, 2, 3))])
    page = written(hostile, pictures={HOSTILE: drawn}, command=HOSTILE, data__classes=json.dumps([HOSTILE, "b"]))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert all(a["src"].startswith("data:") for tag, a in page.tags if tag == "img")
    shown = [words for words in page.words if "onerror" in words]
    assert len(shown) >= 5  # table, disagreement, image, legend, settings, command
    assert all("\x1b" not in words for words in shown)
    labels = [words for words in page.words if words.startswith("<img src=x onerror=alert(1)…")]
    assert labels, "the chart's label is cut, and no formula"


def test_charts_show_hostile_names_and_are_xml():
    names = [HOSTILE, "$x^2$", r"$\frac{$", "漢字"]
    svg = charts.class_dots({"student": dict.fromkeys(names, 0.5)}, names)
    texts = [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]
    assert {"$x^2$", r"$\frac{$", "漢字"} <= set(texts)
    assert svg == charts.class_dots({"student": dict.fromkeys(names, 0.5)}, names), "the same every time"
    picture = charts.confusion(np.eye(4), names, "student")
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and np.ptp(picture) > 200
    nothing = charts.confusion(np.full((60, 60), np.nan), ["c"] * 60, "student minus teacher", difference=True)
    assert nothing.shape[2] == 3


def test_what_a_run_does_not_have_is_left_out(results, written):
    page = written(replace(results, baseline=None))
    assert "baseline" not in " ".join(page.words)
    assert {"learning-curves", "worst-images", "best-images"}.isdisjoint(page.sections)
    assert "calibration" in page.sections
    page = written(replace(results, details=None, files=ExportResults()))
    assert page.sections[:3] == ["results", "accuracy-and-cost", "classes"]
    assert {"calibration", "where-student-and-teacher-disagree", "files"}.isdisjoint(page.sections)
    words = " ".join(page.words)
    assert "boundary IoU" not in words and "ms an image" not in words and "INT8" not in words
    page = written(replace(results, files=ExportResults(onnx=Refused("no <b>file</b>"))))
    assert any("No file for onnxruntime: no <b>file</b>" in words for words in page.words)


def test_without_labels_no_score_is_told(results, written):
    blind = {name: dict.fromkeys(results.classes) for name in results.networks}
    networks = {
        name: replace(numbers, classes_present=0, mean_iou=0.0, iou=blind[name])
        for name, numbers in results.networks.items()
    }
    page = written(replace(results, **networks, details=None))
    assert "results" in page.sections
    assert {"classes", "accuracy-and-cost", "calibration"}.isdisjoint(page.sections)
    words = " ".join(page.words).partition("Files")[0]
    assert "mIoU" not in words and "agreement" in words


def test_results_of_older_versions_still_make_a_page(finished, written):
    old = json.loads((finished / "results.json").read_text())
    del old["details"]
    assert Results.from_json(old).details is None
    page = written(Results.from_json(old, finished), read_curves(finished / "tensorboard"))
    assert "learning-curves" in page.sections


def test_results_come_back_from_json(results):
    again = Results.from_json(json.loads(json.dumps(results.to_json())), results.student.path.parent)
    assert again == results
    assert again.details.worst[0].mean_iou.keys() == {"teacher", "baseline", "student"}


def test_curves_are_those_that_tracking_wrote(finished):
    curves = read_curves(finished / "tensorboard")
    assert {name: [step for step, _ in points] for name, points in curves.mean_iou.items()} == {
        "teacher": [3, 6],
        "baseline": [3, 6],
        "student": [3, 6],
    }
    assert [step for step, _ in curves.cross_entropy["student"]] == [1, 2, 3, 4, 5, 6]
    assert read_curves(finished / "nowhere") == Curves()


def test_many_points_become_means_of_neighbors():
    points = [(step, float(step % 2)) for step in range(1, 1001)]
    few = thinned(points, 100)
    assert len(few) == 100
    assert few[-1] == (1000, 0.5)
    assert thinned(points[:5], 100) == points[:5]
    assert thinned([]) == []
