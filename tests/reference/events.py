"""Event functions pixel by pixel and event by event: slow, and plain enough to be checked by reading."""

from __future__ import annotations

import math

import numpy as np


def crossings(
    intensities: np.ndarray, times: np.ndarray, thresholds: np.ndarray, floor: float, refractory: int
) -> list[tuple[int, int, int, bool]]:
    """Events (t, x, y, p) of a noiseless sensor with one threshold per pixel, sorted by t, y, x."""
    count, height, width = intensities.shape
    out = []
    for y in range(height):
        for x in range(width):
            limit = float(thresholds[y, x])
            logs = [float(np.log(np.float32(intensities[s, y, x]) + np.float32(floor))) for s in range(count)]
            reference = logs[0]
            last = -math.inf
            for s in range(1, count):
                sign = 1 if logs[s] > reference else -1
                base = reference
                for n in range(1, int(abs(logs[s] - base) / limit) + 1):
                    reference = base + n * (sign * limit)
                    share = min(max((reference - logs[s - 1]) / (logs[s] - logs[s - 1]), 0.0), 1.0)
                    t = int(times[s - 1]) + int(share * int(times[s] - times[s - 1]))
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


def window_members(event_times: np.ndarray, frame_times: np.ndarray) -> list[list[int]]:
    """Per frame the indices of the events since the frame before; the first frame's window is as long as the second's."""
    starts = [frame_times[0] - (frame_times[1] - frame_times[0]) if len(frame_times) > 1 else frame_times[0], *frame_times[:-1]]
    return [[i for i, t in enumerate(event_times) if a <= t < b] for a, b in zip(starts, frame_times, strict=True)]
