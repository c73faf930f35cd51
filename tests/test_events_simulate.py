"""The contrast-threshold sensor: linear light, and ordinary video."""

from __future__ import annotations

import warnings

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.data import events as ev
from tests.reference import events as reference


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


def from_video(frames, seed=0, **changes):
    values = {"fps": 100.0, "threshold_noise": 0.0, "noise_rate": 0.0, "refractory": 0} | changes
    return list(ev.simulate_from_video(frames, rng=np.random.default_rng(seed), **values))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 6),
    height=st.integers(1, 4),
    width=st.integers(1, 5),
    threshold=st.floats(0.05, 0.6),
    noise=st.sampled_from([0.0, 0.05]),
    refractory=st.sampled_from([0, 1, 300, 15_000]),
    color=st.booleans(),
    fps=st.sampled_from([25.0, 120.0, 29.97]),
)
def test_video_equals_per_pixel_reference(seed, count, height, width, threshold, noise, refractory, color, fps):
    rng = np.random.default_rng(seed)
    video = rng.integers(256, size=(count, height, width, 3) if color else (count, height, width), dtype=np.uint8)
    thresholds = np.maximum(threshold + noise * np.random.default_rng(seed).standard_normal((height, width)), threshold / 10)
    times = [int(k * 1e6 / fps) for k in range(count)]
    expected = reference.crossings_of_levels(reference.lin_log(video), times, thresholds, refractory)
    got = from_video(video, seed, fps=fps, threshold=threshold, threshold_noise=noise, refractory=refractory)
    assert len(got) == count
    assert np.concatenate(got).tolist() == expected
    for events, start, stop in zip(got[1:], times[:-1], times[1:], strict=True):
        assert ((events["t"] >= start) & (events["t"] <= stop)).all()


def test_dark_quantization_steps_are_no_events_and_equal_ratios_in_the_light_are():
    def count(a, b):
        return len(from_video(np.array([a, b], np.uint8).reshape(2, 1, 1), threshold=0.2)[1])

    assert count(1, 2) == 0  # a doubling, but of next to nothing
    assert count(40, 80) == count(80, 160) == int(np.log(2) / 0.2)
    # the response is continuous where its parts meet
    below, above = reference.lin_log(np.array([[[20.0 - 1e-9]], [[20.0 + 1e-9]]])).ravel()
    assert abs(above - below) < 1e-8


def test_a_threshold_that_is_met_by_rounding_is_met_where_the_step_ends():
    """Without mismatch, levels that stay may lie a threshold from the reference to the last bit: no time is made of 0 / 0."""
    frames = np.random.default_rng(0).integers(0, 256, (6, 64, 64), np.uint8).repeat(2, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = list(ev.simulate_from_video(frames, fps=100, threshold_noise=0, noise_rate=0, rng=np.random.default_rng(0)))
    for number, events in enumerate(found[1:], 1):
        assert ((events["t"] >= 10_000 * (number - 1)) & (events["t"] <= 10_000 * number)).all()


def test_noise_of_a_steady_video_has_the_given_rate():
    got = from_video([np.full((50, 60), 128, np.uint8)] * 201, noise_rate=5.0)
    expected = 5.0 * 50 * 60 * 2.0
    assert abs(sum(map(len, got)) - expected) < 5 * expected**0.5


def test_video_file_gives_what_its_frames_give(tmp_path):
    rng = np.random.default_rng(0)
    frames = [cv2.resize(rng.integers(256, size=(6, 8, 3), dtype=np.uint8), (32, 24)) for _ in range(4)]
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 50.0, (32, 24))
    for frame in frames:
        writer.write(frame)
    writer.release()
    capture = cv2.VideoCapture(str(path))
    decoded = [capture.read()[1][..., ::-1] for _ in frames]
    from_file = list(ev.simulate_from_video(path, rng=np.random.default_rng(0)))
    from_frames = list(ev.simulate_from_video(decoded, fps=50.0, rng=np.random.default_rng(0)))
    assert len(from_file) == 4
    assert sum(map(len, from_file)) > 500
    assert all(np.array_equal(a, b) for a, b in zip(from_file, from_frames, strict=True))


def test_no_frames_give_nothing():
    assert from_video([]) == []


@pytest.mark.parametrize(
    ("frames", "changes", "words"),
    [
        ([np.zeros((2, 2), np.uint8)], {"fps": None}, "give fps"),
        ([np.zeros((2, 2), np.uint8)], {"fps": 0.0}, "above 0"),
        ([np.zeros((2, 2), np.uint8)], {"threshold": 0.0}, "threshold 0.0"),
        ([np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8)], {}, r"frame 1 is uint8 \(2, 3\)"),
        ([np.zeros((2, 2), np.int32)], {}, "frame 0 is int32"),
        ([np.full((2, 2), 300.0)], {}, "0 to 255"),
    ],
)
def test_bad_video_is_named(frames, changes, words):
    with pytest.raises(ValueError, match=words):
        from_video(frames, **changes)


def test_missing_and_broken_video_files_are_named(tmp_path):
    (tmp_path / "broken.avi").write_bytes(b"no video")
    for name, words in (("gone.avi", "no such file"), ("broken.avi", "cannot be opened")):
        with pytest.raises(ValueError, match=rf"{name}: {words}"):
            from_video(tmp_path / name)
