"""Measures against counting by hand and against the scorer of the RGB-T field."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.evaluation import metrics
from tests.reference import metrics as reference


def boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.column_stack([rng.uniform(0, 60, (n, 2)), rng.uniform(5, 50, (n, 2))])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 12))
def test_overlap_and_errors_equal_reference(seed, n):
    rng = np.random.default_rng(seed)
    p, g = boxes(rng, n), boxes(rng, n)
    assert metrics.iou(p, g).tolist() == pytest.approx([reference.iou(a, b) for a, b in zip(p, g, strict=True)])
    assert metrics.center_error(p, g).tolist() == pytest.approx([reference.center_error(a, b) for a, b in zip(p, g, strict=True)])
    expected = [reference.center_error(a, b, b[2:]) for a, b in zip(p, g, strict=True)]
    assert metrics.normalized_center_error(p, g).tolist() == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lengths=st.lists(st.integers(2, 12), min_size=1, max_size=4))
def test_measure_equals_reference(seed, lengths):
    rng = np.random.default_rng(seed)
    results = []
    for n in lengths:
        g = boxes(rng, n)
        absent = rng.random(n) < 0.3
        absent[1] = False
        results.append((g + rng.normal(0, 6, (n, 4)), g, absent))
    measures = metrics.measure(results)
    for name, value in reference.measure(results).items():
        assert getattr(measures, name) == pytest.approx(value), name
    assert measures.per_sequence.mean() == pytest.approx(measures.success_auc)
    assert measures.success.mean() == pytest.approx(measures.success_auc)


def test_agrees_with_the_scorer_of_the_field():
    """Its inclusive-pixel boxes, right = left + width - 1, cancel out in every measure."""
    oracle = pytest.importorskip("rgbt.utils", reason="rgbt, of the dev group, is not installed")
    rng = np.random.default_rng(0)
    g = np.round(boxes(rng, 300))
    p = np.round(g + rng.normal(0, 6, g.shape)).clip(1)
    np.testing.assert_allclose(metrics.iou(p, g), oracle.serial_process(oracle.IoU, p, g), atol=1e-12)
    np.testing.assert_allclose(metrics.center_error(p, g), oracle.serial_process(oracle.CLE, p, g), atol=1e-12)
    np.testing.assert_allclose(metrics.normalized_center_error(p, g), oracle.serial_process(oracle.normalize_CLE, p, g), atol=1e-6)


def test_known_values():
    square = np.array([[0.0, 0, 10, 10]])
    half = np.array([[5.0, 0, 10, 10]])
    assert metrics.iou(square, half)[0] == pytest.approx(1 / 3)
    assert metrics.center_error(square, half)[0] == 5
    assert metrics.normalized_center_error(square, half)[0] == pytest.approx(0.5)
    assert metrics.success_auc(np.array([1.0])) == pytest.approx(20 / 21)
    assert metrics.success_auc(np.array([0.0])) == 0


def test_success_is_strict_and_precision_is_not():
    assert metrics.success_curve(np.array([0.5]), np.array([0.4, 0.5, 0.6])).tolist() == [1, 0, 0]
    assert metrics.precision_curve(np.array([20.0]), np.array([19.0, 20.0, 21.0])).tolist() == [0, 1, 1]
    assert metrics.precision_at(np.array([20.0, 20.1])) == 0.5
    assert metrics.precision_at(np.array([0.2, 0.3]), 0.2) == 0.5
    assert metrics.NORMALIZED_THRESHOLDS[20] == 0.2


@pytest.mark.filterwarnings("error")
def test_nothing_and_nonsense_are_failures():
    g = np.array([[10.0, 10, 20, 20]] * 4)
    p = np.array([[np.nan] * 4, [10, 10, -5, 20], [10, 10, 0, 0], [500, 500, 20, 20]])
    assert metrics.iou(p, g).tolist() == [0, 0, 0, 0]
    assert metrics.precision_at(metrics.center_error(p[:1], g[:1]), 1e9) == 0
    assert metrics.precision_at(metrics.normalized_center_error(g[:1], g[:1] * [1, 1, 0, 1]), 1e9) == 0
    assert metrics.success_curve(np.empty(0)).tolist() == [0] * 21
    assert metrics.success_auc(np.empty(0)) == 0
    assert metrics.precision_at(np.empty(0)) == 0


def test_absent_and_first_frames_do_not_count():
    g = np.tile([10.0, 10, 20, 20], (4, 1))
    p = g.copy()
    p[2] = 900
    absent = np.array([False, False, True, False])
    assert metrics.measure([(p, g, absent)]).success_auc == pytest.approx(20 / 21)
    p[0] = 900
    assert metrics.measure([(p, g, absent)]).precision_20 == 1
    p[3] = 900
    assert metrics.measure([(p, g, absent)]).precision_20 == 0.5


def test_sequences_weigh_the_same_and_empty_ones_are_left_out():
    g = np.tile([10.0, 10, 20, 20], (21, 1))
    bad, good = (g + 900, g, np.zeros(21, bool)), (g[:2], g[:2], np.zeros(2, bool))
    unseen = (g + 900, g, np.ones(21, bool))
    measures = metrics.measure([bad, good, unseen])
    assert measures.precision_20 == 0.5
    assert measures.normalized_precision_20 == 0.5
    assert measures.per_sequence.tolist() == pytest.approx([0, 20 / 21])
    assert measures.success.shape == (21,)
    assert measures.precision.shape == measures.normalized_precision.shape == (51,)


def test_measure_refuses_unequal_lengths_and_nothing_to_measure():
    g = np.tile([10.0, 10, 20, 20], (3, 1))
    with pytest.raises(ValueError, match=r"sequence 1: predictions \(2, 4\)"):
        metrics.measure([(g, g, np.zeros(3, bool)), (g[:2], g, np.zeros(3, bool))])
    with pytest.raises(ValueError, match="and 2 absent flags"):
        metrics.measure([(g, g, np.zeros(2, bool))])
    with pytest.raises(ValueError, match="none of the 1 sequences"):
        metrics.measure([(g, g, np.ones(3, bool))])
    with pytest.raises(ValueError, match="none of the 0 sequences"):
        metrics.measure([])


def test_several_groundtruths_take_the_best_of_each_frame():
    g = np.array([[10.0, 10, 20, 20], [10, 10, 20, 20]])
    truths = np.stack([g, g + np.array([[0, 0, 0, 0], [6, 8, 0, 0]])])
    p = np.array([[10.0, 10, 20, 20], [16, 18, 20, 20]])
    assert metrics.maximum_overlap(p, truths).tolist() == [1, 1]
    assert metrics.least_center_error(p, truths).tolist() == [0, 0]
    assert metrics.least_center_error(p, truths[:1]).tolist() == [0, 10]


def test_ties_fall_where_single_precision_puts_them():
    """17/20 in single precision exceeds 0.85, in double precision it does not: scorers that work in either differ there."""
    p, g = np.array([[0, 0, 17, 1]]), np.array([[0, 0, 20, 1]])
    for dtype, share in ((np.float32, 1), (np.float64, 0)):
        overlap = metrics.iou(p.astype(dtype), g.astype(dtype))
        assert overlap.dtype == dtype
        assert metrics.success_at(overlap, 0.85) == share


def test_success_at_and_breakout_capability():
    assert metrics.success_at(np.array([0.5, 0.6, 0.8]), 0.5) == pytest.approx(2 / 3)
    assert metrics.success_at(np.empty(0), 0.5) == 0
    assert metrics.boc(np.array([0.5, 1.0]), np.array([[0.2, 0.9], [0.4, 0.7]])) == pytest.approx(100 * (0.5 * 0.7 + 1.0 * 0.2) / 2)
    assert metrics.boc(np.empty(0), np.empty((2, 0))) == 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 30), bad=st.floats(0, 0.5))
def test_bounds_and_monotone_curves(seed, n, bad):
    """Whatever a tracker writes."""
    rng = np.random.default_rng(seed)
    p, g = boxes(rng, n), boxes(rng, n)
    p[rng.random(p.shape) < bad] = rng.choice([np.nan, np.inf, -np.inf, 0, -1e30, 1e300])
    with np.errstate(all="ignore"):
        overlap, swapped, error = metrics.iou(p, g), metrics.iou(g, p), metrics.center_error(p, g)
    overlap_curve, error_curve = metrics.success_curve(overlap), metrics.precision_curve(error)
    assert (np.diff(overlap_curve) <= 0).all()
    assert (np.diff(error_curve) >= 0).all()
    assert 0 <= overlap_curve.min() <= overlap_curve.max() <= 1
    assert 0 <= error_curve.min() <= error_curve.max() <= 1
    assert overlap.tolist() == pytest.approx(swapped.tolist(), nan_ok=True)
