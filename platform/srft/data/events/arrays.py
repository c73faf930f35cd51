"""Events as plain columns t, x, y, p: HDF5, NumPy files and text tables.

Columns are found by name. Times are microseconds if they are integers and seconds if they are fractions. Polarity is 0 or 1, -1 or 1, or
true or false. HDF5 files may keep the four columns in one group (``events/t`` ..., at any depth), or as one compound data set; a scalar
``t_offset`` (the driving data set DSEC) is added.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from srft.data.events.recording import EVENT_DTYPE, EventStream

__all__ = ["HDF5_MAGIC", "NPY_MAGIC", "ZIP_MAGIC", "open_hdf5", "open_numpy", "open_text"]

HDF5_MAGIC, NPY_MAGIC, ZIP_MAGIC = b"\x89HDF\r\n\x1a\n", b"\x93NUMPY", b"PK\x03\x04"
_NAMES = {
    "t": ("t", "ts", "time", "timestamp", "timestamps"),
    "x": ("x", "xs"),
    "y": ("y", "ys"),
    "p": ("p", "ps", "pol", "polarity", "polarities", "on"),
}
_EXPECTED = "expected columns " + ", ".join(f"{names[0]} ({'/'.join(names[1:])})" for names in _NAMES.values())


def _columns(names: Mapping[str, Any]) -> dict[str, Any] | None:
    # The four columns among the entries of a table, or None.
    found = {}
    for column, spellings in _NAMES.items():
        hits = [name for name in names if name.lower() in spellings]
        if len(hits) != 1:
            return None
        found[column] = names[hits[0]]
    return found


def _pack(columns: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    # The structured array; values that it cannot hold are errors.
    t, x, y, p = (np.asarray(columns[name]) for name in ("t", "x", "y", "p"))
    if not (t.ndim == 1 and t.shape == x.shape == y.shape == p.shape):
        raise ValueError(f"{where}: columns have shapes {[c.shape for c in (t, x, y, p)]}; expected four of one length")
    events = np.empty(len(t), EVENT_DTYPE)
    if np.issubdtype(t.dtype, np.floating):
        t = np.rint(t * 1e6)
    for name, values, least, most in (("t", t, -(2**62), 2**62), ("x", x, 0, 65535), ("y", y, 0, 65535), ("p", p, -1, 1)):
        numeric = np.issubdtype(values.dtype, np.number) or values.dtype == bool
        if not numeric:
            raise ValueError(f"{where}: column {name} holds {values.dtype}; expected numbers")
        good = (values >= least) & (values <= most)  # False for NaN
        if np.issubdtype(values.dtype, np.floating):
            good &= np.floor(values) == values
        if not good.all():
            i = int(np.argmin(good))
            raise ValueError(f"{where}: {name} of event {i} is {values[i]}; expected a whole number from {least} to {most}")
        events[name] = values > 0 if name == "p" else values
    return events


def _sliced(columns: Mapping[str, Any], chunk: int, where: str, offset: int = 0) -> Iterator[tuple[np.ndarray, None]]:
    for i in range(0, len(columns["t"]), chunk):
        events = _pack({name: column[i : i + chunk] for name, column in columns.items()}, f"{where} from row {i}")
        events["t"] += offset
        yield events, None


def open_hdf5(path: Path, chunk: int) -> EventStream:
    """The events of an HDF5 file.

    Args:
        path: the recording.
        chunk: events that are read at once.

    Returns:
        The stream. The sensor's size is the file's attributes ``width`` and ``height``, or ``geometry`` as in ``1280x720``, if it has them.

    Raises:
        ValueError: the file is damaged or cut off, or holds no events or several tables of them; or the optional package ``h5py`` is not
            installed.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ValueError(f"{path}: reading HDF5 needs h5py; run uv sync --extra hdf5") from error
    with contextlib.suppress(ModuleNotFoundError):
        import hdf5plugin  # noqa: F401  # registers the compression filters that DSEC and others use

    def tables(file: Any) -> dict[str, dict[str, Any]]:
        found = {}

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Group):
                columns = _columns({key: value for key, value in item.items() if isinstance(value, h5py.Dataset)})
            else:
                columns = _columns({field: item.fields(field) for field in item.dtype.names or ()})
            if columns is not None:
                found[name] = columns

        visit("/", file)
        file.visititems(visit)
        return found

    try:
        with h5py.File(path, "r") as file:
            found, attributes = tables(file), dict(file.attrs)
            everything: list[str] = []
            file.visit(everything.append)
    except OSError as error:
        raise ValueError(f"{path}: damaged or cut off ({error}); fetch it again") from error
    if len(found) != 1:
        raise ValueError(f"{path}: has {len(found)} tables of events {sorted(found)} among {everything[:20]}; {_EXPECTED} in one group")
    (name,) = found

    def pieces() -> Iterator[tuple[np.ndarray, None]]:
        with h5py.File(path, "r") as file:
            table = tables(file)[name]
            offset = file["t_offset"][()] if "t_offset" in file else 0
            where = f"{path}: {name}"
            try:
                yield from _sliced(table, chunk, where, int(offset))
            except OSError as error:
                raise ValueError(
                    f"{where}: cannot be read ({error}); either the file is damaged, or its compression filter is not installed "
                    "(uv sync --extra hdf5 brings the common ones; Prophesee's own ECF comes with its software)"
                ) from error

    width, _, height = str(_scalar(attributes.get("geometry", ""))).partition("x")
    width, height = width or _scalar(attributes.get("width")), height or _scalar(attributes.get("height"))
    sized = width is not None and height is not None
    return EventStream(path=path, format="HDF5", height=int(height) if sized else None, width=int(width) if sized else None, pieces=pieces)


