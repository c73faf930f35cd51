"""A contrast-threshold event sensor that watches a video: linear light (synthetic worlds) or ordinary 8-bit frames."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from srft.data.events.recording import EVENT_DTYPE

__all__ = ["simulate_events", "simulate_from_video"]

_LINEAR_UP_TO = 20.0


def simulate_events(
    intensities: np.ndarray,
    times: np.ndarray,
    *,
    threshold: float = 0.2,
    threshold_noise: float = 0.02,
    refractory: int = 100,
    noise_rate: float = 0.1,
    floor: float = 0.01,
    rng: np.random.Generator,
) -> np.ndarray:
    """Events that an ideal contrast-threshold sensor with pixel mismatch and background activity sees in a video.

    Every pixel keeps a reference level, at first its logarithmic intensity in sub-frame 0. Between two sub-frames the logarithmic
    intensity is a straight line; each time it is a further threshold away from the reference, the reference moves there and an
    event happens at that (rounded down) moment, so one step of light may give several events. Background activity, a Poisson
    process of each pixel with random polarity, is added. At last an event less than ``refractory`` after the same pixel's last
    event that got out is lost; the reference has moved all the same.

    Args:
        intensities: ``[S, H, W]`` linear light, 0 to 1.
        times: ``[S]`` integer microseconds, strictly increasing.
        threshold: mean change of logarithmic intensity that makes an event.
        threshold_noise: standard deviation of the threshold over pixels, constant in time; thresholds stay above a tenth of the mean.
        refractory: dead time of a pixel after an event, microseconds.
        noise_rate: background events per pixel and second.
        floor: light added everywhere before the logarithm: dark current, which hides contrast in the dark.
        rng: source of mismatch and background activity. Given equal states, equal inputs give equal events.

    Returns:
        ``[N]`` of :data:`EVENT_DTYPE`, sorted by time, then row, column and polarity.

    Raises:
        ValueError: shapes, times or parameters are out of range.
    """
    times = np.asarray(times)
    if intensities.ndim != 3 or times.shape != intensities.shape[:1]:
        raise ValueError(f"intensities {intensities.shape} and times {times.shape}; expected [S, H, W] and [S]")
    if not np.issubdtype(times.dtype, np.integer) or np.any(np.diff(times) <= 0):
        raise ValueError(f"times are {times.dtype} starting {times[:4].tolist()}; expected strictly increasing integer microseconds")
    if not (threshold > 0 and threshold_noise >= 0 and refractory >= 0 and noise_rate >= 0 and floor > 0):
        raise ValueError(
            f"threshold {threshold}, threshold_noise {threshold_noise}, refractory {refractory}, noise_rate {noise_rate}, floor {floor}; "
            "expected threshold and floor above 0, the others at least 0"
        )
    count, height, width = intensities.shape
    pixels = height * width
    if count == 0 or pixels == 0:
        return np.empty(0, EVENT_DTYPE)
    start = int(times[0])
    clock = times.astype(np.int64) - start
    span = int(clock[-1]) + 1
    if span * pixels * 2 >= 2**63:
        raise ValueError(f"{span} microseconds of {width}x{height} pixels are too long for one call; simulate the video in parts")

    limits = np.maximum(threshold + threshold_noise * rng.standard_normal(pixels), threshold / 10)
    levels = (np.log(image + np.float32(floor)).astype(np.float64) for image in intensities.reshape(count, pixels))
    keys = list(_crossings(levels, clock.tolist(), limits, span))
    if noise_rate > 0 and span > 1:
        number = rng.poisson(noise_rate * pixels * (span - 1) * 1e-6)
        where, when, up = rng.integers(pixels, size=number), rng.integers(span - 1, size=number), rng.integers(2, size=number)
        keys.append((where * span + when) * 2 + up)
    # A key is (pixel, time, polarity) in one integer: numpy sorts plain integers several times faster than records.
    key = np.sort(np.concatenate(keys)) if keys else np.empty(0, np.int64)
    if refractory > 0:
        key = key[_outside_refractory(key >> 1, span, refractory)]
    return _events(key, span, start, height, width)


def _events(key: np.ndarray, span: int, start: int, height: int, width: int) -> np.ndarray:
    # Keys (pixel * span + time) * 2 + polarity as events sorted by time, row, column and polarity.
    pixels = height * width
    moment, up = np.divmod(key, 2)
    where, when = np.divmod(moment, span)
    when, rest = np.divmod(np.sort((when * pixels + where) * 2 + up), 2 * pixels)
    events = np.empty(len(key), EVENT_DTYPE)
    events["t"] = when + start
    events["y"], events["x"] = np.divmod(rest >> 1, width)
    events["p"] = rest & 1
    return events


def _crossings(levels: Iterable[np.ndarray], clock: Sequence[int], limits: np.ndarray, span: int) -> Iterator[np.ndarray]:
    # Threshold crossings of each pair of sub-frames as keys (pixel * span + time) * 2 + polarity, unsorted.
    levels = iter(levels)
    previous = next(levels)
    reference = previous.copy()
    for start, stop, level in zip(clock[:-1], clock[1:], levels, strict=True):
        yield _crossings_between(previous, level, reference, limits, start, stop, span)
        previous = level


def _crossings_between(
    before: np.ndarray, after: np.ndarray, reference: np.ndarray, limits: np.ndarray, start: int, stop: int, span: int
) -> np.ndarray:
    # The keys of one pair of sub-frames at the times start and stop; moves the reference levels.
    where = np.flatnonzero(np.abs(after - reference) >= limits)
    base, limit, first, last = reference[where], limits[where], before[where], after[where]
    number = (np.abs(last - base) / limit).astype(np.int64)
    step = np.where(last > base, limit, -limit)
    reference[where] = base + number * step
    # One row per event: pixel i has rows for its 1st, 2nd, ... number[i]-th crossing.
    row = np.repeat(np.arange(len(where)), number)
    order = np.arange(len(row)) - np.repeat(np.cumsum(number) - number, number) + 1
    way, change = base[row] + order * step[row] - first[row], (last - first)[row]
    # A level that does not change may reach its threshold by rounding alone: it had when the window began.
    share = np.clip(np.divide(way, change, out=np.zeros_like(way), where=change != 0), 0.0, 1.0)
    when = start + (share * (stop - start)).astype(np.int64)
    return (where[row] * span + when) * 2 + (step[row] > 0)


def _outside_refractory(moment: np.ndarray, span: int, refractory: int) -> np.ndarray:
    # Which of the sorted pixel * span + time a pixel with dead time lets out, [N] bool.
    if not len(moment):
        return np.zeros(0, bool)
    pixel = moment // span
    # Whatever is late enough after its predecessor gets out; only runs of events closer than that need a decision one by one.
    free = np.ones(len(moment), bool)
    free[1:] = (pixel[1:] != pixel[:-1]) | (np.diff(moment) >= refractory)
    heads = np.flatnonzero(free)
    ends = np.append(heads[1:], len(moment))
    keep = free.copy()
    run = ends - heads > 1
    now, ends = heads[run], ends[run]
    while len(now):
        now = np.searchsorted(moment, moment[now] + refractory)
        inside = now < ends
        now, ends = now[inside], ends[inside]
        keep[now] = True
    return keep


def simulate_from_video(
    video: str | Path | Iterable[np.ndarray],
    *,
    fps: float | None = None,
    threshold: float = 0.2,
    threshold_noise: float = 0.02,
    refractory: int = 100,
    noise_rate: float = 0.1,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Events that a sensor would see in place of an ordinary camera, frame by frame, in memory for two frames.

    The brightness of a pixel (0 to 255, as the video has it: that curve is taken for light) goes through the linear-logarithmic response of
    Hu, Liu and Delbruck, "v2e: From Video Frames to Realistic DVS Events" (CVPR workshops 2021): logarithmic above 20, a straight line
    through 0 below, so that the steps of dark 8-bit values are no events. Between two frames the response is a straight line in time, and
    events happen as in :func:`simulate_events`. What moves more than a few pixels between two frames jumps here, so give it videos of a
    high frame rate, or interpolate them first.

    Args:
        video: a video file, or frames ``[H, W]`` (grey) or ``[H, W, 3]`` (RGB), uint8 or floating point from 0 to 255.
        fps: frames per second; left out, the video file's own.
        threshold: mean change of the logarithm that makes an event.
        threshold_noise: standard deviation of the threshold over pixels, constant in time; thresholds stay above a tenth of the mean.
        refractory: dead time of a pixel after an event, microseconds.
        noise_rate: background events per pixel and second.
        rng: source of mismatch and background activity.

    Yields:
        One array of :data:`EVENT_DTYPE` for each frame: the events since the frame before, sorted by time; the first is empty. Frame k is
        at k / fps, rounded down to microseconds.

    Raises:
        ValueError: the video cannot be read, a frame has another size or type, the rate is missing or a parameter out of range.
    """
    if isinstance(video, str | Path):
        rate, frames = _open_video(Path(video))
        fps = rate if fps is None else fps
    else:
        frames = iter(video)
    if fps is None or not (math.isfinite(fps) and 0 < fps <= 1e6):
        raise ValueError(f"{fps} frames per second; expected a number above 0 and at most a million, give fps")
    if not (threshold > 0 and threshold_noise >= 0 and refractory >= 0 and noise_rate >= 0):
        raise ValueError(
            f"threshold {threshold}, threshold_noise {threshold_noise}, refractory {refractory}, noise_rate {noise_rate}; "
            "expected a threshold above 0, the others at least 0"
        )
    first = next(frames, None)
    if first is None:
        return
    previous = _response(first, first.shape, 0)
    height, width = first.shape[:2]
    pixels = height * width
    limits = np.maximum(threshold + threshold_noise * rng.standard_normal(pixels), threshold / 10)
    reference = previous.copy()
    ready = np.full(pixels, np.iinfo(np.int64).min)  # from when on a pixel may let out its next event
    yield np.empty(0, EVENT_DTYPE)
    for number, frame in enumerate(frames, 1):
        start, stop = int((number - 1) * 1e6 / fps), int(number * 1e6 / fps)
        span = stop - start + 1
        level = _response(frame, first.shape, number)
        keys = [_crossings_between(previous, level, reference, limits, 0, stop - start, span)]
        if noise_rate > 0:
            count = rng.poisson(noise_rate * pixels * (span - 1) * 1e-6)
            where, when, up = rng.integers(pixels, size=count), rng.integers(span - 1, size=count), rng.integers(2, size=count)
            keys.append((where * span + when) * 2 + up)
        key = np.sort(np.concatenate(keys))
        if refractory > 0:
            where, when = np.divmod(key >> 1, span)
            key = key[when + start >= ready[where]]
            key = key[_outside_refractory(key >> 1, span, refractory)]
            where, when = np.divmod(key >> 1, span)
            ready[where] = when + start + refractory  # sorted: a pixel's last event stays
        yield _events(key, span, start, height, width)
        previous = level


