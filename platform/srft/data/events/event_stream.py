"""Event Stream files (``.es``), version 2: decoded from the public description of the format.

After 20 bytes of header (name, version, kind, width, height) come single bytes and groups of five. Where a group may start, a byte that is
all ones (DVS) says that 127 microseconds pass, one step less is a reset without meaning, and anything else is the first of an event's five:
time since the event before and polarity, then column and row as 16-bit numbers. ATIS files have 6 bits of time and a flag that marks
exposure measurements, which are no events. Source: https://github.com/neuromorphic-paris/event_stream, section "Version 2.0".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from srft.data.events.recording import EVENT_DTYPE, EventStream

__all__ = ["MAGIC", "open_event_stream"]

MAGIC = b"Event Stream"
_HEADER = 20
_KINDS = {1: "DVS", 2: "ATIS"}


def open_event_stream(path: Path, chunk: int) -> EventStream:
    """The events of an Event Stream file of DVS or ATIS events.

    Args:
        path: the recording.
        chunk: bytes that are decoded at once.

    Returns:
        The stream; nothing but the header is read before its chunks are.

    Raises:
        ValueError: the header is cut off, or of another version or kind.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER)
    if len(header) < _HEADER:
        raise ValueError(f"{path}: cut off inside its header, {len(header)} bytes; expected {_HEADER}. Fetch it again")
    version, kind = tuple(header[12:15]), header[15]
    if version[0] != 2 or kind not in _KINDS:
        found = f"version {'.'.join(map(str, version))}, kind {kind}"
        raise ValueError(f"{path}: Event Stream {found}; expected version 2 and kind 1 (DVS) or 2 (ATIS)")
    width, height = (int.from_bytes(header[i : i + 2], "little") for i in (16, 18))

    def pieces() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        offset, time, rest = _HEADER, 0, b""
        with path.open("rb") as file:
            file.seek(_HEADER)
            while block := file.read(chunk):
                data = np.frombuffer(rest + block, np.uint8)
                events, starts, used, time = _decode(data, time, atis=kind == 2)
                yield events, starts + offset
                rest, offset = data[used:].tobytes(), offset + used
        if rest:
            raise ValueError(f"{path}: ends at byte {offset + len(rest)} inside the event that starts at byte {offset}; it is cut off")

    return EventStream(path=path, format=f"Event Stream 2 ({_KINDS[kind]})", height=height, width=width, pieces=pieces)


def _decode(data: np.ndarray, time: int, *, atis: bool) -> tuple[np.ndarray, np.ndarray, int, int]:
    # Events, where each starts, bytes used and the time after them. `data` starts where a group may start.
    low = 0xFC if atis else 0xFE
    single = _single_bytes(data, low)
    # Groups fill the space between single bytes; the last space may end with a part of one.
    begin = np.concatenate([[0], single + 1])
    number = (np.append(single, len(data)) - begin) // 5
    before = np.cumsum(number) - number
    starts = np.repeat(begin - 5 * before, number) + 5 * np.arange(int(number.sum()))
    # Time: of the event before, plus what the single bytes since then say, plus the event's own.
    passed = np.concatenate([[time], (data[single].astype(np.int64) - low) * (63 if atis else 127)])
    np.cumsum(passed, out=passed)
    first = data[starts]
    when = np.cumsum(first >> (2 if atis else 1), dtype=np.int64)
    last = int(passed[-1]) + (int(when[-1]) if len(when) else 0)
    when += np.repeat(passed, number)
    pairs = np.ndarray(max(len(data) - 1, 0), "<u2", data.data, strides=(1,))  # each two neighbours as one number
    events = np.empty(len(starts), EVENT_DTYPE)
    events["t"], events["x"], events["y"], events["p"] = when, pairs[starts + 1], pairs[starts + 3], (first >> 1 if atis else first) & 1
    if atis:
        light = (first & 1) == 0
        events, starts = events[light], starts[light]
    return events, starts, int(begin[-1] + 5 * number[-1]), last


def _single_bytes(data: np.ndarray, low: int) -> np.ndarray:
    # Where the single bytes are.
    #
    # Between two single bytes all groups start at one remainder modulo 5. So whoever reads on from byte i meets its next single byte at the
    # next candidate (a byte that would be single if a group could start there) with the remainder of i, and after it those that follow
    # without a gap. One table, for the start and for the end of every run of candidates, of where that leads; then a walk along it.
    candidates = np.flatnonzero(data >= low)
    if not len(candidates):
        return candidates
    ends = np.flatnonzero(np.diff(candidates, append=candidates[-1] + 2) > 1)  # the last candidates of the runs
    run = np.searchsorted(ends, np.arange(len(candidates)))
    entry = np.concatenate([[0], candidates[ends] + 1])
    met = np.full(len(entry), len(candidates))
    for remainder in range(5):
        of_remainder = np.flatnonzero(candidates % 5 == remainder)
        here = np.flatnonzero(entry % 5 == remainder)
        met[here] = np.append(of_remainder, len(candidates))[np.searchsorted(candidates[of_remainder], entry[here])]
    successor = np.append(run, -1)[met].tolist()  # in which run; entry k + 1 follows run k
    walked, now = [], 0
    while (k := successor[now]) >= 0:
        walked.append(now)
        now = k + 1
    first = met[walked]
    number = ends[run[first]] - first + 1
    before = np.cumsum(number) - number
    return candidates[np.repeat(first - before, number) + np.arange(int(number.sum()))]
