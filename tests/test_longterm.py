"""Long-term measures: against counting threshold by threshold, and limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.evaluation import longterm


def counted(overlaps, confidences, visible, threshold):
    answers = [o for o, c in zip(overlaps, confidences, strict=True) if c >= threshold]
    return (sum(answers) / len(answers), sum(answers) / visible) if answers else (1.0, 0.0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lengths=st.lists(st.integers(1, 90), min_size=1, max_size=4), levels=st.integers(1, 400))
def test_equals_counting(seed, lengths, levels):
    """Few levels make ties between the confidences."""
    rng = np.random.default_rng(seed)
    results = [(rng.random(n), np.where(rng.random(n) < 0.1, np.nan, rng.integers(0, levels, n) / levels), int(n)) for n in lengths]
    measured = longterm.long_term(results)
    pooled = sorted((c for _, confidences, _ in results for c in confidences if not math.isnan(c)), reverse=True)
    step = len(pooled) // 98
    inner = [pooled[round(step + k * (len(pooled) - 2 * step) / 97)] for k in range(98)] if len(pooled) > 98 else pooled
    curves = []
    for threshold in (math.inf, *inner, -math.inf):
        pairs = [counted(*result, threshold) for result in results]
        precision, recall = (sum(p[i] for p in pairs) / len(pairs) for i in (0, 1))
        curves.append((2 * precision * recall / (precision + recall) if precision + recall else 0.0, precision, recall))
    np.testing.assert_allclose(measured.precisions, [p for _, p, _ in curves], rtol=1e-9)
    np.testing.assert_allclose(measured.recalls, [r for _, _, r in curves], rtol=1e-9)
    assert measured.f_score == pytest.approx(max(curves)[0])
    assert min(measured.precision, measured.recall) - 1e-12 <= measured.f_score <= max(measured.precision, measured.recall) + 1e-12
    assert (np.diff(measured.recalls) >= -1e-12).all()
    shuffled = longterm.long_term([results[i] for i in rng.permutation(len(results))])
    assert shuffled.f_score == pytest.approx(measured.f_score)


def test_a_perfect_tracker_and_one_that_never_answers():
    perfect = longterm.long_term([(np.ones(5), np.ones(5), 5)])
    assert (perfect.precision, perfect.recall, perfect.f_score) == (1, 1, 1)
    silent = longterm.long_term([(np.ones(5), np.full(5, np.nan), 5)])
    assert (silent.precision, silent.recall, silent.f_score) == (1, 0, 0)


def test_hiding_the_frames_that_are_wrong_raises_precision_only():
    overlaps, sure = np.array([1.0, 1, 0, 0]), np.array([0.9, 0.8, 0.1, 0.2])
    precision, recall = longterm.precision_recall(overlaps, sure, 4, np.array([0.5, -np.inf]))
    assert precision.tolist() == [1, 0.5]
    assert recall.tolist() == [0.5, 0.5]


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="no sequences"):
        longterm.long_term([])
    with pytest.raises(ValueError, match="at least one frame with a groundtruth box"):
        longterm.precision_recall(np.ones(2), np.ones(2), 0, np.zeros(1))
