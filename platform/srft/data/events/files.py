"""Event recordings of all formats: which reader a file needs is told by its first bytes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from srft.data.events import aedat4, arrays, event_stream, prophesee
from srft.data.events.recording import EventStream, Recording

__all__ = ["open_events", "read_events"]

_TEXT = (".csv", ".txt", ".tsv")


def open_events(path: str | Path, *, size: tuple[int, int] | None = None, chunk: int = 1 << 20) -> EventStream:
    """Open an event recording of any known format; its events are read when its chunks are iterated.

    Args:
        path: AEDAT 4, Event Stream (``.es``), Prophesee EVT 2.0 and 3.0 (``.raw``) and ``.dat``, HDF5, ``.npz``, ``.npy``, or a text table
            (``.csv``, ``.txt``, ``.tsv``). Apart from text the suffix does not matter.
        size: width and height of the sensor, for files that do not say it.
        chunk: bytes (camera formats) or events (arrays; an eighth of it) that are decoded at once.

    Returns:
        The stream.

    Raises:
        ValueError: the file is missing, of an unknown format, or its header is damaged; or ``size`` contradicts the file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected an event recording")
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(aedat4.MAGIC[:10]):
        stream = aedat4.open_aedat4(path)
    elif head.startswith(event_stream.MAGIC):
        stream = event_stream.open_event_stream(path, chunk)
    elif head.startswith(prophesee.MAGIC):
        stream = prophesee.open_prophesee(path, chunk)
    elif head.startswith(arrays.HDF5_MAGIC):
        stream = arrays.open_hdf5(path, max(chunk // 8, 1))
    elif head.startswith((arrays.NPY_MAGIC, arrays.ZIP_MAGIC)):
        stream = arrays.open_numpy(path, max(chunk // 8, 1))
    elif path.suffix.lower() in _TEXT:
        stream = arrays.open_text(path, max(chunk // 8, 1))
    else:
        raise ValueError(
            f"{path}: starts with {head!r}; expected AEDAT 4, Event Stream, Prophesee RAW or DAT with its header, HDF5, .npz, .npy, or "
            f"a text table named {', '.join(_TEXT)}"
        )
    if size is None:
        return stream
    if stream.width is not None and (stream.width, stream.height) != tuple(size):
        raise ValueError(f"{path}: its sensor has {stream.width}x{stream.height} pixels, not {size[0]}x{size[1]}; leave the size out")
    return dataclasses.replace(stream, width=size[0], height=size[1])


def read_events(path: str | Path, *, size: tuple[int, int] | None = None, sort: bool = False) -> Recording:
    """Read a whole event recording of any known format, with the frames of an AEDAT 4 file that has some.

    Args:
        path: see :func:`open_events`.
        size: width and height of the sensor, for files that do not say it; left out, it reaches to the last row and column with an event.
        sort: put events in order of time instead of refusing a file where they are not.

    Returns:
        The recording. What is damaged, cut off, not sorted by time or outside the sensor is a ValueError.
    """
    stream = open_events(path, size=size)
    events = stream.whole(sort=sort)
    height, width = stream.height, stream.width
    if height is None or width is None:
        height, width = (int(events[name].max()) + 1 if len(events) else 0 for name in ("y", "x"))
    if stream.format == aedat4.FORMAT:
        frames, times, exposures = aedat4.read_frames(stream.path, height, width)
        if len(frames):
            return Recording(frames=frames, frame_times=times, events=events, exposures=exposures)
    return Recording(frames=np.empty((0, height, width), np.uint8), frame_times=np.empty(0, np.int64), events=events)
