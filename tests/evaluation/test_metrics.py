import pytest
import torch
from known_answers import Brightness, made_up

from distill.batch import UNLABELED, VOID
from distill.evaluation.scores import evaluate
from distill.metrics import Comparison, Scores, confusion_matrix


def test_two_networks_beside_each_other_closed_form():
    found = Comparison(2)
    rows = [0, 1, 0], [0, 0, 1], [0, 1, VOID]  # reference, candidate, labels
    found.add(*(torch.tensor([[row]], dtype=torch.uint8) for row in rows))
    assert (found.reference_mean_iou, found.mean_iou) == (1, 0.25)
    assert (found.agreement, found.pixels) == (1 / 3, 3)


def test_confusion_matrix_closed_form():
    prediction = torch.tensor([[[0, 1, 2], [1, 1, 0]]])
    mask = torch.tensor([[[0, 1, 1], [VOID, 1, UNLABELED]]], dtype=torch.uint8)
    assert confusion_matrix(prediction, mask, 3).tolist() == [[1, 0, 0], [0, 2, 1], [0, 0, 0]]


def test_scores_closed_form():
    scores = Scores(torch.tensor([[3, 1, 0], [2, 4, 0], [0, 0, 0]]))
    assert scores.iou == [3 / 6, 4 / 7, None]
    assert scores.present == 2
    assert scores.mean_iou == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert scores.pixel_accuracy == pytest.approx(7 / 10)
    assert scores.skill == pytest.approx(((3 - 2) / (4 + 5 - 3 - 2) + (4 - 3) / (6 + 5 - 4 - 3)) / 2)


def test_a_class_only_predicted_lowers_the_others_and_is_not_scored():
    scores = Scores(torch.tensor([[8, 2], [0, 0]]))
    assert scores.iou == [0.8, None]


def test_nothing_labeled_is_zero_and_not_nan():
    scores = Scores(torch.zeros(2, 2, dtype=torch.int64))
    assert (scores.mean_iou, scores.pixel_accuracy, scores.skill) == (0.0, 0.0, 0.0)


def test_skill_is_0_for_every_blind_guess():
    truth = torch.tensor([70, 20, 10], dtype=torch.int64)
    for blind in ([1, 0, 0], [0, 0, 1], [5, 3, 2], [7, 2, 1]):
        assert Scores(truth[:, None] * torch.tensor(blind)).skill == pytest.approx(0)
    assert Scores(truth.diag()).skill == 1
    assert Scores(truth.diag().roll(1, 1)).skill < 0
    assert Scores(torch.tensor([[9, 1], [0, 0]])).skill == 0


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 40])
def test_scores_do_not_depend_on_batches_and_processes(count):
    networks = {"teacher": Brightness(5), "student": Brightness(5, shift=1)}
    expected = torch.zeros(5, 5, dtype=torch.int64)
    for i in range(count):
        image, mask = made_up(count).read(i)
        for truth, value in zip(mask.flat, image[..., 0].flat, strict=True):
            if truth != VOID:
                expected[truth, value] += 1
    for batch in (1, 4):
        for world in (1, 2, 3):
            parts: list[torch.Tensor] = []
            for rank in range(world):
                evaluate(networks, made_up(count), batch, "cpu", rank, world, lambda c, p=parts: p.append(c) or c)
            total = sum(parts)
            evaluation = evaluate(networks, made_up(count), batch, "cpu", reduce=lambda _, t=total: t)
            assert torch.equal(evaluation.scores["teacher"].matrix, expected)
            assert evaluation.agreement == {"teacher": 1.0, "student": 0.0}


def test_a_network_that_gives_nan_is_named():
    class Broken(Brightness):
        def forward(self, image):
            outputs = super().forward(image)
            outputs.logits[0, 0, 0, 0] = float("nan")
            return outputs

    with pytest.raises(FloatingPointError, match=r"student.*not finite on 0"):
        evaluate({"student": Broken(5)}, made_up(2), 1, "cpu")


def test_training_mode_is_given_back():
    network = Brightness(5).train()
    evaluate({"student": network}, made_up(1), 1, "cpu")
    assert network.training


def test_what_is_remembered_is_not_asked_again_and_scores_alike(monkeypatch):
    networks, data = {"student": Brightness(5), "teacher": Brightness(5)}, made_up(5)
    asked, memory = evaluate(networks, data, 2, "cpu"), {"teacher": {}}
    for _ in range(2):
        known = evaluate(networks, data, 2, "cpu", remembered=memory)
        assert known.agreement == asked.agreement
        assert torch.equal(known.scores["teacher"].matrix, asked.scores["teacher"].matrix)
        monkeypatch.setattr(networks["teacher"], "forward", None)
    assert sorted(memory["teacher"]) == [0, 1, 2, 3, 4]
