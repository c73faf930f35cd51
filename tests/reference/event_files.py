"""Encoders of event files, word by word from the public descriptions: slow, and plain enough to be checked by reading.

Events are tuples (t, x, y, p), sorted by time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

Event = tuple[int, int, int, int]


def event_stream(events: Iterable[Event], width: int, height: int, resets: Iterable[int] = ()) -> bytes:
    """``.es`` 2.0, DVS events. Five resets are put before each event whose number is in ``resets``."""
    out = bytearray(b"Event Stream" + bytes([2, 0, 0, 1]) + struct.pack("<HH", width, height))
    now = 0
    resets = set(resets)
    for number, (t, x, y, p) in enumerate(events):
        if number in resets:
            out += bytes([0xFE] * 5)
        gap = t - now
        while gap >= 127:
            out.append(0xFF)
            gap -= 127
        out.append(gap << 1 | p)
        out += struct.pack("<HH", x, y)
        now = t
    return bytes(out)


def event_stream_atis(events: Iterable[Event], width: int, height: int) -> bytes:
    """``.es`` 2.0, ATIS events; every event is followed by an exposure measurement at the same pixel."""
    out = bytearray(b"Event Stream" + bytes([2, 0, 0, 2]) + struct.pack("<HH", width, height))
    now = 0
    for t, x, y, p in events:
        gap = t - now
        while gap >= 63:
            turns = min(gap // 63, 3)
            out.append(0xFC | turns)
            gap -= 63 * turns
        out += bytes([gap << 2 | p << 1]) + struct.pack("<HH", x, y)
        out += bytes([p << 1 | 1]) + struct.pack("<HH", x, y)
        now = t
    return bytes(out)


def header(width: int, height: int, version: str) -> bytes:
    return f"% date 2024-01-01 00:00:00\n% evt {version}\n% geometry {width}x{height}\n% end\n".encode()


def evt2(events: Iterable[Event]) -> bytes:
    """EVT 2.0 words: a high time whenever it changes, and a trigger after every event, which is none."""
    out = bytearray()
    high = None
    for t, x, y, p in events:
        if t >> 6 != high:
            high = t >> 6
            out += struct.pack("<I", 0x8 << 28 | high & 0xFFFFFFF)
        out += struct.pack("<I", p << 28 | (t & 63) << 22 | x << 11 | y)
        out += struct.pack("<I", 0xA << 28 | (t & 63) << 22 | 1)
    return bytes(out)


def evt3(events: Iterable[Event], vectors: bool = True) -> bytes:
    """EVT 3.0 words. Runs of one time, row and polarity with rising columns go into vectors of 12, then of 8, as far as they reach."""
    events = list(events)
    out: list[int] = []
    high = low = row = None
    i = 0
    while i < len(events):
        t, x, y, p = events[i]
        if (t >> 12) & 0xFFF != high:
            high, low = (t >> 12) & 0xFFF, None
            out.append(0x8 << 12 | high)
        if t & 0xFFF != low:
            low = t & 0xFFF
            out.append(0x6 << 12 | low)
        if y != row:
            row = y
            out.append(y)
        run = [x]
        while vectors and i + len(run) < len(events):
            nt, nx, ny, np_ = events[i + len(run)]
            if (nt, ny, np_) != (t, y, p) or not run[-1] < nx < x + 20:
                break
            run.append(nx)
        if len(run) == 1:
            out.append(0x2 << 12 | p << 11 | x)
        else:
            out.append(0x3 << 12 | p << 11 | x)
            out.append(0x4 << 12 | sum(1 << (c - x) for c in run if c < x + 12))
            out.append(0x5 << 12 | sum(1 << (c - x - 12) for c in run if c >= x + 12))
        out.append(0xE << 12 | 0x014)  # a word of another kind, to be passed over
        i += len(run)
    return struct.pack(f"<{len(out)}H", *out)


def dat(events: Iterable[Event], width: int, height: int) -> bytes:
    out = bytearray(f"% Data file containing CD events\n% Version 2\n% Width {width}\n% Height {height}\n".encode())
    out += bytes([0x0C, 8])
    for t, x, y, p in events:
        out += struct.pack("<II", t & 0xFFFFFFFF, p << 28 | y << 14 | x)
    return bytes(out)
