import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.model.boxes import cxcywh_to_xyxy, generalized_iou, ltwh_to_cxcywh
from srft.model.losses import focal_loss, heat_map, tracking_loss
from srft.model.tracker import TrackerOutput
from tests.reference import losses as reference

fraction = st.floats(0.05, 0.95)
size = st.floats(0.02, 1.0)


@given(st.lists(st.tuples(fraction, fraction, size, size), min_size=1, max_size=4))
def test_giou_equals_the_plain_one(boxes):
    a = cxcywh_to_xyxy(torch.tensor(boxes, dtype=torch.float64))
    b = cxcywh_to_xyxy(torch.tensor(boxes[::-1], dtype=torch.float64)) * 0.9
    giou, iou = generalized_iou(a, b)
    for got, inner, x, y in zip(giou, iou, a.tolist(), b.tolist(), strict=True):
        assert got.item() == pytest.approx(reference.giou(x, y), abs=1e-9)
        assert got <= inner + 1e-9


def test_box_formats():
    box = torch.tensor([[10.0, 20.0, 4.0, 8.0]])
    assert cxcywh_to_xyxy(ltwh_to_cxcywh(box)).tolist() == [[10.0, 20.0, 14.0, 28.0]]


@settings(max_examples=60)
@given(fraction, fraction, size, size, st.sampled_from([8, 16]))
def test_heat_map_equals_the_plain_one(cx, cy, w, h, cells):
    got = heat_map(torch.tensor([[cx, cy, w, h]], dtype=torch.float64), cells)[0]
    torch.testing.assert_close(got, torch.tensor(reference.heat_map((cx, cy, w, h), cells), dtype=torch.float64), atol=1e-9, rtol=0)


def test_a_centre_on_the_far_edge_has_no_positive_cell_and_a_finite_loss():
    target = heat_map(torch.tensor([[0.99, 0.5, 0.2, 0.2]]), 8)
    assert (target == 1).sum() == 0
    assert torch.isfinite(focal_loss(torch.full((1, 1, 8, 8), 0.3), target))


def test_focal_loss_equals_the_plain_one_and_survives_saturation():
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(3, 1, 8, 8, generator=generator, dtype=torch.float64).clamp(1e-3, 1 - 1e-3)
    target = heat_map(torch.rand(3, 4, generator=generator, dtype=torch.float64) * 0.8 + 0.1, 8)
    expected = reference.focal(score.squeeze(1).tolist(), target.tolist())
    assert focal_loss(score, target).item() == pytest.approx(expected, rel=1e-9)
    assert torch.isfinite(focal_loss(torch.ones(3, 1, 8, 8), target.float()))


def test_the_loss_of_the_truth_is_small_and_names_its_parts():
    boxes = torch.tensor([[0.4375, 0.5625, 0.3, 0.2]])
    score = heat_map(boxes, 8)[:, None].clamp(1e-4, 1 - 1e-4)
    output = TrackerOutput(score, torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8), boxes)
    parts = tracking_loss(output, boxes)
    assert set(parts) == {"loss", "focal", "giou", "l1", "iou"}
    assert parts["iou"].item() == pytest.approx(1)
    assert parts["giou"].item() == pytest.approx(0, abs=1e-6)
    assert parts["l1"].item() == pytest.approx(0, abs=1e-7)
