"""AEDAT 4 files written in plain flatbuffers, uncompressed: for synthetic recordings in the layout of the event benchmarks."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from srft.data.events.aedat4 import MAGIC
from srft.data.events.recording import Recording
from srft.files import aside

__all__ = ["write_aedat4"]

_EVENT = np.dtype({"names": ["t", "x", "y", "p"], "formats": ["<i8", "<i2", "<i2", "?"], "offsets": [0, 8, 10, 12], "itemsize": 16})
_STREAMS = (("events", "EVTS", "Array of events (polarity ON/OFF)."), ("frames", "FRME", "Standard frame (8-bit image)."))


def write_aedat4(path: str | Path, recording: Recording, *, starts: np.ndarray | None = None, packet_us: int = 10_000) -> None:
    """Write frames and events as iniVation's DV does: stream 0 events in packets of equal time, stream 1 frames, in order of time.

    Args:
        path: the file; its folder is made.
        recording: frames and events; exposures default to none, begin and end at the frame's time.
        starts: ``[T]`` microseconds, when the camera began with each frame; the frames' times if left out.
        packet_us: microseconds of a packet of events.
    """
    _, height, width = recording.frames.shape
    times = recording.frame_times.astype(np.int64)
    exposures = np.stack([times, times], 1) if recording.exposures is None else recording.exposures
    clock = zip(times if starts is None else starts, times, *exposures.T, strict=True)
    packets = [(int(t), 1, _frame(pixels, *map(int, (t, s, *e)))) for pixels, (s, t, *e) in zip(recording.frames, clock, strict=True)]
    slots = recording.events["t"] // packet_us
    for part in np.split(recording.events, np.flatnonzero(np.diff(slots)) + 1):
        if len(part):
            packets.append((int(part["t"][0]), 0, _events(part)))
    with aside(path) as temporary, temporary.open("wb") as file:
        file.write(MAGIC + _header(height, width))
        for _, stream, packet in sorted(packets, key=lambda packet: packet[:2]):
            file.write(struct.pack("<ii", stream, len(packet)) + packet)


def _prefixed(buffer: bytes) -> bytes:
    return struct.pack("<I", len(buffer)) + buffer


def _header(height: int, width: int) -> bytes:
    # Table IOHeader: compression (0: none), position of the packet table (-1: none), description in XML.
    nodes = "".join(
        f'<node name="{i}" path="/mainloop/Recorder/outInfo/{i}/"><attr key="compression" type="string">NONE</attr>'
        f'<attr key="originalModuleName" type="string">synthetic</attr><attr key="originalOutputName" type="string">{name}</attr>'
        f'<attr key="typeDescription" type="string">{text}</attr><attr key="typeIdentifier" type="string">{identifier}</attr>'
        f'<node name="info" path="/mainloop/Recorder/outInfo/{i}/info/"><attr key="sizeX" type="int">{width}</attr>'
        f'<attr key="sizeY" type="int">{height}</attr><attr key="source" type="string">synthetic</attr></node></node>'
        for i, (name, identifier, text) in enumerate(_STREAMS)
    )
    xml = f'<dv version="2.0"><node name="outInfo" path="/mainloop/Recorder/outInfo/">{nodes}</node></dv>'.encode()
    vtable = struct.pack("<5H", 10, 24, 4, 12, 8)
    table = struct.pack("<iiIq4x", 10, 0, 16, -1)  # the string starts 16 bytes after its own field
    return _prefixed(struct.pack("<I4s6x", 24, b"IOHE") + vtable + table + _prefixed(xml) + b"\0")


def _events(events: np.ndarray) -> bytes:
    # Table EventPacket: one vector of structs of 16 bytes.
    rows = np.zeros(len(events), _EVENT)
    for name in ("t", "x", "y", "p"):
        rows[name] = events[name]
    head = struct.pack("<I4s2x3HiI", 16, b"EVTS", 6, 8, 4, 6, 4)
    return _prefixed(head + struct.pack("<I", len(rows)) + rows.tobytes())


def _frame(pixels: np.ndarray, time: int, start: int, begin: int, end: int) -> bytes:
    # Table Frame: times of frame and exposure, size, pixels; format 0 is 8-bit grey, left out like the position.
    height, width = pixels.shape
    vtable = struct.pack("<13H", 26, 56, 12, 20, 28, 36, 44, 0, 4, 6, 0, 0, 8)
    table = struct.pack("<ihhI5q4x", 26, width, height, 48, time, start, end, begin, end)
    return _prefixed(struct.pack("<I4s6x", 40, b"FRME") + vtable + table + _prefixed(np.ascontiguousarray(pixels, np.uint8).tobytes()))
