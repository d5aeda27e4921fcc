"""What the report tells beyond scores: who is right, the worst images, boundaries and calibration as elsewhere."""

import numpy as np
import pytest
import torch
from known_answers import Brightness, made_up

from distill.batch import UNLABELED, VOID
from distill.data.datasets import Dataset
from distill.evaluation import details
from distill.evaluation.detailed import assess
from distill.evaluation.details import Details, answer, chosen, extremes, look_closely, who_is_right
from distill.evaluation.pictures import BOTH_WRONG, STUDENT_WRONG, TEACHER_WRONG, Drawn, disagreement, joined, panels
from distill.evaluation.scores import Evaluation, evaluate
from distill.metrics import Scores, confusion_matrix

PALETTE = [(i, 2 * i, 3 * i) for i in range(5)]


class Placed(Brightness):
    """The same, as what stands on a device."""

    mean = torch.zeros(1)


def test_who_is_right_pixel_by_pixel():
    mask = np.array([[0, 0, 1, 1, 2, VOID, UNLABELED]], np.uint8)
    teacher = np.array([[0, 0, 1, 2, 1, 0, 0]], np.uint8)
    student = np.array([[0, 1, 2, 1, 0, 1, 1]], np.uint8)
    pixels, student_right, teacher_right, both_wrong = who_is_right(teacher, student, mask, 3)
    assert pixels.tolist() == [2, 2, 1]
    assert student_right.tolist() == [0, 1, 0]
    assert teacher_right.tolist() == [1, 1, 0]
    assert both_wrong.tolist() == [0, 0, 1]
    colored = disagreement(np.zeros((1, 7, 3), np.uint8), mask, teacher, student)[0].tolist()
    expected = [None, STUDENT_WRONG, STUDENT_WRONG, TEACHER_WRONG, BOTH_WRONG, None, None]
    assert colored == [list(color or (60, 60, 60)) for color in expected]


@pytest.mark.parametrize("world", [1, 3])
def test_each_image_is_scored_by_itself_whatever_the_processes(world):
    dataset, networks = made_up(10), {"teacher": Brightness(5), "student": Brightness(5, shift=1)}
    parts: list[torch.Tensor] = []
    for rank in range(world):
        evaluate(networks, dataset, 2, "cpu", rank, world, lambda c: parts.append(c) or c, each_image=True)
    total = torch.stack(parts).sum(0)
    found = evaluate(networks, dataset, 2, "cpu", reduce=lambda _: total, each_image=True)
    for name, network in networks.items():
        for index in range(10):
            image, mask = dataset.read(index)
            ids = (torch.from_numpy(image[..., 0]).long() + network.shift) % 5
            alone = Scores(confusion_matrix(ids[None], torch.from_numpy(mask)[None], 5)).mean_iou
            assert found.image_iou[name][index] == pytest.approx(alone, abs=1e-9)
    plain = evaluate(networks, dataset, 2, "cpu")
    assert plain.image_iou == {}
    assert torch.equal(plain.scores["student"].matrix, found.scores["student"].matrix)
    assert plain.agreement == found.agreement


def test_an_image_without_labels_has_no_score_and_is_neither_worst_nor_best():
    dataset = made_up(4)
    read = dataset.read
    blank = Dataset(dataset.names, lambda i: (read(i)[0], np.full_like(read(i)[1], VOID)), [()] * 4, lambda i: None)
    only = Dataset(dataset.names, lambda i: blank.read(i) if i == 2 else read(i), [()] * 4, lambda i: None)
    found = evaluate({"student": Brightness(5)}, only, 2, "cpu", each_image=True)
    assert [value is None for value in found.image_iou["student"]] == [False, False, True, False]
    worst, best = extremes(found, only.names)
    assert 2 not in {score.index for score in (*worst, *best)}


def test_the_worst_come_first_and_none_is_both():
    values = [0.5, 0.1, 0.9, 0.3, None, 0.7, 0.2]
    found = Evaluation({}, {}, {"teacher": [1.0] * 7, "student": values})
    worst, best = extremes(found, list("abcdefg"))
    assert [score.name for score in worst] == ["b", "g", "d"]
    assert [score.name for score in best] == ["c", "f"]
    assert worst[0].mean_iou == {"teacher": 1.0, "student": 0.1}
    assert [[s.name for s in part] for part in extremes(Evaluation({}, {}, {"student": [0.4]}), ["a"])] == [["a"], []]
    assert extremes(Evaluation({}, {}), []) == ([], [])


def test_boundaries_and_calibration_are_those_of_a_detailed_evaluation():
    dataset, networks = made_up(7), {"teacher": Placed(5), "student": Placed(5, shift=1)}
    evaluation = evaluate(networks, dataset, 2, "cpu", each_image=True)
    found = look_closely(networks, dataset, list("abcde"), evaluation)
    for name, network in networks.items():

        def probabilities(image, network=network):
            return network(torch.from_numpy(image).permute(2, 0, 1)[None]).upsampled()[0].softmax(0)

        whole = assess(5, probabilities, dataset)
        assert found.networks[name].boundary_iou == whole.boundary.mean
        assert found.networks[name].calibration_error == pytest.approx(whole.calibration.error, abs=1e-6)
        assert found.networks[name].bin_pixels == whole.calibration.pixels.tolist()
    assert found.images == 7
    labeled = sum(int((dataset.read(i)[1] < UNLABELED).sum()) for i in range(7))
    assert sum(d.pixels for d in found.disagreement.values()) == labeled
    assert sum(d.differing for d in found.disagreement.values()) == labeled  # the student is one off everywhere
    assert Details.from_json(found.to_json()) == found
    confidence, ids = answer(networks["student"], dataset.read(0)[0])
    assert confidence.dtype == np.float32 and ids.dtype == np.uint8 and confidence.max() <= 1


def test_of_many_or_large_images_some_are_looked_at(monkeypatch):
    assert chosen(made_up(3)) == [0, 1, 2]
    monkeypatch.setattr(details, "MOST_IMAGES", 4)
    assert chosen(made_up(10)) == [0, 2, 5, 7]
    monkeypatch.setattr(details, "MOST_PIXELS", 35)  # the first image has 15
    assert chosen(made_up(10)) == [0, 5]
    monkeypatch.setattr(details, "MOST_PIXELS", 1)
    assert chosen(made_up(10)) == [0]


def test_panels_stand_in_the_order_that_is_compared_and_their_legend_below():
    image, mask = made_up(1).read(0)
    said = {"student": mask % 5, "teacher": mask % 5, "baseline": mask % 5}
    found = panels(image, mask, said, PALETTE)
    assert list(found) == ["input", "ground truth", "teacher", "baseline", "student", "disagreement"]
    assert list(panels(image, mask, {"student": mask % 5}, PALETTE)) == ["input", "ground truth", "student"]
    wide = {title: np.zeros((20, 90, 3), np.uint8) for title in list(found)[:5]}
    legend = [("sky", (1, 2, 3)), ("a name", (200, 100, 0))]
    one, two = joined(Drawn(wide, legend), 5), joined(Drawn(wide, legend), 3)
    assert one.shape[1] > two.shape[1] and two.shape[0] > one.shape[0]
    for picture in (one, two):
        assert (picture == (200, 100, 0)).all(-1).sum() > 50
