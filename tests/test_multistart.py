"""Multistart measures and the rasterized overlap: against frame-by-frame counting, and against vot-toolkit on a whole workspace."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.evaluation import longterm, multistart
from srft.evaluation.metrics import rasterized_iou
from tests.reference import vot_workspace

RECORDED = json.loads((Path(__file__).parent / "assets" / "vot_toolkit.json").read_text())


def painted(p, g, size) -> float:
    """Overlap by painting pixels; None is no box."""
    corners = [(0, 0, 0, 0) if b is None else (*b[:2], b[0] + b[2] - 1, b[1] + b[3] - 1) for b in (p, g)]
    left, top = (min(c[i] for c in corners) for i in (0, 1))
    right, bottom = (max(c[i] for c in corners) for i in (2, 3))
    if left >= right or top >= bottom:
        return 1.0
    columns = range(max(left, 0), min(right, size[0] - 1) + 1)
    lines = range(max(top, 0), min(bottom, size[1] - 1) + 1)
    if len(columns) < 2 or len(lines) < 2:
        return 0.0
    masks = [
        {(x, y) for x in columns for y in lines if b is not None and b[0] <= x < b[0] + b[2] and b[1] <= y < b[1] + b[3]} for b in (p, g)
    ]
    return len(masks[0] & masks[1]) / len(masks[0] | masks[1]) if masks[0] | masks[1] else 0.0


region = st.none() | st.tuples(st.integers(-6, 14), st.integers(-6, 12), st.integers(0, 9), st.integers(0, 9))


@settings(max_examples=300, deadline=None)
@given(p=region, g=region)
def test_rasterized_overlap_equals_painting(p, g):
    arrays = [np.full((1, 4), np.nan) if b is None else np.array([b], float) for b in (p, g)]
    assert rasterized_iou(*arrays, (12, 9))[0] == pytest.approx(painted(p, g, (12, 9)))


def test_boxes_are_rounded_half_to_even_before_they_are_rasterized():
    whole = np.array([[2.0, 2, 4, 4]])
    assert rasterized_iou(np.array([[2.5, 1.5, 4.4, 3.6]]), whole, (20, 20))[0] == 1


def test_absent_and_empty_boxes():
    none, empty, box = np.full((1, 4), np.nan), np.zeros((1, 4)), np.array([[3.0, 3, 5, 5]])
    size = (20, 20)
    assert [rasterized_iou(a, b, size)[0] for a, b in [(none, none), (empty, empty), (none, empty)]] == [1, 1, 1]
    assert [rasterized_iou(a, b, size)[0] for a, b in [(none, box), (box, none), (empty, box)]] == [0, 0, 0]
    beyond = np.array([[43.0, 3, 5, 5]])
    assert rasterized_iou(beyond, beyond, size)[0] == 0


def eao_by_the_book(runs: list[list[float]], visible: list[list[bool]], low=115, high=755):
    """EAO, A and R of one video, loop by loop."""
    curve = [0.0] * high
    active = [0] * high
    kept = tracked = total = 0.0
    for overlaps, seen in zip(runs, visible, strict=True):
        row, end = 0, len(overlaps)
        for j, overlap in enumerate(overlaps):
            row = row + 1 if overlap <= 0.1 and seen[j] else 0
            if row == 10:
                end = j + 1 - 10
                break
        kept, tracked, total = kept + sum(overlaps[:end]), tracked + end, total + len(overlaps)
        overlaps = overlaps[:end] + [0.0] * (len(overlaps) - end)
        for j in range(1, high):
            if j < len(overlaps):
                curve[j] += sum(overlaps[1 : j + 1]) / j
                active[j] += 1
            elif end < len(overlaps):
                curve[j] += sum(overlaps[1:]) / (j - 1)
                active[j] += 1
    curve = [c / a if a else 0.0 for c, a in zip(curve, active, strict=True)]
    return sum(curve[low:]) / len(curve[low:]), kept / tracked if tracked else 0.0, tracked / total


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4), ease=st.floats(0.05, 0.95))
def test_equals_the_book(seed, lengths, ease):
    rng = np.random.default_rng(seed)
    runs, visible = [], []
    for n in lengths:
        overlaps = np.where(np.repeat(rng.random(n // 7 + 1) < ease, 7)[:n], rng.random(n), 0.05)
        overlaps[0] = 0
        runs.append(overlaps)
        visible.append(rng.random(n) < 0.95)
    measured = multistart.multi_start([(200, list(zip(runs, visible, strict=True)))])
    expected = eao_by_the_book([r.tolist() for r in runs], [v.tolist() for v in visible])
    assert (measured.eao, measured.accuracy, measured.robustness) == pytest.approx(expected)
    assert measured.per_sequence[0].tolist() == pytest.approx(expected)
    assert 0 <= measured.eao <= 1
    assert 0 <= measured.accuracy <= 1
    assert 0 <= measured.robustness <= 1


def test_a_failure_is_dated_to_its_first_frame_and_absence_starts_the_count_anew():
    overlaps = np.array([0.0] + [1.0] * 4 + [0.1] * 10 + [1.0])
    visible = np.ones(16, bool)
    assert multistart.failure_frame(overlaps, visible) == 5
    assert multistart.failure_frame(overlaps[:14], visible[:14]) == 14
    visible[9] = False
    assert multistart.failure_frame(overlaps, visible) == 16
    assert multistart.failure_frame(np.zeros(3), np.ones(3, bool)) == 3


def test_runs_go_forward_to_the_end_and_backward_to_the_begin():
    frames = multistart.run_frames(np.array([1, 0, -1, 1]))
    assert {k: v.tolist() for k, v in frames.items()} == {0: [0, 1, 2, 3], 3: [3], 2: [2, 1, 0]}


def test_a_perfect_tracker():
    """The frame of the start counts as overlap 0 in A, and in none of the run lengths of EAO."""
    overlaps = np.ones(800)
    overlaps[0] = 0
    measured = multistart.multi_start([(800, [(overlaps, np.ones(800, bool))])])
    assert (measured.eao, measured.robustness) == (1, 1)
    assert measured.accuracy == pytest.approx(799 / 800)
    assert measured.curve.shape == (755,)


def test_order_of_videos_does_not_matter_and_nothing_is_refused():
    rng = np.random.default_rng(0)
    videos = [(n, [(rng.random(n), np.ones(n, bool))]) for n in (50, 130, 300)]
    a, b = multistart.multi_start(videos), multistart.multi_start(videos[::-1])
    assert (a.eao, a.accuracy, a.robustness) == pytest.approx((b.eao, b.accuracy, b.robustness))
    with pytest.raises(ValueError, match="no sequences"):
        multistart.multi_start([])
    with pytest.raises(ValueError, match="sequence 0 has no anchors"):
        multistart.multi_start([(5, [])])


def read(path: Path, length: int) -> np.ndarray:
    rows = [[float(v) for v in line.split(",")] for line in path.read_text().split()]
    assert len(rows) == length
    return np.array([row if len(row) == 4 else [np.nan] * 4 for row in rows])


@pytest.mark.parametrize("tracker", vot_workspace.TRACKERS)
def test_agrees_with_the_toolkit(tracker, tmp_path):
    """Numbers recorded from vot-toolkit 0.9.0 by tests/reference/vot_workspace.py."""
    folder = vot_workspace.write(tmp_path / "multistart", "multistart")
    videos = []
    for video in (folder / "sequences" / "list.txt").read_text().split():
        anchors = np.loadtxt(folder / "sequences" / video / "anchor.value")
        truth = read(folder / "sequences" / video / "groundtruth.txt", len(anchors))
        runs = []
        for anchor, frames in multistart.run_frames(anchors).items():
            found = read(folder / "results" / tracker / "baseline" / video / f"{video}_{anchor:08d}.txt", len(frames))
            runs.append((rasterized_iou(found, truth[frames], vot_workspace.SIZE), (truth[frames, 2:] > 0).all(1)))
        videos.append((len(anchors), runs))
    measured = multistart.multi_start(videos)
    for name, value in RECORDED["multistart"][tracker].items():
        assert getattr(measured, name) == pytest.approx(value, abs=1e-9), name

    folder = vot_workspace.write(tmp_path / "longterm", "longterm")
    sequences = []
    for video in (folder / "sequences" / "list.txt").read_text().split():
        place = folder / "results" / tracker / "rgbd-unsupervised" / video
        scores = [float(line or 0) for line in (place / f"{video}_001_confidence.value").read_text().split("\n")[:-1]]
        truth = read(folder / "sequences" / video / "groundtruth.txt", len(scores))
        found = read(place / f"{video}_001.txt", len(scores))
        sequences.append((rasterized_iou(found, truth, vot_workspace.SIZE), np.array(scores), int((~np.isnan(truth[:, 0])).sum())))
    measured = longterm.long_term(sequences)
    for name, value in RECORDED["longterm"][tracker].items():
        assert getattr(measured, name) == pytest.approx(value, abs=1e-9), name
