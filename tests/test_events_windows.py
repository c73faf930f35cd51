"""Which events belong to which frame, in memory and from a stream."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.data import events as ev
from srft.data.events import windows
from tests.reference import events as reference


@settings(max_examples=50, deadline=None)
@given(events=st.lists(st.integers(-50, 50), max_size=40), frames=st.lists(st.integers(-50, 50), min_size=1, max_size=8))
def test_windows_equal_reference(events, frames):
    event_times, frame_times = np.sort(np.array(events, np.int64)), np.sort(np.array(frames, np.int64))
    slices = ev.frame_windows(event_times, frame_times)
    assert [list(range(len(events)))[s] for s in slices] == reference.window_members(event_times, frame_times)


def test_windows_of_nothing_and_of_decreasing_times():
    assert ev.frame_windows(np.arange(3), np.empty(0, np.int64)) == []
    with pytest.raises(ValueError, match="decrease after frame 1"):
        ev.frame_windows(np.arange(3), np.array([0, 2, 1]))


def numbered(times) -> np.ndarray:
    """Events at these times that carry their number in x."""
    events = np.zeros(len(times), ev.EVENT_DTYPE)
    events["t"], events["x"] = times, np.arange(len(times))
    return events


def cut(events: np.ndarray, where: list[int]) -> list[np.ndarray]:
    parts = np.split(events, sorted(i % (len(events) + 1) for i in where))
    return [part for part in parts if len(part)]


TIMES = st.lists(st.integers(-50, 50), max_size=40).map(sorted)
FRAMES = st.lists(st.integers(-60, 60), max_size=8).map(sorted)
CUTS = st.lists(st.integers(0, 100), max_size=6)


@settings(max_examples=100, deadline=None)
@given(times=TIMES, frames=FRAMES, lengths=st.lists(st.integers(0, 30), min_size=8, max_size=8), cuts=CUTS)
def test_stream_gives_each_window_its_events(times, frames, lengths, cuts):
    """Overlapping, touching, separate, empty and repeated windows, and chunks cut anywhere."""
    events = numbered(times)
    edges = np.array([(t, t + n) for t, n in zip(frames, lengths, strict=False)], np.int64).reshape(-1, 2)
    edges[:, 1] = np.maximum.accumulate(edges[:, 1]) if len(edges) else edges[:, 1]
    got = [window["x"].tolist() for window in windows.windows_in_time(cut(events, cuts), edges)]
    assert got == [[i for i, t in enumerate(times) if a <= t < b] for a, b in edges.tolist()]
    assert got == [events["x"][s].tolist() for s in windows.window_slices(events["t"], edges)]


@settings(max_examples=100, deadline=None)
@given(times=TIMES, frames=FRAMES, count=st.integers(1, 12), cuts=CUTS)
def test_stream_gives_the_last_events_before_each_frame(times, frames, count, cuts):
    got = [window["x"].tolist() for window in windows.windows_by_count(cut(numbered(times), cuts), np.array(frames, np.int64), count)]
    assert got == [[i for i, t in enumerate(times) if t < stop][-count:] for stop in frames]


def test_stream_is_read_no_further_than_needed_and_long_gaps_are_not_held():
    read = []

    def chunks():
        for k in range(1000):
            read.append(k)
            yield numbered([10 * k, 10 * k + 5])

    edges = np.array([[5000, 5010], [5010, 5020]])
    got = list(windows.windows_in_time(chunks(), edges))
    assert [len(window) for window in got] == [2, 2]
    assert read[-1] == 502


@settings(max_examples=100, deadline=None)
@given(
    first=st.integers(-(10**15), 10**15),
    duration=st.integers(0, 10**6),
    fps=st.one_of(st.sampled_from([25.0, 29.97, 30.0, 0.5, 1e6]), st.floats(0.01, 500.0)),
)
def test_regular_frames_hold_every_event_in_one_interval(first, duration, fps):
    if fps == 1e6:
        duration %= 1000
    last = first + duration
    times = windows.regular_times(first, last, fps)
    edges = windows.interval_edges(times)
    assert times[-1] > last
    assert len(times) == 1 or times[-2] <= last
    events = np.array([first, last])
    if len(times) > 1:  # a single frame has no interval
        assert edges[0, 0] <= first + 1
        assert sum(s.stop - s.start for s in windows.window_slices(events[1:], edges)) == 1
    period = 1e6 / fps
    np.testing.assert_allclose(times - first, np.arange(1, len(times) + 1) * period, atol=1.001)


def test_exact_rates_do_not_drift():
    times = windows.regular_times(0, 10**9, 30.0)
    assert times[29] == 10**6
    assert times[-1] == 1_000_033_334  # frame 30,001, the first after the last event
    assert windows.regular_times(0, 0, 25.0).tolist() == [40_000]


def test_bad_windows_are_named():
    none = [numbered([0])]
    with pytest.raises(ValueError, match="window 1 is from 0 to 5"):
        list(windows.windows_in_time(none, np.array([[0, 10], [0, 5]])))
    with pytest.raises(ValueError, match="window 0 is from 10 to 5"):
        list(windows.windows_in_time(none, np.array([[10, 5]])))
    with pytest.raises(ValueError, match="windows of 0 events"):
        list(windows.windows_by_count(none, np.array([1]), 0))
    with pytest.raises(ValueError, match="sorted"):
        list(windows.windows_by_count(none, np.array([2, 1]), 1))
    with pytest.raises(ValueError, match="window of 0 microseconds"):
        windows.duration_edges(np.array([1]), 0)
    with pytest.raises(ValueError, match="frames per second"):
        windows.regular_times(0, 10, 0.0)
    with pytest.raises(ValueError, match="times in order"):
        windows.regular_times(10, 0, 25.0)
