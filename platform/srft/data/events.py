"""Event streams: AEDAT 4 recordings, a contrast-threshold simulator, frame-synchronous windows and event images.

Events are one structured array of :data:`EVENT_DTYPE`, sorted by time. All functions are numpy only.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["EVENT_DTYPE", "Recording", "event_image", "frame_windows", "polarity_image", "read_aedat4", "simulate_events"]

EVENT_DTYPE = np.dtype([("t", "<i8"), ("x", "<u2"), ("y", "<u2"), ("p", "?")])
"""One event: time in microseconds, column, row, and polarity (True where the pixel became brighter)."""

_MAGIC = b"#!AER-DAT4.0\r\n"
_SATURATION = np.array([255 - (255 >> n) for n in range(9)], np.uint8)
_ON_RGB, _OFF_RGB = (220, 30, 30), (30, 30, 200)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a frame-and-event camera recorded."""

    frames: np.ndarray
    """``[T, H, W]`` uint8, grey."""
    frame_times: np.ndarray
    """``[T]`` int64 microseconds, increasing."""
    events: np.ndarray
    """``[N]`` of :data:`EVENT_DTYPE`, sorted by time; on the clock of the frames."""


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
    keys = _crossings(intensities.reshape(count, pixels), clock, limits, floor, span)
    if noise_rate > 0 and span > 1:
        number = rng.poisson(noise_rate * pixels * (span - 1) * 1e-6)
        where, when, up = rng.integers(pixels, size=number), rng.integers(span - 1, size=number), rng.integers(2, size=number)
        keys.append((where * span + when) * 2 + up)
    # A key is (pixel, time, polarity) in one integer: numpy sorts plain integers several times faster than records.
    key = np.sort(np.concatenate(keys)) if keys else np.empty(0, np.int64)
    if refractory > 0:
        key = key[_outside_refractory(key >> 1, span, refractory)]
    moment, up = np.divmod(key, 2)
    where, when = np.divmod(moment, span)
    when, rest = np.divmod(np.sort((when * pixels + where) * 2 + up), 2 * pixels)
    events = np.empty(len(key), EVENT_DTYPE)
    events["t"] = when + start
    events["y"], events["x"] = np.divmod(rest >> 1, width)
    events["p"] = rest & 1
    return events


def _crossings(intensities: np.ndarray, clock: np.ndarray, limits: np.ndarray, floor: float, span: int) -> list[np.ndarray]:
    # Threshold crossings of each sub-frame pair as keys (pixel * span + time) * 2 + polarity, unsorted.
    keys = []
    previous = np.log(intensities[0] + np.float32(floor)).astype(np.float64)
    reference = previous.copy()
    for s in range(1, len(clock)):
        level = np.log(intensities[s] + np.float32(floor)).astype(np.float64)
        where = np.flatnonzero(np.abs(level - reference) >= limits)
        if len(where):
            base, limit, before, after = reference[where], limits[where], previous[where], level[where]
            number = (np.abs(after - base) / limit).astype(np.int64)
            step = np.where(after > base, limit, -limit)
            reference[where] = base + number * step
            # One row per event: pixel i has rows for its 1st, 2nd, ... number[i]-th crossing.
            row = np.repeat(np.arange(len(where)), number)
            order = np.arange(len(row)) - np.repeat(np.cumsum(number) - number, number) + 1
            share = np.clip((base[row] + order * step[row] - before[row]) / (after - before)[row], 0.0, 1.0)
            when = clock[s - 1] + (share * (clock[s] - clock[s - 1])).astype(np.int64)
            keys.append((where[row] * span + when) * 2 + (step[row] > 0))
        previous = level
    return keys


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