def _scalar(value: Any) -> Any:
    # A number or text; some programs write an array of one element, and text as bytes.
    one = np.ravel(value)[0]
    return one.decode("utf-8", "replace") if isinstance(one, bytes) else one


def _fields(array: np.ndarray) -> dict[str, np.ndarray]:
    return {name: array[name] for name in array.dtype.names or ()}


def open_numpy(path: Path, chunk: int) -> EventStream:
    """The events of a ``.npz`` file with the four columns, or of a ``.npy`` file: structured, or ``[N, 4]`` in the order t, x, y, p.

    Args:
        path: the recording.
        chunk: events that are converted at once.

    Returns:
        The stream; the sensor's size is unknown unless an ``.npz`` file has entries ``width`` and ``height``.

    Raises:
        ValueError: the file is damaged or cut off, or has other arrays.
    """
    height = width = None
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            entries = _fields(loaded) if loaded.dtype.names else {}
            shape = f"{loaded.dtype} {loaded.shape}"
            if not entries and loaded.ndim == 2 and loaded.shape[1] == 4:
                entries = {name: loaded[:, i] for i, name in enumerate(_NAMES)}
        else:
            with loaded:
                entries = {name: loaded[name] for name in loaded.files}
            shape = {name: array.shape for name, array in entries.items()}
            if len(entries) == 1 and (only := next(iter(entries.values()))).dtype.names:
                entries = _fields(only)
            if "width" in entries and "height" in entries:
                width, height = int(_scalar(entries["width"])), int(_scalar(entries["height"]))
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: damaged or cut off ({error}); fetch it again") from error
    columns = _columns(entries)
    if columns is None:
        raise ValueError(f"{path}: holds {shape}; {_EXPECTED}, or an array [N, 4]")
    return EventStream(path=path, format="NumPy", height=height, width=width, pieces=lambda: _sliced(columns, chunk, str(path)))


def open_text(path: Path, chunk: int) -> EventStream:
    """The events of a text table, one a line, separated by commas, semicolons, tabs or spaces.

    Args:
        path: the recording. A first line of words names the columns; without it they are t, x, y, p. Lines that start with ``#`` are
            skipped. The first time of the file says whether times are microseconds or, written as a fraction, seconds.
        chunk: lines that are read at once.

    Returns:
        The stream; the sensor's size is unknown.

    Raises:
        ValueError: the first line has other columns.
    """
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        number, first = next(((i, line.strip()) for i, line in enumerate(file, 1) if _is_row(line)), (1, ""))
    delimiter = next((d for d in (",", ";", "\t") if d in first), None)
    words = [word.strip() for word in first.split(delimiter)]
    named = not all(map(_is_number, words))
    order = {word: i for i, word in enumerate(words)} if named else {name: i for i, name in enumerate(_NAMES) if len(words) == 4}
    columns = _columns(order)
    if columns is None:
        raise ValueError(f"{path}: line {number} is {first[:80]!r}; {_EXPECTED}, or four numbers t, x, y, p")

    def pieces() -> Iterator[tuple[np.ndarray, None]]:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            done = sum(1 for _ in itertools.islice(file, number if named else number - 1))
            seconds = None
            while lines := list(itertools.islice(file, chunk)):
                where = f"{path}: lines {done + 1} to {done + len(lines)}"
                done += len(lines)
                rows = [line for line in lines if _is_row(line)]
                if not rows:
                    continue
                try:
                    table = np.loadtxt(rows, np.float64, delimiter=delimiter, ndmin=2)
                    fields = {name: table[:, i] for name, i in columns.items()}
                except (ValueError, IndexError) as error:
                    raise ValueError(f"{where}: {error}; expected {len(words)} numbers a line, see line {number}") from error
                if seconds is None:
                    seconds = re.search(r"[.eE]", rows[0].split(delimiter)[columns["t"]]) is not None
                if not seconds:
                    fields["t"] = _whole(fields["t"], where)
                yield _pack(fields, where), None

    return EventStream(path=path, format="text", height=None, width=None, pieces=pieces)


def _is_row(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _whole(times: np.ndarray, where: str) -> np.ndarray:
    good = np.floor(times) == times
    if not good.all():
        i = int(np.argmin(good))
        raise ValueError(f"{where}: t of event {i} is {times[i]}; expected whole microseconds as in the file's first event")
    return times.astype(np.int64)
