"""Recordings of Prophesee cameras: EVT 2.0 and EVT 3.0 (``.raw``) and decoded events (``.dat``), from the public format descriptions.

https://docs.prophesee.ai/stable/data/encoding_formats/evt2.html, evt3.html and .../data/file_formats/raw.html, dat.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from srft.data.events.recording import EVENT_DTYPE, EventStream

__all__ = ["MAGIC", "open_prophesee"]

MAGIC = b"% "
_DAT_EVENTS = {0x00: "Event2d", 0x0C: "EventCD"}
_Decoded = tuple[np.ndarray, np.ndarray]


@dataclass
class _State:
    # What the words of the next chunk build on.
    high: int = -1
    """Last high part of the time with its turns added; -1: none yet, and events before the first have no time."""
    low: int = 0
    y: int = -1
    base: int = 0
    up: int = 0


def open_prophesee(path: Path, chunk: int) -> EventStream:
    """The events of a ``.raw`` file (EVT 2.0 or 3.0) or a ``.dat`` file (version 2).

    Times that roll over (EVT 3.0: every 16.8 s, DAT: every 71.6 min, EVT 2.0: every 4.8 h) are continued. Events before the first full
    time (and in EVT 3.0 the first row) of a ``.raw`` file have none and are left out, as the maker's decoder does. Triggers are no events.

    Args:
        path: the recording.
        chunk: bytes that are decoded at once.

    Returns:
        The stream; nothing but the header is read before its chunks are.

    Raises:
        ValueError: the header is cut off or names another format.
    """
    header, offset = _header(path)
    width, height = _geometry(header, path)
    order = ">" if header.get("endianness", "little").lower() == "big" else "<"
    name = header.get("evt", header.get("format", "").split(";")[0].removeprefix("EVT"))
    if name in ("3.0", "3"):
        return _stream(path, "EVT 3.0", height, width, offset, np.dtype(order + "u2"), _evt3, chunk)
    if name in ("2.0", "2"):
        return _stream(path, "EVT 2.0", height, width, offset, np.dtype(order + "u4"), _evt2, chunk)
    if name:
        raise ValueError(f"{path}: encoded as EVT {name}; expected EVT 2.0 or 3.0. Convert it with the camera's software")
    with path.open("rb") as file:
        file.seek(offset)
        kind = file.read(2)
    if len(kind) < 2:
        raise ValueError(f"{path}: ends after its header of {offset} bytes, which names no EVT encoding; expected a RAW or DAT file")
    if kind[0] not in _DAT_EVENTS or kind[1] != 8 or header.get("version", "2") != "2":
        raise ValueError(
            f"{path}: header names no EVT encoding, and as DAT it is version {header.get('version', '2')}, event type {kind[0]}, "
            f"{kind[1]} bytes each; expected DAT version 2, type {' or '.join(map(str, _DAT_EVENTS))}, 8 bytes"
        )
    return _stream(path, "DAT 2", height, width, offset + 2, np.dtype([("t", "<u4"), ("word", "<u4")]), _dat, chunk)


def _header(path: Path) -> tuple[dict[str, str], int]:
    # Keywords in small letters with their values, and where the data start.
    header: dict[str, str] = {}
    with path.open("rb") as file:
        offset = 0
        while (line := file.readline(4096)).startswith(MAGIC):
            if not line.endswith(b"\n"):
                raise ValueError(f"{path}: cut off inside its header at byte {offset + len(line)}; fetch it again")
            offset += len(line)
            key, _, value = line[2:].decode("latin-1").strip().partition(" ")
            if key == "end":
                break
            header.setdefault(key.lower(), value.strip())
    return header, offset


def _geometry(header: dict[str, str], path: Path) -> tuple[int | None, int | None]:
    # Width and height.
    found = dict(part.split("=", 1) for part in header.get("format", "").split(";") if "=" in part)
    width, _, height = header.get("geometry", "").partition("x")
    width, height = width or header.get("width") or found.get("width"), height or header.get("height") or found.get("height")
    if not width or not height:
        return None, None
    try:
        return int(width), int(height)
    except ValueError as error:
        raise ValueError(f"{path}: header gives the sensor's size as {width!r} by {height!r}; expected two integers") from error


def _stream(
    path: Path,
    name: str,
    height: int | None,
    width: int | None,
    offset: int,
    word: np.dtype,
    decode: Callable[[np.ndarray, _State], _Decoded],
    chunk: int,
) -> EventStream:
    def pieces() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        state, begin = _State(), offset
        size = max(chunk // word.itemsize, 1) * word.itemsize
        with path.open("rb") as file:
            file.seek(offset)
            while block := file.read(size):
                if len(block) % word.itemsize:
                    raise ValueError(f"{path}: ends at byte {begin + len(block)} inside a word of {word.itemsize} bytes; it is cut off")
                try:
                    events, where = decode(np.frombuffer(block, word), state)
                except _UnknownWordError as error:
                    position = begin + error.index * word.itemsize
                    raise ValueError(
                        f"{path}: word of unknown type {error.kind:#x} at byte {position}; the file is no {name} or damaged"
                    ) from None
                yield events, where * word.itemsize + begin
                begin += len(block)

    return EventStream(path=path, format=name, height=height, width=width, pieces=pieces)


class _UnknownWordError(Exception):
    def __init__(self, index: int, kind: int) -> None:
        super().__init__(index, kind)
        self.index, self.kind = index, kind


def _expect(kind: np.ndarray, reserved: tuple[int, ...]) -> None:
    unknown = np.zeros(16, bool)
    unknown[list(reserved)] = True
    bad = unknown[kind]
    if bad.any():
        i = int(np.argmax(bad))
        raise _UnknownWordError(i, int(kind[i]))


def _continued(values: np.ndarray, last: int, bits: int) -> np.ndarray:
    # A counter of so many bits with its turns added; a step back by more than half the range is a turn. `last` is -1 at the start.
    values = values.astype(np.int64)
    if not len(values):
        return values
    turn = np.diff(values, prepend=values[0] if last < 0 else last & ((1 << bits) - 1)) < -(1 << (bits - 1))
    return values + ((np.cumsum(turn) + (0 if last < 0 else last >> bits)) << bits)


def _latest(where: np.ndarray, values: np.ndarray, before: int, at: np.ndarray) -> np.ndarray:
    # For words `at` the value of the last word in the mask `where` up to them, or `before`.
    return np.concatenate([[before], values])[np.cumsum(where, dtype=np.int32)[at]]


def _evt2(words: np.ndarray, state: _State) -> _Decoded:
    # Type (4 bits), then time of 28 bits, or low time (6), x (11), y (11).
    kind = (words >> 28).astype(np.uint8)
    _expect(kind, (2, 3, 4, 5, 6, 7, 9, 0xB, 0xC, 0xD))
    is_high = kind == 8
    highs = _continued(words[is_high] & 0xFFFFFFF, state.high, 28)
    at = np.flatnonzero(kind <= 1)
    high = _latest(is_high, highs, state.high, at)
    at, high = at[high >= 0], high[high >= 0]
    word = words[at]
    events = np.empty(len(at), EVENT_DTYPE)
    events["t"] = high << 6 | ((word >> 22) & 0x3F)
    events["x"], events["y"], events["p"] = (word >> 11) & 0x7FF, word & 0x7FF, kind[at]
    if len(highs):
        state.high = int(highs[-1])
    return events, at


def _evt3(words: np.ndarray, state: _State) -> _Decoded:
    # Words of 16 bits, 4 of them the type, each changing one part of the state; ADDR_X and the vectors also emit events.
    kind = (words >> 12).astype(np.uint8)
    _expect(kind, (1, 9, 0xB, 0xC))
    payload = words & 0xFFF
    time_before = state.high << 12 | state.low if state.high >= 0 else -1
    clock, times = _evt3_clock(kind, payload, state)
    is_row, is_base = kind == 0, kind == 3
    vector = np.zeros(16, np.int32)
    vector[4], vector[5] = 12, 8
    at = np.flatnonzero((kind == 2) | (kind == 4) | (kind == 5))
    single = kind[at] == 2

    when = _latest(clock, times, time_before, at)
    rows = payload[is_row].astype(np.int64) & 0x7FF
    row = _latest(is_row, rows, state.y, at)
    # A vector starts where the last base said, moved on by the lengths of the vectors since.
    moved = np.cumsum(vector[kind], dtype=np.int32)
    bases = (payload[is_base].astype(np.int64) & 0x7FF) - moved[is_base]
    ups = payload[is_base].astype(np.int64) >> 11
    column = np.where(single, payload[at] & 0x7FF, _latest(is_base, bases, state.base, at) + moved[at] - vector[kind[at]])
    up = np.where(single, payload[at] >> 11, _latest(is_base, ups, state.up, at))
    valid = np.where(single, 1, np.where(kind[at] == 5, payload[at] & 0xFF, payload[at])).astype("<u2")
    valid[(when < 0) | (row < 0)] = 0

    # Each word emits its set bits from the lowest; those of all vectors in a row are the events of vectors in the order of the stream.
    word = np.repeat(np.arange(len(at)), np.bitwise_count(valid))
    along = np.zeros(len(word), np.uint16)
    along[~single[word]] = np.flatnonzero(np.unpackbits(valid[~single].view(np.uint8), bitorder="little")) & 15
    events = np.empty(len(word), EVENT_DTYPE)
    events["t"], events["x"], events["y"], events["p"] = when[word], column[word] + along, row[word], up[word]

    if len(rows):
        state.y = int(rows[-1])
    if len(bases):
        state.base, state.up = int(bases[-1]), int(ups[-1])
    if len(moved):
        state.base += int(moved[-1])
    return events, at[word]


def _evt3_clock(kind: np.ndarray, payload: np.ndarray, state: _State) -> tuple[np.ndarray, np.ndarray]:
    # Which words set the clock, and the time after each of them; -1 before the first high part.
    is_clock = (kind == 6) | (kind == 8)
    values, is_high = payload[is_clock].astype(np.int64), kind[is_clock] == 8
    if not len(values):
        return is_clock, values
    highs = _continued(values[is_high], state.high, 12)
    everywhere = np.arange(len(values))
    high = _latest(is_high, highs, state.high, everywhere)
    # A new high part starts with low part 0 until that is given, so that time never steps back; a repeated one changes nothing.
    new = np.diff(high, prepend=state.high) != 0
    sets_low = ~is_high | new
    lows = np.where(is_high, 0, values)[sets_low]
    low = _latest(sets_low, lows, state.low, everywhere)
    times = np.where(high < 0, -1, high << 12 | low)
    state.high, state.low = int(high[-1]), int(low[-1])
    return is_clock, times


def _dat(records: np.ndarray, state: _State) -> _Decoded:
    # Time of 32 bits, then from the lowest bit x (14), y (14), polarity.
    times = _continued(records["t"], state.high, 32)
    word = records["word"]
    events = np.empty(len(records), EVENT_DTYPE)
    events["t"], events["x"], events["y"], events["p"] = times, word & 0x3FFF, (word >> 14) & 0x3FFF, (word >> 28) & 1
    state.high = int(times[-1])
    return events, np.arange(len(records))