def frame_windows(event_times: np.ndarray, frame_times: np.ndarray) -> list[slice]:
    """The events that belong to each frame: those since the frame before, ``t[i-1] <= t < t[i]``.

    The first frame has no frame before it and gets a window as long as the second frame's; a single frame gets an empty one.

    Args:
        event_times: ``[N]`` microseconds, sorted.
        frame_times: ``[T]`` microseconds, not decreasing.

    Returns:
        T slices into the events, none overlapping, in the order of the frames.

    Raises:
        ValueError: the frame times decrease.
    """
    frame_times = np.asarray(frame_times, np.int64)
    if np.any(np.diff(frame_times) < 0):
        raise ValueError(f"frame times decrease after frame {int(np.argmax(np.diff(frame_times) < 0))}; expected sorted microseconds")
    if not len(frame_times):
        return []
    first = 2 * frame_times[0] - frame_times[min(1, len(frame_times) - 1)]
    edges = np.searchsorted(event_times, np.concatenate([[first], frame_times]), side="left").tolist()
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def _slots(events: np.ndarray, height: int, width: int) -> np.ndarray:
    # Per event twice the index of its pixel, plus its polarity.
    x, y = events["x"], events["y"]
    if len(events) and (x.max() >= width or y.max() >= height):
        raise ValueError(f"events reach column {x.max()} and row {y.max()}; expected all inside {width}x{height} pixels")
    slots = y.astype(np.int64)
    slots *= width
    slots += x
    slots *= 2
    slots += events["p"]
    return slots


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
    counts = np.bincount(_slots(events, height, width), minlength=2 * height * width)
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 2::-2] = _SATURATION[np.minimum(counts, 8)].reshape(height, width, 2)
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
    seen = np.zeros((height, width, 2), bool)
    seen.reshape(-1)[_slots(events, height, width)] = True
    image[seen[..., 1]] = _ON_RGB
    image[seen[..., 0]] = _OFF_RGB
    return image


def read_aedat4(path: str | Path) -> Recording:
    """Read the grey frames and the events of an AEDAT 4 file (iniVation DV).

    Args:
        path: the recording.

    Returns:
        Frames stamped with the middle of their exposure, and all events, on one clock.

    Raises:
        ValueError: the file is missing, is no AEDAT 4 file, is cut off, or lacks events or grey frames of one size.
    """
    import aedat

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected an AEDAT 4 recording")
    _check_complete(path)
    frames, frame_times, packets = [], [], []
    try:
        for packet in aedat.Decoder(str(path)):
            if "events" in packet:
                packets.append(packet["events"])
            elif "frame" in packet:
                frame = packet["frame"]
                frames.append(frame["pixels"])
                frame_times.append(frame["t"])
    except BaseException as error:
        # The decoder's own error is RuntimeError; a garbled header makes it panic, with a type that it does not export.
        if not isinstance(error, RuntimeError) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{path}: damaged or cut off after {len(frames)} frames ({error}); fetch or record it again") from error
    if not frames or not packets:
        missing = "events" if frames else "frames"
        raise ValueError(f"{path}: holds {len(frames)} frames and {len(packets)} event packets, no {missing}; expected both")
    shapes = sorted({frame.shape for frame in frames})
    if len(shapes) > 1 or len(shapes[0]) != 2 or any(frame.dtype != np.uint8 for frame in frames):
        raise ValueError(f"{path}: frames of shapes {shapes} and type {frames[0].dtype}; expected 8-bit grey of one size")
    raw = np.concatenate(packets)
    events = np.empty(len(raw), EVENT_DTYPE)
    for name, source in (("t", "t"), ("x", "x"), ("y", "y"), ("p", "on")):
        events[name] = raw[source]
    if np.any(np.diff(events["t"]) < 0):
        events = events[np.argsort(events["t"], kind="stable")]
    order = np.argsort(np.asarray(frame_times, np.int64), kind="stable")
    return Recording(frames=np.stack(frames)[order], frame_times=np.asarray(frame_times, np.int64)[order], events=events)


def _check_complete(path: Path) -> None:
    # Refuse foreign files and files shorter than their own header says; the decoder takes a cut between packets for the end.
    with path.open("rb") as file:
        magic, size = file.read(len(_MAGIC)), file.read(4)
        header = file.read(int.from_bytes(size, "little"))
    if magic != _MAGIC:
        raise ValueError(f"{path}: starts with {magic!r}; expected {_MAGIC!r}, an AEDAT 4 recording")
    try:
        # A flatbuffer: root offset -> table, table -> its list of field offsets; field 1 is where the table of packets starts.
        table = struct.unpack_from("<I", header)[0]
        fields = table - struct.unpack_from("<i", header, table)[0]
        known = struct.unpack_from("<H", header, fields)[0] >= 8
        offset = struct.unpack_from("<H", header, fields + 6)[0] if known else 0
        end = struct.unpack_from("<q", header, table + offset)[0] if offset else -1
    except struct.error as error:
        raise ValueError(f"{path}: cut off inside its header; fetch or record it again") from error
    if path.stat().st_size <= end:
        raise ValueError(f"{path}: has {path.stat().st_size} bytes, its header promises more than {end}; it is cut off, fetch it again")
