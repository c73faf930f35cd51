import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.model.boxes import cxcywh_to_xyxy, generalized_iou, ltwh_to_cxcywh
from srft.model.head import decode
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


@pytest.mark.parametrize(
    ("a", "b", "giou", "iou"),
    [
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7 - 2 / 9, 1 / 7),  # corners overlap: 1 of 7, hull 9
        ((0, 0, 1, 1), (2, 0, 3, 1), -1 / 3, 0),  # a gap of one between two of one
        ((0, 0, 4, 4), (1, 1, 3, 3), 1 / 4, 1 / 4),  # one inside the other
        ((0, 0, 1, 1), (0, 0, 1, 1), 1, 1),
        ((0, 0, 0, 0), (0, 0, 0, 0), 0, 0),  # nothing and nothing
    ],
)
def test_giou_by_hand(a, b, giou, iou):
    got = generalized_iou(torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64))
    assert [value.item() for value in got] == pytest.approx([giou, iou], abs=1e-9)


def test_focal_loss_by_hand():
    score = torch.tensor([[[[0.8, 0.4], [0.1, 0.2]]]], dtype=torch.float64)
    target = torch.tensor([[[1.0, 0.5], [0.0, 0.0]]], dtype=torch.float64)
    # (1 - .8)^2 ln .8 + (1 - .5)^4 .4^2 ln .6 + .1^2 ln .9 + .2^2 ln .8, with the sign turned
    assert focal_loss(score, target).item() == pytest.approx(0.0089257 + 0.0051083 + 0.0010536 + 0.0089257, abs=1e-6)


def test_a_box_of_four_cells_has_a_gaussian_of_radius_one():
    """CornerNet's third radius decides: (-11.2 + sqrt(179.2)) / 2 = 1.09; sigma is 1/2."""
    target = heat_map(torch.tensor([[0.5, 0.25, 0.25, 0.25]]), 16)[0]
    nonzero = {(int(i), int(j)): round(target[i, j].item(), 4) for i, j in target.nonzero()}
    side, corner = 0.1353, 0.0183  # exp(-2), exp(-4)
    assert nonzero == {(4 + i, 8 + j): [1.0, side, corner][abs(i) + abs(j)] for i in (-1, 0, 1) for j in (-1, 0, 1)}


def test_a_centre_that_rounds_off_the_map_leaves_the_negatives_their_reduced_weight():
    """15.52 of 16 cells rounds to 16, which is no cell: no positive, and cell 15 is a neighbour of the centre still."""
    target = heat_map(torch.tensor([[0.97, 0.5, 0.25, 0.25]]), 16)
    assert target.max().item() == pytest.approx(0.1353, abs=1e-4)
    assert target[0, 8].argmax() == 15
    score = torch.full((1, 1, 16, 16), 0.5, dtype=torch.float64, requires_grad=True)
    loss = focal_loss(score, target.double())
    loss.backward()
    assert loss.item() == pytest.approx(reference.focal(score[0].tolist(), target.tolist()))
    assert (score.grad > 0).all()  # nothing asks for a higher score


def test_scores_of_exactly_zero_and_one_keep_loss_and_gradient_finite():
    target = heat_map(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), 8)
    for value in (0.0, 1.0):
        score = torch.full((1, 1, 8, 8), value, requires_grad=True)
        loss = focal_loss(score, target)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(score.grad).all()
    wrong = torch.zeros(1, 1, 8, 8)
    assert focal_loss(wrong, target).item() == pytest.approx(27.631, abs=1e-3)  # -ln 1e-12, the published clamp


def test_the_sum_by_hand_with_the_truth_cut_at_the_edge():
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.1, 0.5, 0.4, 0.4]])
    predicted = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.15, 0.5, 0.3, 0.4]])  # the second is the truth without what lies outside
    maps = torch.full((2, 1, 8, 8), 0.3), torch.zeros(2, 2, 8, 8), torch.zeros(2, 2, 8, 8)
    parts = tracking_loss(TrackerOutput(*maps, predicted), boxes)
    assert parts["l1"].item() == pytest.approx(0.1 / 2, abs=1e-6)
    assert parts["giou"].item() == pytest.approx(0.75 / 2, abs=1e-6)
    assert parts["iou"].item() == pytest.approx((0.25 + 1) / 2, abs=1e-6)
    assert parts["loss"].item() == pytest.approx(parts["focal"].item() + 2 * 0.375 + 5 * 0.05, abs=1e-5)


def test_size_and_offset_learn_at_the_predicted_cell_only():
    """As published: the box is read where the score is highest, wherever the truth is."""
    score = torch.full((1, 1, 8, 8), 0.1)
    score[0, 0, 2, 5] = 0.9
    score.requires_grad_()
    size, offset = (torch.full((1, 2, 8, 8), 0.3, requires_grad=True) for _ in range(2))
    tracking_loss(TrackerOutput(score, size, offset, decode(score, size, offset)), torch.tensor([[0.2, 0.8, 0.2, 0.3]]))["loss"].backward()
    for maps in (size, offset):
        assert maps.grad.abs().sum((0, 1)).nonzero().tolist() == [[2, 5]]
    assert score.grad.ne(0).all()