def _response(frame: np.ndarray, shape: tuple[int, ...], number: int) -> np.ndarray:
    # Linear-logarithmic level of each pixel, flat.
    floating = np.issubdtype(frame.dtype, np.floating)
    if (
        frame.shape != shape
        or not (frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 3))
        or not (floating or frame.dtype == np.uint8)
    ):
        raise ValueError(f"frame {number} is {frame.dtype} {frame.shape}; expected uint8 or floating point {shape}, [H, W] or [H, W, 3]")
    if floating and not (frame.min() >= 0 and frame.max() <= 255):
        raise ValueError(f"frame {number} has values from {frame.min()} to {frame.max()}; expected 0 to 255")
    light = frame.astype(np.float64)
    if light.ndim == 3:
        light = light @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in the paper
    light = light.reshape(-1)
    return np.where(light <= _LINEAR_UP_TO, light * (math.log(_LINEAR_UP_TO) / _LINEAR_UP_TO), np.log(np.maximum(light, 1.0)))


def _open_video(path: Path) -> tuple[float | None, Iterator[np.ndarray]]:
    import cv2

    capture = cv2.VideoCapture(str(path)) if path.is_file() else None
    if capture is None or not capture.isOpened():
        raise ValueError(f"{path}: {'cannot be opened as a video' if capture else 'no such file'}; expected a video that OpenCV can read")
    rate = float(capture.get(cv2.CAP_PROP_FPS))

    def frames() -> Iterator[np.ndarray]:
        try:
            while True:
                good, frame = capture.read()
                if not good:
                    return
                yield frame[..., ::-1]
        finally:
            capture.release()

    return rate if rate > 0 else None, frames()
