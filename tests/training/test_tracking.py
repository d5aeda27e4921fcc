"""TensorBoard: points of a run that was stopped and went on, each once; what compares the networks of a run."""

import io
import json
import re
import time

import pytest
from conftest import tiny_config
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from trainings import run_of

from distill.training.tracking import Tracker


@pytest.mark.parametrize("hours", [[1, 0], [3, 2, 2, 0], [0, 0, 0, 0], [0, 1, 2]])
def test_a_clock_that_is_set_back_hides_nothing(tmp_path, monkeypatch, hours):
    clock = time.time
    for part, hour in enumerate(hours):
        monkeypatch.setattr(time, "time", lambda hour=hour: clock() + 3600 * hour)
        run = run_of(tiny_config(tmp_path))
        tracker = Tracker(run.accelerator, "student", first_step=2 * part + 1)
        for step in range(2 * part + 1, 2 * part + 4):  # the last one is done again
            tracker.scalars({"train/loss": part}, step)
        tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "student"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 2 * len(hours) + 2))
    last = [event.value for event in events.Scalars("train/loss")][-3:]
    assert last == [len(hours) - 1] * 3


@pytest.fixture(scope="module")
def events(finished):
    """All that TensorBoard reads of a finished run, by network."""
    found = {}
    for name in ("teacher", "baseline", "student"):
        kept = {"images": 0, "tensors": 0, "scalars": 0}
        found[name] = EventAccumulator(str(finished / "tensorboard" / name), size_guidance=kept)
        found[name].Reload()
    return found


def test_pictures_come_at_several_steps_and_are_jpeg(events):
    student = events["student"]
    samples = [tag for tag in student.Tags()["images"] if tag.startswith("samples/")]
    assert len(samples) == 3
    for tag in samples:
        pictures = student.Images(tag)
        assert [picture.step for picture in pictures] == [3, 7]
        for picture in pictures:
            image = Image.open(io.BytesIO(picture.encoded_image_string))
            assert image.format == "JPEG"
            assert image.size == (picture.width, picture.height)
    assert not [tag for tag in events["baseline"].Tags()["images"] if tag.startswith("samples/")]


def test_confusion_stands_under_one_tag_and_its_differences_with_the_student(events):
    assert all("confusion" in found.Tags()["images"] for found in events.values())
    differences = {tag for tag in events["student"].Tags()["images"] if tag.startswith("confusion/")}
    assert differences == {"confusion/student minus teacher", "confusion/student minus baseline"}


def test_the_gap_and_what_is_closed_of_it_are_the_scores_own(events):
    values = {name: {event.step: event.value for event in found.Scalars("val/mIoU")} for name, found in events.items()}
    student = events["student"]
    final = {name: found.Scalars("final/mIoU")[0].value for name, found in events.items()}
    for event in student.Scalars("compare/gap_mIoU"):
        assert event.value == pytest.approx(final["teacher"] - values["student"][event.step], abs=1e-6)
    for event in student.Scalars("compare/gain_mIoU"):
        assert event.value == pytest.approx(values["student"][event.step] - final["baseline"], abs=1e-6)
    whole = final["teacher"] - final["baseline"]
    closed = student.Scalars("compare/gap_closed") if whole > 0 else []
    for event in closed:
        gain = values["student"][event.step] - final["baseline"]
        assert event.value == pytest.approx(gain / whole, rel=1e-3, abs=1e-4)


def test_every_network_has_its_settings_and_final_scores(events, finished):
    results = json.loads((finished / "results.json").read_text())
    for name, found in events.items():
        assert found.Scalars("final/mIoU")[0].value == pytest.approx(results[name]["mean_iou"])
        content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        told = HParamsPluginData.FromString(content).session_start_info.hparams
        assert told["network"].string_value == name
        assert told["kd.weight"].number_value == (3 if name == "student" else 0)
        assert told["steps"].number_value == 6


def test_the_layout_and_the_table_of_classes_are_there(events):
    student = events["student"]
    layout = Layout.FromString(student.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    tags = student.Tags()["scalars"]
    for title in ("mIoU", "gap to the teacher", "agreement with the teacher", "pull of each term beside cross-entropy"):
        assert any(re.match(charts[title][0], tag) for tag in tags), title
    assert charts["sky"] == ["^val_iou/sky$"]
    text = student.Tensors("IoU of each class/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "student minus baseline" in text and "| balloon" in text
