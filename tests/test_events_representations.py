"""Representations of windows of events."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.data import events as ev
from srft.data.events import representations as rep
from tests.reference import events as reference


def make_events(rng: np.random.Generator, n: int, height: int, width: int, duration: int = 1000) -> np.ndarray:
    out = np.empty(n, ev.EVENT_DTYPE)
    out["t"] = np.sort(rng.integers(duration, size=n))
    out["x"], out["y"], out["p"] = rng.integers(width, size=n), rng.integers(height, size=n), rng.integers(2, size=n)
    return out


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 200), height=st.integers(1, 6), width=st.integers(1, 6))
def test_images_equal_reference(seed, n, height, width):
    rng = np.random.default_rng(seed)
    events = make_events(rng, n, height, width)
    assert np.array_equal(ev.polarity_image(events, height, width), reference.polarity_image(events, height, width))
    white = np.full((height, width, 3), 255, np.uint8)
    assert np.array_equal(ev.event_image(events, height, width), reference.event_image(events, height, width, white))
    grey = rng.integers(256, size=(height, width), dtype=np.uint8)
    expected = reference.event_image(events, height, width, np.repeat(grey[..., None], 3, axis=2))
    before = grey.copy()
    assert np.array_equal(ev.event_image(events, height, width, grey), expected)
    assert np.array_equal(grey, before)


def test_polarity_image_saturates_and_ignores_order():
    events = np.zeros(300, ev.EVENT_DTYPE)
    events["p"][:100] = True
    image = ev.polarity_image(events, 2, 2)
    assert image[0, 0].tolist() == [255, 0, 255]
    assert image.sum() == 510
    rng = np.random.default_rng(0)
    events = make_events(rng, 500, 8, 8)
    assert np.array_equal(ev.polarity_image(events, 8, 8), ev.polarity_image(rng.permutation(events), 8, 8))


@pytest.mark.parametrize("name", ev.REPRESENTATIONS)
@pytest.mark.parametrize(("x", "y"), [(4, 0), (0, 3)])
def test_events_outside_the_sensor_are_refused(name, x, y):
    events = np.zeros(1, ev.EVENT_DTYPE)
    events["x"], events["y"] = x, y
    with pytest.raises(ValueError, match="inside 4x3"):
        ev.represent(name, events, 3, 4)


def test_event_image_refuses_other_background():
    with pytest.raises(ValueError, match="background is float64"):
        ev.event_image(np.empty(0, ev.EVENT_DTYPE), 3, 4, np.zeros((3, 4)))


SIZES = {"seed": st.integers(0, 2**32 - 1), "n": st.integers(0, 120), "height": st.integers(1, 5), "width": st.integers(1, 6)}
WINDOW = {"before": st.sampled_from([None, 0, 7, 10**15]), "after": st.sampled_from([None, 1, 500])}


def window_of(events, before, after):
    """Start and stop around the events; None lets the function choose, which is the first event and just after the last."""
    first, last = (int(events["t"][0]), int(events["t"][-1])) if len(events) else (0, 0)
    start = None if before is None else first - before
    stop = None if after is None else last + after
    true_start = first if start is None else start
    true_stop = (last + 1 if len(events) else true_start) if stop is None else stop
    return (start, stop), (true_start, max(true_stop, true_start))


@settings(max_examples=60, deadline=None)
@given(**SIZES, **WINDOW, bins=st.integers(1, 6), tau=st.sampled_from([1.0, 300.0, 1e6]))
def test_timed_representations_equal_reference(seed, n, height, width, before, after, bins, tau):
    events = make_events(np.random.default_rng(seed), n, height, width)
    untouched = events.copy()
    (start, stop), (true_start, true_stop) = window_of(events, before, after)
    edges = {"start": start, "stop": stop}
    got = ev.represent("voxel_grid", events, height, width, bins=bins, **edges)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, reference.voxel_grid(events, height, width, bins, true_start, true_stop), atol=1e-5)
    np.testing.assert_allclose(got.sum(), 2 * int(events["p"].sum()) - n, atol=1e-4)
    got = ev.represent("time_surface", events, height, width, tau=tau, **edges)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, reference.time_surface(events, height, width, tau, true_stop), rtol=1e-5, atol=1e-30)
    got = ev.represent("three_windows", events, height, width, **edges)
    assert np.array_equal(got, reference.three_windows(events, height, width, true_start, true_stop))
    assert np.array_equal(events, untouched)


@settings(max_examples=30, deadline=None)
@given(**SIZES)
def test_counts_equal_reference_in_any_order(seed, n, height, width):
    rng = np.random.default_rng(seed)
    events = make_events(rng, n, height, width)
    got = ev.represent("counts", events, height, width)
    assert np.array_equal(got, reference.counts(events, height, width))
    for name in sorted(set(ev.REPRESENTATIONS) - rep.TIMED):
        shuffled = ev.represent(name, rng.permutation(events), height, width)
        assert np.array_equal(shuffled, ev.represent(name, events, height, width))


@pytest.mark.parametrize("name", ev.REPRESENTATIONS)
def test_no_events_give_the_background(name):
    background = {"red_blue": 255, "three_windows": 127}.get(name, 0)
    for window in ({}, {"start": 5, "stop": 5}, {"start": 5, "stop": 900}):
        got = ev.represent(name, np.empty(0, ev.EVENT_DTYPE), 3, 4, **window)
        assert got.shape in ((3, 4, 3), (2, 3, 4), (5, 3, 4))
        assert (got == background).all()


@pytest.mark.parametrize("name", sorted(rep.TIMED))
def test_timed_representations_do_not_depend_on_when_the_clock_started(name):
    events = make_events(np.random.default_rng(0), 200, 5, 6)
    later = events.copy()
    later["t"] += 1_589_163_147_365_215
    assert np.array_equal(ev.represent(name, events, 5, 6), ev.represent(name, later, 5, 6))


@pytest.mark.parametrize("name", sorted(rep.TIMED))
@pytest.mark.parametrize(("window", "words"), [((11, 30), "inside"), ((0, 20), "inside"), ((30, 5), "inside")])
def test_events_outside_the_window_are_refused(name, window, words):
    events = np.zeros(2, ev.EVENT_DTYPE)
    events["t"] = 10, 20
    with pytest.raises(ValueError, match=words):
        ev.represent(name, events, 3, 4, start=window[0], stop=window[1])
    with pytest.raises(ValueError, match="event 1 is before"):
        ev.represent(name, events[::-1], 3, 4)


def test_thirds_are_half_open_and_exact_on_long_clocks():
    events = np.zeros(4, ev.EVENT_DTYPE)
    start = 2**52
    events["t"] = start + np.array([0, 99, 100, 299])
    events["x"], events["p"] = np.arange(4), True
    image = ev.represent("three_windows", events, 1, 4, start=start, stop=start + 300)
    assert image[0].T.tolist() == [[0, 0, 127, 127], [127, 127, 0, 127], [127, 127, 127, 0]]


def test_bad_settings_are_named():
    none = np.empty(0, ev.EVENT_DTYPE)
    with pytest.raises(ValueError, match="no representation 'voxels'; expected one of polarity, red_blue"):
        ev.represent("voxels", none, 3, 4)
    with pytest.raises(ValueError, match="0 bins"):
        ev.represent("voxel_grid", none, 3, 4, bins=0)
    with pytest.raises(ValueError, match=r"tau is 0\.0"):
        ev.represent("time_surface", none, 3, 4, tau=0.0)
