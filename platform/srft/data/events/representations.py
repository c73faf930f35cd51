"""What a network gets to see of a window of events, by name.

Every function takes events ``[N]`` of :data:`EVENT_DTYPE` and the size of the sensor. Images are ``[H, W, 3]`` uint8 RGB; the others are
planes ``[C, H, W]``. No event gives the background, everywhere. Events outside the sensor, or outside a given window, are errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = [
    "REPRESENTATIONS",
    "TIMED",
    "count_image",
    "event_image",
    "polarity_image",
    "represent",
    "three_windows",
    "time_surface",
    "voxel_grid",
]

_SATURATION = np.array([255 - (255 >> n) for n in range(9)], np.uint8)
_ON_RGB, _OFF_RGB = (220, 30, 30), (30, 30, 200)


def represent(
    name: str, events: np.ndarray, height: int, width: int, *, start: int | None = None, stop: int | None = None, **settings: Any
) -> np.ndarray:
    """Represent a window of events in the way of that name.

    Args:
        name: one of :data:`REPRESENTATIONS`.
        events: ``[N]`` of :data:`EVENT_DTYPE`, sorted by time.
        height: rows.
        width: columns.
        start: when the window starts, microseconds; its first event when None. Only those in :data:`TIMED` need it.
        stop: when it stops; just after its last event when None.
        **settings: of that representation: ``tau``, ``bins``, ``background``.

    Returns:
        ``[H, W, 3]`` uint8, or ``[C, H, W]``.

    Raises:
        ValueError: there is no representation of that name.
    """
    if name not in REPRESENTATIONS:
        raise ValueError(f"no representation {name!r}; expected one of {', '.join(REPRESENTATIONS)}")
    if name in TIMED:
        settings |= {"start": start, "stop": stop}
    return REPRESENTATIONS[name](events, height, width, **settings)


def _slots(events: np.ndarray, height: int, width: int) -> np.ndarray:
    # Per event its place in [2, H, W], darker pixels first.
    x, y = events["x"], events["y"]
    if len(events) and (x.max() >= width or y.max() >= height):
        raise ValueError(f"events reach column {x.max()} and row {y.max()}; expected all inside {width}x{height} pixels")
    slots = events["p"].astype(np.intp)
    slots *= height
    slots += y
    slots *= width
    slots += x
    return slots


def _window(events: np.ndarray, start: int | None, stop: int | None) -> tuple[np.ndarray, int]:
    # Times of the events since the start of the window, and its length.
    times = np.ascontiguousarray(events["t"])
    if len(times) and np.any(times[1:] < times[:-1]):
        raise ValueError(f"event {int(np.argmax(times[1:] < times[:-1])) + 1} is before the one before it; expected events sorted by time")
    if start is None:
        start = int(times[0]) if len(times) else 0
    if stop is None:
        stop = max(int(times[-1]) + 1 if len(times) else start, start)
    if start > stop or (len(times) and (times[0] < start or times[-1] >= stop)):
        raise ValueError(f"window from {start} to {stop}, events from {times[:1].tolist()} to {times[-1:].tolist()}; expected them inside")
    return times - start, stop - start


def count_image(events: np.ndarray, height: int, width: int) -> np.ndarray:
    """How many events there were.

    Args:
        events: ``[N]`` of :data:`EVENT_DTYPE`, any order.
        height: rows.
        width: columns.

    Returns:
        ``[2, H, W]`` int64: darker, brighter.
    """
    return np.bincount(_slots(events, height, width), minlength=2 * height * width).reshape(2, height, width)


def polarity_image(events: np.ndarray, height: int, width: int) -> np.ndarray:
    """Saturating event counts as an RGB image: red counts brighter, blue darker, green is 0, no event is black.

    n events of one polarity at a pixel give ``255 - (255 >> n)``: 0, 128, 192, 224, 240, 248, 252, 254, then 255. This is the
    auxiliary modality of synthetic and real sequences alike; order and timing inside the window do not matter.

    Args:
        events: ``[N]`` of :data:`EVENT_DTYPE`, any order.
        height: rows.
        width: columns.

    Returns:
        ``[H, W, 3]`` uint8.
    """
    image = np.zeros((height, width, 3), np.uint8)
    for channel, counts in zip((2, 0), count_image(events, height, width), strict=True):
        image[..., channel] = np.take(_SATURATION, counts, mode="clip")
    return image


def event_image(events: np.ndarray, height: int, width: int, background: np.ndarray | None = None) -> np.ndarray:
    """The event image that VisEvent and COESOT publish: brighter pixels (220, 30, 30), darker ones (30, 30, 200), on white.

    A pixel with both polarities in the window shows darker, as there.

    Args:
        events: ``[N]`` of :data:`EVENT_DTYPE`, any order; the data sets take those during the frame's exposure.
        height: rows.
        width: columns.
        background: ``[H, W]`` or ``[H, W, 3]`` uint8 to draw on instead of white; it is not changed.

    Returns:
        ``[H, W, 3]`` uint8 RGB.

    Raises:
        ValueError: the background has another shape or type.
    """
    if background is None:
        image = np.full((height, width, 3), 255, np.uint8)
    elif background.dtype != np.uint8 or background.shape not in ((height, width), (height, width, 3)):
        raise ValueError(f"background is {background.dtype} {background.shape}; expected uint8 [{height}, {width}] or with 3 channels")
    else:
        image = np.ascontiguousarray(np.broadcast_to(background.reshape(height, width, -1), (height, width, 3))).copy()
    seen = np.zeros((2, height, width), bool)
    seen.reshape(-1)[_slots(events, height, width)] = True
    image[seen[1]] = _ON_RGB
    image[seen[0]] = _OFF_RGB
    return image


def three_windows(events: np.ndarray, height: int, width: int, *, start: int | None = None, stop: int | None = None) -> np.ndarray:
    """The stack of FE108: one channel for each third of the time since the frame before; grey 127, brighter 0, darker 255.

    A pixel with both polarities in a third shows darker, as in :func:`event_image` (unpublished).

    Args:
        events: ``[N]`` of :data:`EVENT_DTYPE`, sorted by time.
        height: rows.
        width: columns.
        start: when the window starts, microseconds; its first event when None.
        stop: when it stops; just after its last event when None.

    Returns:
        ``[H, W, 3]`` uint8, the oldest third first. The data set's authors store the channels as three grey images.
    """
    slots = _slots(events, height, width)
    times, length = _window(events, start, stop)
    seen = np.zeros((3, 2, height, width), bool)
    seen.reshape(-1)[times * 3 // max(length, 1) * (2 * height * width) + slots] = True
    image = np.full((3, height, width), 127, np.uint8)
    image[seen[:, 1]] = 0
    image[seen[:, 0]] = 255
    return np.ascontiguousarray(image.transpose(1, 2, 0))


def time_surface(
    events: np.ndarray, height: int, width: int, *, tau: float = 30_000.0, start: int | None = None, stop: int | None = None
) -> np.ndarray:
    """How recent each pixel's last event is: ``exp(-(stop - t) / tau)``, 0 without one (Lagorce et al., HOTS, TPAMI 2017).

    Args:
        events: ``[N]`` of :data:`EVENT_DTYPE`, sorted by time.
        height: rows.
        width: columns.
        tau: decay, microseconds.
        start: when the window starts, microseconds; its first event when None.
        stop: when it stops, and what ages are measured from; just after its last event when None.

    Returns:
        ``[2, H, W]`` float32 from 0 to 1: darker, brighter.

    Raises:
        ValueError: tau is not above 0.
    """
    if not tau > 0:
        raise ValueError(f"tau is {tau} microseconds; expected more than 0")
    slots = _slots(events, height, width)
    times, length = _window(events, start, stop)
    surface = np.zeros(2 * height * width, np.float32)
    surface[slots] = np.exp((times - length) / tau)  # the last assignment to a pixel stays, and events are sorted
    return surface.reshape(2, height, width)


def voxel_grid(
    events: np.ndarray, height: int, width: int, *, bins: int = 5, start: int | None = None, stop: int | None = None
) -> np.ndarray:
    """Signed events, each shared between the two time bins around it (Zhu et al., CVPR 2019).

    With ``t* = (bins - 1) (t - start) / (stop - start)`` an event adds ``(+1 or -1) * max(0, 1 - |b - t*|)`` to bin b of its pixel, so that
    the grid sums to the sum of polarities. One bin holds everything.

    Args:
        events: ``[N]`` of :data:`EVENT_DTYPE`, sorted by time.
        height: rows.
        width: columns.
        bins: B, planes in time.
        start: when the window starts, microseconds; its first event when None.
        stop: when it stops; just after its last event when None.

    Returns:
        ``[B, H, W]`` float32, the oldest bin first.

    Raises:
        ValueError: there are fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"{bins} bins; expected at least one")
    size = height * width
    slots = _slots(events, height, width)
    times, length = _window(events, start, stop)
    place = times * ((bins - 1) / max(length, 1))
    bin_ = place.astype(np.intp)
    np.subtract(place, bin_, out=place)
    up = slots >= size
    sign = np.where(up, 1.0, -1.0)
    slots -= up * size
    slots += bin_ * size
    if bins > 1:
        later = place * sign
        slots, sign = np.concatenate([slots, slots + size]), np.concatenate([sign - later, later])
    return np.bincount(slots, sign, minlength=bins * size).reshape(bins, height, width).astype(np.float32)


REPRESENTATIONS: dict[str, Callable[..., np.ndarray]] = {
    "polarity": polarity_image,
    "red_blue": event_image,
    "three_windows": three_windows,
    "counts": count_image,
    "time_surface": time_surface,
    "voxel_grid": voxel_grid,
}
"""Functions by name: ``(events, height, width, **settings)``."""

TIMED = frozenset({"three_windows", "time_surface", "voxel_grid"})
"""Those that depend on when an event was, and on where the window starts and stops."""
