"""Which events belong to which frame.

A window is half-open, ``start <= t < stop``. Events before the first window, between windows and after the last belong to none; a window
without events is an empty array, not an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

import numpy as np

from srft.data.events.recording import EVENT_DTYPE

__all__ = ["duration_edges", "frame_windows", "interval_edges", "regular_times", "window_slices", "windows_by_count", "windows_in_time"]


def regular_times(first: int, last: int, fps: float) -> np.ndarray:
    """Frame times of a camera that never was, so that every event of a recording is in the interval of one frame.

    Args:
        first: time of the first event, microseconds.
        last: time of the last event.
        fps: frames per second; the k-th frame (from 0) ends at ``first + (k + 1) / fps``, rounded up to microseconds.

    Returns:
        ``[T]`` int64 microseconds, the least number of frames whose last is after ``last``.

    Raises:
        ValueError: the rate is not above 0 and at most a million, or ``last`` is before ``first``.
    """
    if not 0 < fps <= 1e6 or last < first:
        raise ValueError(f"{fps} frames per second from {first} to {last}; expected a rate above 0 up to a million and times in order")
    rate = Fraction(str(fps))
    count = int((last - first) * rate / 1_000_000) + 1
    numbers = np.arange(1, count + 1, dtype=object)
    return first + np.array([-(-k * 1_000_000 * rate.denominator // rate.numerator) for k in numbers], np.int64)


def interval_edges(frame_times: np.ndarray) -> np.ndarray:
    """Windows since the frame before: frame i has ``t[i-1] <= t < t[i]``.

    The first frame has no frame before it and gets a window as long as the second frame's; a single frame gets an empty one.

    Args:
        frame_times: ``[T]`` microseconds, not decreasing.

    Returns:
        ``[T, 2]`` int64: start and stop.

    Raises:
        ValueError: the frame times decrease.
    """
    frame_times = np.asarray(frame_times, np.int64)
    if np.any(np.diff(frame_times) < 0):
        raise ValueError(f"frame times decrease after frame {int(np.argmax(np.diff(frame_times) < 0))}; expected sorted microseconds")
    if not len(frame_times):
        return np.empty((0, 2), np.int64)
    first = 2 * frame_times[0] - frame_times[min(1, len(frame_times) - 1)]
    return np.stack([np.concatenate([[first], frame_times[:-1]]), frame_times], axis=1)


def duration_edges(frame_times: np.ndarray, duration: int) -> np.ndarray:
    """Windows of one length that end with each frame; they overlap or leave gaps where the frames are closer or farther apart.

    Args:
        frame_times: ``[T]`` microseconds, not decreasing.
        duration: microseconds.

    Returns:
        ``[T, 2]`` int64: start and stop.

    Raises:
        ValueError: the duration is not above 0.
    """
    if duration <= 0:
        raise ValueError(f"window of {duration} microseconds; expected a duration above 0")
    stops = np.asarray(frame_times, np.int64)
    return np.stack([stops - duration, stops], axis=1)


def window_slices(event_times: np.ndarray, edges: np.ndarray) -> list[slice]:
    """The events in each window, as slices of the recording.

    Args:
        event_times: ``[N]`` microseconds, sorted.
        edges: ``[T, 2]`` start and stop of each window, which may overlap.

    Returns:
        T slices into the events.
    """
    bounds = np.searchsorted(np.ascontiguousarray(event_times), np.asarray(edges, np.int64).reshape(-1, 2), side="left")
    return [slice(a, b) for a, b in bounds.tolist()]


def frame_windows(event_times: np.ndarray, frame_times: np.ndarray) -> list[slice]:
    """The events that belong to each frame: those since the frame before (:func:`interval_edges`).

    Args:
        event_times: ``[N]`` microseconds, sorted.
        frame_times: ``[T]`` microseconds, not decreasing.

    Returns:
        T slices into the events, none overlapping, in the order of the frames.
    """
    return window_slices(event_times, interval_edges(frame_times))


def windows_in_time(chunks: Iterable[np.ndarray], edges: np.ndarray) -> Iterator[np.ndarray]:
    """The events in each window of a recording that is read in chunks; holds those of one window and one chunk.

    Args:
        chunks: arrays of :data:`EVENT_DTYPE`, none empty, sorted by time within and between them.
        edges: ``[T, 2]`` start and stop of each window; neither starts nor stops decrease, and no window stops before it starts.

    Yields:
        T arrays, one a window.

    Raises:
        ValueError: the edges are not as above.
    """
    edges = np.asarray(edges, np.int64).reshape(-1, 2)
    bad = (edges[:, 1] < edges[:, 0]) | (np.diff(edges, axis=0, prepend=edges[:1]) < 0).any(axis=1)
    if bad.any():
        i = int(np.argmax(bad))
        raise ValueError(
            f"window {i} is from {edges[i, 0]} to {edges[i, 1]} after {edges[max(i - 1, 0)].tolist()}; expected starts and stops in order"
        )
    needed = (chunk for chunk in chunks if len(edges) and chunk["t"][-1] >= edges[0, 0])
    yield from _windows(needed, edges[:, 1], lambda i, times, stop: int(np.searchsorted(times, edges[i, 0])))


def windows_by_count(chunks: Iterable[np.ndarray], stops: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """The last so many events before each frame, fewer where there are fewer.

    Args:
        chunks: arrays of :data:`EVENT_DTYPE`, none empty, sorted by time within and between them.
        stops: ``[T]`` microseconds, not decreasing: events at a frame's time do not belong to it.
        count: events of a window.

    Yields:
        T arrays, one a window.

    Raises:
        ValueError: the count is not above 0, or the frame times decrease.
    """
    stops = np.asarray(stops, np.int64)
    if count <= 0 or np.any(np.diff(stops) < 0):
        raise ValueError(f"windows of {count} events before frames from {stops[:3].tolist()}; expected a count above 0 and sorted times")
    yield from _windows(chunks, stops, lambda i, times, stop: max(stop - count, 0))


def _windows(chunks: Iterable[np.ndarray], stops: np.ndarray, begin: Callable[[int, np.ndarray, int], int]) -> Iterator[np.ndarray]:
    # `begin` says where window i starts among the events held, given their times and where it stops; never before an earlier window's.
    source = iter(chunks)
    held, times = np.empty(0, EVENT_DTYPE), np.empty(0, np.int64)
    ended = False
    for i, stop in enumerate(stops.tolist()):
        parts, last = [held], times[-1] if len(times) else stop - 1
        while not ended and last < stop:
            chunk = next(source, None)
            if chunk is None:
                ended = True
            else:
                parts.append(chunk)
                last = chunk["t"][-1]
        if len(parts) > 1:
            held = np.concatenate(parts)
            times = np.ascontiguousarray(held["t"])
        b = int(np.searchsorted(times, stop))
        a = min(begin(i, times, b), b)
        yield held[a:b]
        held, times = held[a:], times[a:]
