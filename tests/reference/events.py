"""Event functions pixel by pixel and event by event: slow, and plain enough to be checked by reading."""

from __future__ import annotations

import math

import numpy as np


def crossings(
    intensities: np.ndarray, times: np.ndarray, thresholds: np.ndarray, floor: float, refractory: int
) -> list[tuple[int, int, int, bool]]:
    """Events (t, x, y, p) of a noiseless sensor with one threshold per pixel, sorted by t, y, x."""
    levels = np.log(intensities.astype(np.float32) + np.float32(floor)).astype(np.float64)
    return crossings_of_levels(levels, [int(t) for t in times], thresholds, refractory)


def lin_log(video: np.ndarray) -> np.ndarray:
    """Response to 8-bit brightness: logarithm above 20, below it the straight line through 0 that meets it there."""
    out = np.empty(video.shape[:3])
    for index in np.ndindex(out.shape):
        pixel = np.asarray(video[index], float)
        light = float(pixel @ [0.299, 0.587, 0.114]) if pixel.ndim else float(pixel)
        out[index] = math.log(light) if light > 20 else light * math.log(20) / 20
    return out


def crossings_of_levels(levels: np.ndarray, times: list[int], thresholds: np.ndarray, refractory: int) -> list[tuple[int, int, int, bool]]:
    """As :func:`crossings`, of a sensor whose response is given."""
    count, height, width = levels.shape
    out = []
    for y in range(height):
        for x in range(width):
            limit = float(thresholds[y, x])
            reference = float(levels[0, y, x])
            last = -math.inf
            for s in range(1, count):
                before, after = float(levels[s - 1, y, x]), float(levels[s, y, x])
                sign = 1 if after > reference else -1
                base = reference
                for n in range(1, int(abs(after - base) / limit) + 1):
                    reference = base + n * (sign * limit)
                    share = min(max((reference - before) / (after - before), 0.0), 1.0)
                    t = times[s - 1] + int(share * (times[s] - times[s - 1]))
                    if t - last >= refractory:
                        out.append((t, x, y, sign > 0))
                        last = t
    return sorted(out, key=lambda e: (e[0], e[2], e[1], e[3]))


def polarity_image(events: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each further event of a polarity halves what is left to 255; red brighter, blue darker."""
    left = np.full((height, width, 3), 255)
    for e in events:
        channel = 0 if e["p"] else 2
        left[e["y"], e["x"], channel] //= 2
    image = 255 - left
    image[..., 1] = 0
    return image.astype(np.uint8)


def event_image(events: np.ndarray, height: int, width: int, background: np.ndarray) -> np.ndarray:
    """All brighter events drawn first, then all darker ones over them."""
    image = background.copy()
    for e in events:
        if e["p"]:
            image[e["y"], e["x"]] = (220, 30, 30)
    for e in events:
        if not e["p"]:
            image[e["y"], e["x"]] = (30, 30, 200)
    return image


def counts(events: np.ndarray, height: int, width: int) -> np.ndarray:
    """One more for each event in the plane of its polarity."""
    out = np.zeros((2, height, width), np.int64)
    for e in events:
        out[int(e["p"]), e["y"], e["x"]] += 1
    return out


def three_windows(events: np.ndarray, height: int, width: int, start: int, stop: int) -> np.ndarray:
    """Brighter events drawn first, then darker ones over them, each in the channel of its third."""
    image = np.full((height, width, 3), 127, np.uint8)
    for polarity, value in ((True, 0), (False, 255)):
        for e in events:
            if bool(e["p"]) == polarity:
                third = next(k for k in range(3) if 3 * (int(e["t"]) - start) < (k + 1) * (stop - start))
                image[e["y"], e["x"], third] = value
    return image


def time_surface(events: np.ndarray, height: int, width: int, tau: float, stop: int) -> np.ndarray:
    """The youngest event of a pixel decides."""
    out = np.zeros((2, height, width))
    for e in events:
        value = math.exp(-(stop - int(e["t"])) / tau)
        out[int(e["p"]), e["y"], e["x"]] = max(out[int(e["p"]), e["y"], e["x"]], value)
    return out


def voxel_grid(events: np.ndarray, height: int, width: int, bins: int, start: int, stop: int) -> np.ndarray:
    """Every bin takes from every event what its distance in time leaves."""
    out = np.zeros((bins, height, width))
    for e in events:
        place = (bins - 1) * (int(e["t"]) - start) / (stop - start)
        for b in range(bins):
            out[b, e["y"], e["x"]] += (1 if e["p"] else -1) * max(0.0, 1 - abs(b - place))
    return out


def window_members(event_times: np.ndarray, frame_times: np.ndarray) -> list[list[int]]:
    """Per frame the indices of the events since the frame before; the first frame's window is as long as the second's."""
    starts = [frame_times[0] - (frame_times[1] - frame_times[0]) if len(frame_times) > 1 else frame_times[0], *frame_times[:-1]]
    return [[i for i, t in enumerate(event_times) if a <= t < b] for a, b in zip(starts, frame_times, strict=True)]
