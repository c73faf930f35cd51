"""Events: simulator, images, windows and the AEDAT 4 reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.data import events as ev
from tests.reference import events as reference

RECORDING = Path(__file__).resolve().parents[2] / "shared" / "data" / "events" / "davis346.aedat4"
needs_recording = pytest.mark.skipif(not RECORDING.is_file(), reason=f"no recording at {RECORDING}")


def make_events(rng: np.random.Generator, n: int, height: int, width: int, duration: int = 1000) -> np.ndarray:
    out = np.empty(n, ev.EVENT_DTYPE)
    out["t"] = np.sort(rng.integers(duration, size=n))
    out["x"], out["y"], out["p"] = rng.integers(width, size=n), rng.integers(height, size=n), rng.integers(2, size=n)
    return out


def simulate(video: np.ndarray, times: np.ndarray, seed: int = 0, **changes: float) -> np.ndarray:
    settings = {"threshold_noise": 0.0, "noise_rate": 0.0, "refractory": 0} | changes
    return ev.simulate_events(video, times, rng=np.random.default_rng(seed), **settings)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 8),
    height=st.integers(1, 5),
    width=st.integers(1, 6),
    threshold=st.floats(0.05, 0.6),
    noise=st.sampled_from([0.0, 0.05]),
    refractory=st.sampled_from([0, 1, 300, 5000]),
    start=st.sampled_from([0, -5000, 1_589_163_147_365_215]),
)
def test_simulator_equals_per_pixel_reference(seed, count, height, width, threshold, noise, refractory, start):
    rng = np.random.default_rng(seed)
    video = rng.random((count, height, width), np.float32) ** 2
    times = start + np.cumsum(rng.integers(1, 4000, count))
    thresholds = np.maximum(threshold + noise * np.random.default_rng(seed).standard_normal((height, width)), threshold / 10)
    expected = reference.crossings(video, times, thresholds, 0.01, refractory)
    got = simulate(video, times, seed, threshold=threshold, threshold_noise=noise, refractory=refractory)
    assert got.dtype == ev.EVENT_DTYPE
    assert got.tolist() == expected


def test_steady_light_gives_no_events_and_brightening_gives_only_positive_ones():
    times = np.arange(5) * 1000
    assert len(simulate(np.full((5, 4, 4), 0.3, np.float32), times)) == 0
    ramp = np.exp(np.linspace(-3, 0, 5, dtype=np.float32))[:, None, None] * np.ones((1, 4, 4), np.float32)
    up, down = simulate(ramp, times), simulate(ramp[::-1].copy(), times)
    assert up["p"].all()
    assert not down["p"].any()
    # log(1.01) - log(exp(-3) + 0.01) over 0.2, rounded down, for each of 16 pixels
    per_pixel = int((np.log(1.01) - np.log(np.exp(-3) + 0.01)) / 0.2)
    assert len(up) == 16 * per_pixel
    assert len(down) == len(up)


def test_higher_threshold_and_darkness_give_fewer_events():
    rng = np.random.default_rng(0)
    video, times = rng.random((20, 10, 10), np.float32), np.arange(20) * 1000
    numbers = [len(simulate(video, times, threshold=c)) for c in (0.1, 0.2, 0.4, 0.8)]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] > 3 * numbers[-1] > 0
    assert len(simulate(video * 0.01, times)) < 0.5 * numbers[1]


def test_one_step_spreads_its_events_over_the_interval():
    video = np.array([0.0, 1.0], np.float32).reshape(2, 1, 1)
    events = simulate(video, np.array([1000, 2000]), threshold=0.1)
    assert len(events) == int(np.log(1.01 / 0.01) / 0.1)
    np.testing.assert_allclose(np.diff(events["t"]), 1000 / (np.log(101) / 0.1), atol=1.0)


@pytest.mark.parametrize("refractory", [1, 700, 20_000])
def test_refractory_holds_for_all_events_noise_included(refractory):
    rng = np.random.default_rng(1)
    video, times = rng.random((30, 8, 9), np.float32), np.arange(30) * 1000
    events = simulate(video, times, refractory=refractory, noise_rate=300.0, threshold_noise=0.05)
    order = np.lexsort([events["t"], events["x"], events["y"]])
    e = events[order]
    same = (e["x"][1:] == e["x"][:-1]) & (e["y"][1:] == e["y"][:-1])
    assert same.sum() > 20
    assert np.diff(e["t"])[same].min() >= refractory


def test_background_activity_has_the_given_rate_and_both_polarities():
    times = np.array([0, 500_000, 2_000_000])
    events = simulate(np.full((3, 50, 60), 0.5, np.float32), times, noise_rate=5.0)
    expected = 5.0 * 50 * 60 * 2.0
    assert abs(len(events) - expected) < 5 * expected**0.5
    assert 0.47 < events["p"].mean() < 0.53
    assert events["t"].min() < 2000
    assert events["t"].max() > 1_998_000
    assert len(np.unique(events["y"].astype(int) * 60 + events["x"])) > 0.99 * 3000


def test_output_is_sorted_inside_the_clip_and_repeatable():
    rng = np.random.default_rng(2)
    video, times = rng.random((10, 12, 7), np.float32), 10_000 + np.arange(10) * 777
    first, again, other = (simulate(video, times, seed, noise_rate=50.0, threshold_noise=0.02) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (np.diff(first["t"]) >= 0).all()
    assert first["t"].min() >= 10_000
    assert first["t"].max() <= times[-1]
    assert first["x"].max() == 6
    assert first["y"].max() == 11


@pytest.mark.parametrize(
    ("shape", "times", "changes", "words"),
    [
        ((3, 4), [0, 1, 2], {}, "expected \\[S, H, W\\]"),
        ((3, 4, 4), [0, 1], {}, "\\[S\\]"),
        ((3, 4, 4), [0, 5, 5], {}, "strictly increasing"),
        ((3, 4, 4), [0.0, 1.0, 2.0], {}, "float64"),
        ((3, 4, 4), [0, 1, 2], {"threshold": 0.0}, "threshold 0.0"),
        ((3, 4, 4), [0, 1, 2], {"refractory": -1}, "refractory -1"),
        ((3, 4, 4), [0, 1, 2**60], {}, "too long"),
    ],
)
def test_simulator_refuses_bad_input(shape, times, changes, words):
    with pytest.raises(ValueError, match=words):
        simulate(np.zeros(shape, np.float32), np.array(times), **changes)


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


@pytest.mark.parametrize("draw", [ev.polarity_image, ev.event_image])
@pytest.mark.parametrize(("x", "y"), [(4, 0), (0, 3)])
def test_images_refuse_events_outside(draw, x, y):
    events = np.zeros(1, ev.EVENT_DTYPE)
    events["x"], events["y"] = x, y
    with pytest.raises(ValueError, match="inside 4x3"):
        draw(events, 3, 4)


def test_event_image_refuses_other_background():
    with pytest.raises(ValueError, match="background is float64"):
        ev.event_image(np.empty(0, ev.EVENT_DTYPE), 3, 4, np.zeros((3, 4)))


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


@needs_recording
def test_real_recording_has_its_frames_and_events():
    recording = ev.read_aedat4(RECORDING)
    assert recording.frames.shape == (59, 260, 346)
    assert recording.frames.dtype == np.uint8
    assert len(recording.events) == 78_830
    assert recording.events.dtype == ev.EVENT_DTYPE
    assert (np.diff(recording.events["t"]) >= 0).all()
    assert set(np.diff(recording.frame_times)) <= {40_000, 40_001}
    windows = ev.frame_windows(recording.events["t"], recording.frame_times)
    assert windows[0] == slice(0, 0)
    assert sum(w.stop - w.start for w in windows) == (recording.events["t"] < recording.frame_times[-1]).sum() > 70_000


@needs_recording
@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "starts with b''"), (10, "starts with"), (16, "cut off inside its header"), (3_000_000, "cut off"), (6_122_000, "cut off")],
)
def test_cut_recording_is_an_error(tmp_path, size, words):
    path = tmp_path / "cut.aedat4"
    path.write_bytes(RECORDING.read_bytes()[:size])
    with pytest.raises(ValueError, match=words) as caught:
        ev.read_aedat4(path)
    assert str(path) in str(caught.value)


@needs_recording
def test_damaged_recording_is_an_error(tmp_path):
    data = bytearray(RECORDING.read_bytes())
    data[2_000_000:2_200_000] = bytes(200_000)  # packets have no checksum: a few wrong pixels go unnoticed, a lost header does not
    path = tmp_path / "damaged.aedat4"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        ev.read_aedat4(path)


@needs_recording
def test_garbled_header_is_an_error(tmp_path):
    """Bytes that are no text in the XML part of the header make the decoder panic instead of raising its own error."""
    data = bytearray(RECORDING.read_bytes())
    at = data.index(b"<attr")
    for garbage in ("\u0104".encode() * 4, b"\xff" * 8, b"<" * 8):
        data[at + 7 : at + 7 + len(garbage)] = garbage
        path = tmp_path / "garbled.aedat4"
        path.write_bytes(data)
        with pytest.raises(ValueError, match="damaged"):
            ev.read_aedat4(path)


def test_missing_and_foreign_files_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.aedat4: no such file"):
        ev.read_aedat4(tmp_path / "gone.aedat4")
    foreign = tmp_path / "foreign.aedat4"
    foreign.write_bytes(b"Event Stream\x02\x00" + bytes(100))
    with pytest.raises(ValueError, match="expected b'#!AER-DAT4"):
        ev.read_aedat4(foreign)
