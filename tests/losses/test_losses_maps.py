"""Terms between maps and between features, and the cells they are compared on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from losses_reference import channels_of, cosine, counted, kl, scene, softmax
from torch import nn

from distill.batch import UNLABELED, VOID, Outputs, Target
from distill.losses import TERMS
from distill.losses.cirkd import CIRKD, Memory
from distill.losses.features import AT, MGD, Hint
from distill.losses.geometry import Cells, cell_position, interpolation, pixel_centers
from distill.losses.maps import CWD, DIST
from distill.losses.relational import IFVD, SKD
from distill.losses.settings import ATConfig, CIRKDConfig, CWDConfig, DISTConfig, HintConfig, MGDConfig, SKDConfig


def built(term, student, teacher):
    term.build(channels_of(student), channels_of(teacher))
    return term.double()


def value_of(term, student, teacher, mask):
    return float(built(term, student, teacher)(student, teacher, Target.of(mask)).detach())


def places(outputs: Outputs, mask: torch.Tensor, n: int, layer: str = "decoder") -> np.ndarray:
    """The vectors at the valid pixels of image n, `[P, C]`."""
    x = outputs.logits if layer == "logits" else outputs.features[layer]
    return np.array([x[n, :, i, j].numpy() for m, i, j in counted(mask) if m == n])


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("cells, length", [(3, 7), (4, 16), (1, 5), (5, 5), (7, 3), (1, 1)])
def test_interpolation_is_pytorchs(cells, length, align_corners):
    x = torch.randn(1, 2, cells, 1, dtype=torch.float64)
    expected = F.interpolate(x, (length, 1), mode="bilinear", align_corners=align_corners)
    positions = cell_position(pixel_centers(length, x.device), cells, length, align_corners)
    assert torch.allclose(interpolation(positions, cells) @ x, expected, atol=1e-12)


@pytest.mark.parametrize("align_corners", [True, False])
def test_each_pixel_belongs_to_the_nearest_cell(align_corners):
    mask = torch.randint(0, 3, (2, 9, 11)).byte()
    mask[0, :3] = VOID
    mask[1, 4] = UNLABELED
    cells = Cells((3, 4), (12, 12), align_corners)
    counts = cells.count(mask, 3, torch.float64)
    centers = [
        np.arange(n) * 11 / (n - 1) if align_corners else (np.arange(n) + 0.5) * 12 / n - 0.5 for n in cells.grid
    ]
    expected = np.zeros((2, 3, 3, 4))
    for n, y, x in counted(mask, labeled=True):
        near = [np.abs(c - at) for c, at in zip(centers, (y, x), strict=True)]
        # A pixel halfway between two may go to either.
        choices = [
            (i, j) for i in np.flatnonzero(near[0] == near[0].min()) for j in np.flatnonzero(near[1] == near[1].min())
        ]
        if len(choices) == 1:
            expected[n, mask[n, y, x], choices[0][0], choices[0][1]] += 1
        else:
            expected = None
            break
    if expected is not None:
        assert torch.equal(counts, torch.from_numpy(expected))
    for k in range(3):
        assert counts[:, k].sum() == (mask == k).sum()
    assert cells.count_valid(mask, torch.float64).sum() == (mask != VOID).sum()


def test_maps_are_resized_as_their_networks_see_the_image():
    """The student was padded to 12, the teacher to 16: the same place of the image has other coordinates."""
    ramp = torch.arange(12, dtype=torch.float64)
    x = F.avg_pool1d(ramp.view(1, 1, -1), 2).view(1, 1, 1, 6).expand(1, 1, 6, 6)  # cell i at 2 i + 0.5
    resized = Cells((4, 4), (16, 16), False).resize(x, (12, 12))[0, 0, 0]
    assert torch.allclose(resized, torch.tensor([1.5, 5.5, 9.5, 10.5], dtype=torch.float64))  # the last lies outside
    wider = Cells((6, 6), (24, 24), False).resize(x, (12, 12))[0, 0, 0]
    assert torch.allclose(wider, torch.tensor([1.5, 5.5, 9.5, 10.5, 10.5, 10.5], dtype=torch.float64))
    same = Cells((6, 6), (12, 12), False).resize(x.float(), (12, 12))
    assert torch.equal(same, x.float())
    half = F.interpolate(x, (3, 3), mode="bilinear", align_corners=False)
    assert torch.allclose(Cells((3, 3), (12, 12), False).resize(x, (12, 12)), half)


@pytest.mark.parametrize("layer", ["logits", "decoder"])
def test_cwd_is_its_formula(layer):
    student, teacher, mask = scene(1)
    total = 0.0
    for n in range(2):
        s, t = (places(o, mask, n, layer) for o in (student, teacher))
        total += 9 * np.mean([kl(softmax(t[:, c], 3), softmax(s[:, c], 3)) for c in range(4)])
    assert value_of(CWD(CWDConfig(layers=[layer], temperature=3.0)), student, teacher, mask) == pytest.approx(
        total / 2, rel=1e-10
    )


def test_dist_is_its_formula():
    student, teacher, mask = scene(2)
    s, t = (np.concatenate([places(o, mask, n, "logits") for n in range(2)]) for o in (student, teacher))
    s, t = (np.array([softmax(x, 2) for x in rows]) for rows in (s, t))
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s, t, strict=True)])
    intra = np.mean([1 - np.corrcoef(s[:, c], t[:, c])[0, 1] for c in range(4)])
    value = value_of(DIST(DISTConfig(beta=0.5, gamma=2.0, temperature=2.0)), student, teacher, mask)
    assert value == pytest.approx(4 * (0.5 * inter + 2 * intra), rel=1e-9)


def test_skd_is_its_formula():
    student, teacher, mask = scene(3, teacher_channels=2)
    total = 0.0
    for n in range(2):
        s, t = (places(o, mask, n) for o in (student, teacher))
        pairs = [(cosine(s[i], s[j]) - cosine(t[i], t[j])) ** 2 for i in range(len(s)) for j in range(len(s))]
        total += np.mean(pairs)
    assert value_of(SKD(), student, teacher, mask) == pytest.approx(total / 2, rel=1e-10)


def test_skd_pools_over_valid_pixels():
    student, teacher, mask = scene(4, size=(4, 4), images=1)
    total, share, count = 0.0, [], int((mask != VOID).sum())
    vectors: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for y in (0, 2):
        for x in (0, 2):
            inside = [(i, j) for _, i, j in counted(mask) if i - y in (0, 1) and j - x in (0, 1)]
            share.append(len(inside) / count)
            for kept, o in zip(vectors, (student, teacher), strict=True):
                kept.append(np.mean([o.features["decoder"][0, :, i, j].numpy() for i, j in inside], 0))
    for i in range(4):
        for j in range(4):
            s, t = (cosine(v[i], v[j]) for v in vectors)
            total += share[i] * share[j] * (s - t) ** 2
    assert value_of(SKD(SKDConfig(side=2)), student, teacher, mask) == pytest.approx(total, rel=1e-10)


def test_ifvd_is_its_formula():
    student, teacher, mask = scene(5, teacher_channels=2)
    errors = []
    for n in range(2):
        for k in range(4):
            inside = [(i, j) for m, i, j in counted(mask, labeled=True) if m == n and mask[m, i, j] == k]
            s, t = (
                np.array([o.features["decoder"][n, :, i, j].numpy() for i, j in inside]) for o in (student, teacher)
            )
            errors += [(cosine(a, s.mean(0)) - cosine(b, t.mean(0))) ** 2 for a, b in zip(s, t, strict=True)]
    assert value_of(IFVD(), student, teacher, mask) == pytest.approx(np.mean(errors), rel=1e-10)


def test_at_is_its_formula():
    student, teacher, mask = scene(6, teacher_channels=1)
    layers = ["encoder.3", "encoder.4"]
    total = 0.0
    for layer in layers:
        for n in range(2):
            maps = []
            for o in (student, teacher):
                q = (np.abs(places(o, mask, n, layer)) ** 3).mean(1)
                maps.append(q / np.sqrt((q**2).sum()))
            total += ((maps[0] - maps[1]) ** 2).sum()
    assert value_of(AT(ATConfig(layers=layers, power=3.0)), student, teacher, mask) == pytest.approx(
        total / 4, rel=1e-10
    )


def test_hint_is_its_formula():
    student, teacher, mask = scene(7, teacher_channels=2)
    term = built(Hint(HintConfig(layers=["encoder.4"])), student, teacher)
    conv = term.adapters["encoder_4"]
    weight, bias = conv.weight.detach().numpy()[:, :, 0, 0], conv.bias.detach().numpy()
    errors = []
    for n in range(2):
        s, t = (places(o, mask, n, "encoder.4") for o in (student, teacher))
        errors += [((weight @ a + bias - b) ** 2).mean() for a, b in zip(s, t, strict=True)]
    assert float(term(student, teacher, Target.of(mask)).detach()) == pytest.approx(np.mean(errors), rel=1e-10)


def test_mgd_guesses_the_teacher_from_a_map_with_holes():
    student, teacher, mask = scene(8, teacher_channels=1)
    term = built(MGD(MGDConfig(layers=["decoder"], mask_ratio=0.5)), student, teacher)
    adapter = term.adapters["decoder"]
    torch.manual_seed(3)
    value = term(student, teacher, Target.of(mask))
    torch.manual_seed(3)
    kept = (torch.rand(2, 1, 5, 7) >= 0.5).double()
    assert 10 < kept.sum() < 60
    first, _, last = adapter.generate
    aligned = torch.einsum("oc,nchw->nohw", adapter.align.weight[:, :, 0, 0], student.features["decoder"])
    holes = (aligned + adapter.align.bias.view(1, -1, 1, 1)) * kept
    guess = F.conv2d(F.conv2d(holes, first.weight, first.bias, padding=1).relu(), last.weight, last.bias, padding=1)
    errors = [((guess - teacher.features["decoder"])[n, :, i, j] ** 2).mean() for n, i, j in counted(mask)]
    assert float(value.detach()) == pytest.approx(float(torch.stack(errors).mean().detach()), rel=1e-10)


def test_cirkd_mini_batch_is_its_formula():
    student, teacher, mask = scene(9, teacher_channels=2, images=3)
    total = 0.0
    for n in range(3):
        for m in range(3):
            rows = []
            for o in (student, teacher):
                a, b = places(o, mask, n), places(o, mask, m)
                rows.append([softmax(np.array([cosine(x, y) for y in b]), 0.2) for x in a])
            total += np.mean([kl(t, s) for s, t in zip(*rows, strict=True)])
    term = CIRKD(CIRKDConfig(temperature=0.2, pixel_memory=0, region_memory=0))
    assert value_of(term, student, teacher, mask) == pytest.approx(total / 9, rel=1e-10)


def test_cirkd_memory_is_its_formula():
    student, teacher, mask = scene(10, teacher_channels=2)
    mask[mask == 3] = 2  # a class that never comes
    term = built(
        CIRKD(CIRKDConfig(temperature=0.5, pixel_memory=0.0, region_memory=1.0, region_slots=3)), student, teacher
    )
    mini = CIRKD(CIRKDConfig(temperature=0.5, pixel_memory=0, region_memory=0))
    with torch.no_grad():
        value = float(term(student, teacher, Target.of(mask))) - value_of(mini, student, teacher, mask)
        projected = term.project(student.features["decoder"])
    regions = []
    for n in range(2):
        for k in range(3):
            inside = [(i, j) for m, i, j in counted(mask, labeled=True) if m == n and mask[m, i, j] == k]
            if inside:
                regions.append(np.mean([teacher.features["decoder"][n, :, i, j].numpy() for i, j in inside], 0))
    assert term.regions.contents()[1].sum() == len(regions)
    losses = []
    for n, i, j in counted(mask):
        s, t = (
            softmax(np.array([cosine(x[n, :, i, j].numpy(), r) for r in regions]), 0.5)
            for x in (projected, teacher.features["decoder"])
        )
        losses.append(kl(t, s))
    assert value == pytest.approx(np.mean(losses), rel=1e-9)


def test_memory_is_a_ring_of_unit_vectors():
    memory = Memory(2, 3, 2)
    for i in range(5):
        memory.push(torch.tensor([[i + 1.0, 0.0], [0.0, 1.0]]) * 7, torch.tensor([True, i == 0]))
    entries, filled = memory.contents()
    assert filled.tolist() == [1, 1, 1, 1, 0, 0]
    assert torch.allclose(entries[:4].norm(dim=1), torch.ones(4))
    memory.push(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([True, False]))
    assert memory.contents()[0][2].tolist() == [0.0, 1.0]  # the sixth went over the third
    other = Memory(2, 3, 2)
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.contents()[0], memory.contents()[0])


def test_the_memory_may_grow_before_the_gradient_is_taken():
    student, teacher, mask = scene(16)
    term = built(CIRKD(), student, teacher)
    values = [term(student, teacher, Target.of(mask)) for _ in range(2)]
    sum(values).backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.norm() > 0 for p in term.parameters())


def test_memory_takes_places_of_their_class_and_only_in_training():
    student, teacher, mask = scene(11, void=0.1, unlabeled=0.4)
    term = built(CIRKD(), student, teacher)
    term.eval()(student, teacher, Target.of(mask))
    assert term.pixels.pushed.sum() == 0
    term.train()(student, teacher, Target.of(mask)).backward()
    entries, filled = term.pixels.contents()
    vectors = F.normalize(teacher.features["decoder"], dim=1).movedim(1, -1)
    for k in range(4):
        here = vectors[mask == k]
        for entry, is_filled in zip(entries.unflatten(0, (4, -1))[k], filled.view(4, -1)[k], strict=True):
            assert not is_filled or (here - entry).norm(dim=1).min() < 1e-12


def test_places_are_drawn_in_proportion_to_their_pixels():
    term = CIRKD(CIRKDConfig(pixels_per_image=7000, pixel_slots=7000, region_memory=0))
    term.build({"decoder": 3, "logits": 1}, {"decoder": 3, "logits": 1})
    torch.manual_seed(0)
    term.remember(torch.eye(3).view(1, 3, 1, 3), torch.tensor([1.0, 2.0, 4.0]).view(1, 1, 1, 3))
    assert term.pixels.contents()[0].sum(0).tolist() == pytest.approx([1000, 2000, 4000], rel=0.1)


def test_layers_without_channels_are_skipped_with_a_message():
    student, teacher, mask = scene(12)
    student.features["encoder.3"] = torch.zeros(2, 0, 5, 7)
    term = Hint(HintConfig(layers=["encoder.3", "decoder"]))
    with pytest.warns(UserWarning, match=r"Hint: encoder\.3 of the student has 0 channels"):
        built(term, student, teacher)
    assert term.features == ("decoder",) and list(term.adapters) == ["decoder"]
    assert torch.isfinite(term(student, teacher, Target.of(mask)))
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="name other layers"):
        built(AT(ATConfig(layers=["encoder.3"])), student, teacher)


def test_errors_say_what_to_do():
    student, teacher, mask = scene(13)
    with pytest.raises(ValueError, match=r"no layer 'encoder\.9'; it has encoder\.3"):
        built(Hint(HintConfig(layers=["encoder.9"])), student, teacher)
    for name in ("cwd", "hint", "ifvd", "cirkd"):
        with pytest.raises(ValueError, match=r"call build\(\) first"):
            TERMS[name]()(student, teacher, Target.of(mask))
    with pytest.raises(ValueError, match="a list of at least one name"):
        Hint(HintConfig(layers=[]))
    with pytest.raises(ValueError, match="a list of at least one name"):
        Hint(HintConfig(layers="decoder"))
    with pytest.raises(ValueError, match="one layer"):
        CIRKD(CIRKDConfig(layers=["decoder", "encoder.3"]))


def test_adapters_are_only_where_they_are_needed():
    student, teacher, _ = scene(14, teacher_channels=2)
    assert isinstance(built(CWD(), student, teacher).adapters["logits"], nn.Identity)
    assert isinstance(built(CWD(CWDConfig(layers=["decoder"])), student, teacher).adapters["decoder"], nn.Conv2d)
    for term in (DIST(), SKD(), IFVD(), AT()):
        assert not list(built(term, student, teacher).parameters())
