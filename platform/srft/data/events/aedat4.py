"""AEDAT 4 recordings of iniVation cameras (DAVIS frames and events), through the library ``aedat``."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from srft.data.events.recording import EVENT_DTYPE, EventStream, Recording

__all__ = ["FORMAT", "MAGIC", "FrameClock", "frame_clock", "open_aedat4", "read_aedat4", "read_frames"]

MAGIC = b"#!AER-DAT4.0\r\n"
FORMAT = "AEDAT 4"


def open_aedat4(path: Path) -> EventStream:
    """The events of an AEDAT 4 file.

    Args:
        path: the recording.

    Returns:
        The stream; nothing but the header is read before its chunks are.

    Raises:
        ValueError: the file is no AEDAT 4 file, is cut off, or has not exactly one stream of events.
    """
    _check_complete(path)
    decoder = _decoder(path)
    streams = [s for s in decoder.id_to_stream().values() if s["type"] == "events"]
    if len(streams) != 1:
        raise ValueError(f"{path}: has {len(streams)} streams of events; expected one, export each camera to its own file")

    def pieces() -> Iterator[tuple[np.ndarray, None]]:
        for packet in _packets(path):
            if "events" in packet:
                yield _events(packet), None

    return EventStream(path=path, format=FORMAT, height=streams[0]["height"], width=streams[0]["width"], pieces=pieces)


class FrameClock(NamedTuple):
    """When the frames of a recording were taken, in int64 microseconds, sorted; T is 0 without frames."""

    times: np.ndarray
    """``[T]``, the middle of the exposures."""
    exposures: np.ndarray
    """``[T, 2]``, start and end."""
    starts: np.ndarray
    """``[T]``, when the camera began with the frame, milliseconds before its exposure."""

    def cuts(self, representation: str) -> np.ndarray:
        """Where the events of one frame end and those of the next begin.

        Args:
            representation: that the events become images of.

        Returns:
            ``[T]``: the starts for ``three_windows``, as FE108's images are cut; the middle of the exposures for all others.
        """
        return self.starts if representation == "three_windows" else self.times


def frame_clock(path: Path) -> FrameClock:
    """When the frames of an AEDAT 4 file were taken.

    Args:
        path: the recording.

    Returns:
        The times. Of a file that does not say when frames were begun these are the starts of the exposures.
    """
    times, exposures, starts = _clock(packet["frame"] for packet in _packets(path) if "frame" in packet)
    order = np.argsort(times, kind="stable")
    return FrameClock(times[order], exposures[order], starts[order] if starts.any() else exposures[order, 0])


def read_frames(path: Path, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The grey frames of an AEDAT 4 file.

    Args:
        path: the recording.
        height: rows of the sensor.
        width: columns of the sensor.

    Returns:
        Frames ``[T, H, W]`` uint8, their times ``[T]`` and exposures ``[T, 2]`` as in :class:`FrameClock`.

    Raises:
        ValueError: the file is damaged or cut off, or a frame is not 8-bit grey of the sensor's size.
    """
    frames = [packet["frame"] for packet in _packets(path) if "frame" in packet]
    images = [frame["pixels"] for frame in frames]
    for i, image in enumerate(images):
        if image.shape != (height, width) or image.dtype != np.uint8:
            raise ValueError(f"{path}: frame {i} is {image.dtype} {image.shape}; expected 8-bit grey of the sensor's {width}x{height}")
    times, exposures, _ = _clock(frames)
    order = np.argsort(times, kind="stable")
    return np.array(images, np.uint8).reshape(-1, height, width)[order], times[order], exposures[order]


def read_aedat4(path: str | Path) -> Recording:
    """Read the grey frames and the events of an AEDAT 4 file (iniVation DV).

    Args:
        path: the recording.

    Returns:
        Frames stamped with the middle of their exposure, and all events sorted by time, on one clock.

    Raises:
        ValueError: the file is missing, is no AEDAT 4 file, is cut off, or lacks events or grey frames of one size.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected an AEDAT 4 recording")
    stream = open_aedat4(path)
    events = list(stream.chunks(any_order=True))
    frames, times, exposures = read_frames(path, stream.height or 0, stream.width or 0)
    if not len(frames) or not events:
        missing = "events" if len(frames) else "frames"
        raise ValueError(f"{path}: holds {len(frames)} frames and {len(events)} event packets, no {missing}; expected both")
    joined = np.concatenate(events)
    joined = joined[np.argsort(joined["t"], kind="stable")]
    return Recording(frames=frames, frame_times=times, events=joined, exposures=exposures)


def _clock(frames: Iterable[dict[str, Any]]) -> FrameClock:
    table = [[frame[name] for name in ("t", "exposure_begin_t", "exposure_end_t", "begin_t")] for frame in frames]  # without the pixels
    times = np.array(table, np.int64).reshape(-1, 4)
    return FrameClock(times[:, 0], times[:, 1:3], times[:, 3])


def _events(packet: dict[str, Any]) -> np.ndarray:
    raw = packet["events"]
    events = np.empty(len(raw), EVENT_DTYPE)
    for name, source in (("t", "t"), ("x", "x"), ("y", "y"), ("p", "on")):
        events[name] = raw[source]
    return events


def _decoder(path: Path) -> Any:
    import aedat

    try:
        return aedat.Decoder(str(path))
    except BaseException as error:
        if not _is_damage(error):
            raise
        raise ValueError(f"{path}: damaged or cut off in its header ({error}); fetch or record it again") from error


def _packets(path: Path) -> Iterator[dict[str, Any]]:
    decoder, number = _decoder(path), 0
    while True:
        try:
            packet = next(decoder)
        except StopIteration:
            return
        except BaseException as error:
            if not _is_damage(error):
                raise
            raise ValueError(f"{path}: damaged or cut off after {number} packets ({error}); fetch or record it again") from error
        number += 1
        yield packet


def _is_damage(error: BaseException) -> bool:
    # The decoder's own error is RuntimeError; a garbled header makes it panic, with a type that it does not export.
    return isinstance(error, RuntimeError) or type(error).__name__ == "PanicException"


def _check_complete(path: Path) -> None:
    # Refuse foreign files and files shorter than their own header says; the decoder takes a cut between packets for the end.
    with path.open("rb") as file:
        magic, size = file.read(len(MAGIC)), file.read(4)
        header = file.read(int.from_bytes(size, "little"))
    if magic != MAGIC:
        raise ValueError(f"{path}: starts with {magic!r}; expected {MAGIC!r}, an AEDAT 4 recording")
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
