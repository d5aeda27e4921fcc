"""A teacher that sees nothing right: the cause is found and named, with the setting that repairs it."""

import numpy as np
import pytest
import torch
from conftest import tiny_config
from PIL import Image

from distill.errors import ConfigError
from distill.metrics import Scores
from distill.pipeline import distil
from distill.training.causes import LOW, best_order, of_classes, renumbered

NAMES = ["red", "blue", "yellow", "cyan"]
COLORS = np.array([[230, 20, 10], [10, 20, 160], [230, 200, 10], [10, 200, 230]])
# The nearest color, seen as 0 to 1, as 0 to 255 or as BGR, under its number or another.
FILE = f"""
import torch
COLORS = torch.tensor({COLORS.tolist()}) / 255
class Nearest(torch.nn.Module):
    def __init__(self, colors, order):
        super().__init__()
        colors = colors[order]
        self.register_buffer("weight", 2 * colors[:, :, None, None])
        self.register_buffer("bias", -colors.square().sum(1))
    def forward(self, x):
        return torch.nn.functional.conv2d(x, self.weight, self.bias)
def plain():
    return Nearest(COLORS, [0, 1, 2, 3])
def unscaled():
    return Nearest(255 * COLORS, [0, 1, 2, 3])
def swapped():
    return Nearest(COLORS.flip(1), [0, 1, 2, 3])
class Partly(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = swapped(), Nearest(torch.cat([COLORS, COLORS.flip(1)]), list(range(8)))
    def forward(self, x):
        part, either = x.shape[3] // 3, self.right(x)
        right = torch.maximum(either[:, :4], either[:, 4:])
        return torch.cat([self.left(x)[..., :part], right[..., part:]], 3)
def shifted():
    return Nearest(COLORS, [1, 2, 3, 0])
def shuffled():
    return Nearest(COLORS, [2, 3, 0, 1])
"""


@pytest.fixture
def colored(tmp_path):
    """Settings of a data set in which a class is a color."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 3)):
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
        for i in range(count):
            mask = generator.integers(0, 4, (8, 12), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            image = (COLORS[mask] + generator.integers(-9, 10, (*mask.shape, 3))).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(tmp_path / split / "masks" / f"{i}.png")
    (tmp_path / "mine.py").write_text(FILE)
    return {
        "data__format": "folders",
        "data__root": tmp_path,
        "data__classes": f"[{', '.join(NAMES)}]",
        "teacher__mean": "[0, 0, 0]",
        "teacher__std": "[1, 1, 1]",
        "export__enabled": "false",
        "baseline__enabled": "false",
        "student__max_train_steps": 1,
    }


@pytest.mark.parametrize(
    ("function", "cause", "repaired"),
    [
        (
            "unscaled",
            r"images in 0 to 255 \(teacher\.mean \[0, 0, 0\], teacher\.std \[0\.003922, 0\.003922, 0\.003922\]\)",
            {"teacher__std": "[0.003922, 0.003922, 0.003922]"},
        ),
        ("swapped", r"its channels as BGR \(teacher\.bgr true\)", {"teacher__bgr": "true"}),
        (
            "shifted",
            r"its class ids shifted up by one \(teacher\.class_names \[blue, yellow, cyan, red\]\)",
            {"teacher__class_names": "[blue, yellow, cyan, red]"},
        ),
        (
            "shuffled",
            r"its classes in another order \(teacher\.class_names \[yellow, cyan, red, blue\]\)",
            {"teacher__class_names": "[yellow, cyan, red, blue]"},
        ),
    ],
)
def test_what_repairs_a_teacher_is_named_and_repairs_it(tmp_path, colored, function, cause, repaired, capsys):
    settings = colored | {"teacher__python": f"{tmp_path / 'mine.py'}:{function}"}
    with pytest.raises(ConfigError, match=rf"near chance .* But it has skill \d\.\d\d with {cause}\. teacher\.allow"):
        distil(tiny_config(tmp_path / "run", **settings))
    assert distil(tiny_config(tmp_path / "good", **settings | repaired)).teacher.mean_iou > 0.99
    assert "warning" not in capsys.readouterr().out


def test_noise_has_no_cause():
    matrix = torch.randint(900, 1100, (6, 6), generator=torch.Generator().manual_seed(0))
    assert max(skill for skill, _ in of_classes(Scores(matrix), list("abcdef"))) < 0.05


def test_the_best_order_is_one_to_one():
    matrix = torch.tensor([[0, 90, 80], [0, 0, 10], [0, 0, 10]])
    assert sorted(best_order(Scores(matrix))) == [0, 1, 2] and best_order(Scores(matrix))[1] == 0


def test_classes_in_another_order_are_named_though_some_are_right():
    """The background is right, so that the skill is far from chance, and nothing is asked again."""
    matrix = torch.tensor([[900, 0, 0, 5], [0, 0, 95, 0], [0, 95, 0, 0], [5, 0, 0, 95]])
    scores = Scores(matrix)
    assert scores.skill > LOW
    told = str(renumbered(scores, NAMES))
    assert "its classes in another order (teacher.class_names [red, yellow, blue, cyan])" in told
    assert renumbered(Scores(torch.eye(4) * 90 + 3), NAMES) is None


def test_a_teacher_with_some_classes_in_another_order_is_warned_of(tmp_path, colored, capsys):
    settings = colored | {"teacher__python": f"{tmp_path / 'mine.py'}:plain"}
    distil(tiny_config(tmp_path / "run", **settings, teacher__class_names="[red, yellow, blue, cyan]"))
    said = capsys.readouterr().out
    assert "warning: teacher" in said and "in another order (teacher.class_names [red, blue, yellow, cyan])" in said


def test_a_teacher_that_takes_bgr_and_is_not_near_chance_is_warned_of(tmp_path, colored, capsys):
    """Whatever the order of the channels, it is right on two thirds of each picture."""
    settings = colored | {"teacher__python": f"{tmp_path / 'mine.py'}:Partly"}
    skill = distil(tiny_config(tmp_path / "run", **settings)).teacher.mean_iou
    assert 0.3 < skill < 0.5
    assert "its channels as BGR (teacher.bgr true), and 0." in capsys.readouterr().out
