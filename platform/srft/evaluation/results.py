"""Read files of boxes: fast, in every notation of the field, with messages that say where a bad number stands.

A file has one box per row: numbers separated by commas, tabs, spaces or semicolons; ltwh, ltrb or the eight numbers of four corners;
whole or broken; ``nan`` where there is no box. A single number in a row is a state of vot-toolkit and means no box either.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

__all__ = ["BoxFormat", "Files", "Result", "parse_columns", "read_results", "to_ltwh"]

BoxFormat = Literal["ltwh", "ltrb", "corners"]
_PICTURES = {"visible", "infrared", "color", "depth", "img", "evimg", "vis_imgs", "event_imgs", "events", "inter3_stack"}
_SEPARATOR = re.compile(rb"\s*[,;]\s*|\s+")
_BATCH = 2**21  # bytes
_NULLS = ["nan", "NaN", "NAN", "-nan", "NA"]


class Files:
    """The small files of a folder or of a zip, by path relative to it. Folders of pictures are not entered.

    Args:
        place: folder or zip.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: it is a file and no zip.
    """

    def __init__(self, place: str | os.PathLike[str]) -> None:
        self.place = Path(place)
        self._zip: zipfile.ZipFile | None = None
        self._folder = os.path.join(self.place, "")  # joining paths takes longer than reading a file
        if self.place.is_dir():
            skip = len(self._folder)  # pathlib would take longer than reading the files
            self.paths = sorted(
                os.path.join(folder, name)[skip:].replace(os.sep, "/") for folder, names in _walk(self.place) for name in names
            )
        elif not self.place.exists():
            raise FileNotFoundError(f"{self.place}: no such folder or zip")
        elif not zipfile.is_zipfile(self.place):
            raise ValueError(f"{self.place}: neither a folder nor a zip")
        else:
            self._zip = zipfile.ZipFile(self.place)
            self.paths = sorted(n for n in self._zip.namelist() if not n.endswith("/") and "__MACOSX" not in n)

    @property
    def name(self) -> str:
        """Name of the folder, or of the zip without its suffix."""
        return self.place.resolve().name if self._zip is None else self.place.stem

    def read(self, path: str) -> bytes:
        """Content of one file.

        Args:
            path: as listed in :attr:`paths`.

        Returns:
            Its bytes.
        """
        if self._zip is not None:
            return self._zip.read(path)
        with open(self._folder + path, "rb", buffering=0) as file:
            return file.read()

    def text(self, path: str) -> str:
        """Content of one file as text.

        Args:
            path: as listed in :attr:`paths`.

        Returns:
            Its text.
        """
        return self.read(path).decode("utf-8-sig", errors="replace")


def _walk(top: str | Path, above: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    # As os.walk, through links too, but in no circle.
    here = os.path.realpath(top)
    if here in above:
        return
    for folder, folders, names in os.walk(top):
        folders[:] = [f for f in folders if f not in _PICTURES and not f.endswith(("_aps", "_dvs", "_voxel"))]
        yield folder, [n for n in names if n.endswith((".txt", ".csv", ".value", ".bin", ".tag")) or n == "sequence"]
        for link in [path for path in (os.path.join(folder, f) for f in folders) if os.path.islink(path)]:
            yield from _walk(link, (*above, here))


def parse_columns(contents: Mapping[str, bytes], *, where: str, states: bool = False) -> dict[str, np.ndarray]:
    """Numbers of many files at once: files in the same notation are parsed together, which is several times faster than one by one.

    Args:
        contents: bytes by the sequence's name.
        where: what to call their origin in messages, such as the tracker.
        states: a row of a single number in a file of boxes is a state and becomes NaN; the widest row decides the columns.

    Returns:
        ``[rows, columns]`` float64 by name, NaN where the file says so; ``[0, 0]`` for an empty file.
    """
    tables: dict[str, np.ndarray] = {}
    groups: dict[tuple[bytes, int], dict[str, bytes]] = {}
    for name, content in contents.items():
        body = content.lstrip()
        delimiter, columns = _notation(body)
        if states and columns == 1 and body:  # a state in the first row, as vot-toolkit begins its files
            _, _, rest = body.partition(b"\n")
            delimiter, columns = _notation(rest.lstrip())
            body = delimiter.join([b"nan"] * columns) + b"\n" + rest
        if not body:
            tables[name] = np.zeros((0, 0))
        elif states and columns == 1:
            tables[name] = _parse_slowly(name, content, where, states)
        else:
            groups.setdefault((delimiter, columns), {})[name] = body
    for (delimiter, columns), bodies in groups.items():
        for batch in _batches(bodies):
            parsed = _parse_together([bodies[name] for name in batch], delimiter, columns)
            for i, name in enumerate(batch):
                alone = [parsed[i]] if parsed else _parse_together([bodies[name]], delimiter, columns)
                tables[name] = alone[0] if alone else _parse_slowly(name, contents[name], where, states)
    return tables


def _notation(body: bytes) -> tuple[bytes, int]:
    # Delimiter and columns of the first row.
    first = body[: body.find(b"\n")] if b"\n" in body else body
    delimiter = next((d for d in (b",", b"\t", b" ", b";") if d in first.rstrip()), b",")
    return delimiter, first.rstrip().count(delimiter) + 1


def _batches(bodies: Mapping[str, bytes]) -> Iterator[list[str]]:
    # Names of files that fit the caches together.
    batch: list[str] = []
    size = 0
    for name, body in bodies.items():
        batch.append(name)
        size += len(body)
        if size > _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _parse_together(bodies: list[bytes], delimiter: bytes, columns: int) -> list[np.ndarray] | None:
    # One table per body, a row of infinities between any two; None if any of them is not plain rows of that many numbers.
    import pyarrow as pa
    from pyarrow import csv

    between = b"\n" + delimiter.join([b"inf"] * columns) + b"\n"
    names = [str(i) for i in range(columns)]
    try:
        table = csv.read_csv(
            pa.BufferReader(between.join(bodies)),
            read_options=csv.ReadOptions(column_names=names, use_threads=False),
            parse_options=csv.ParseOptions(delimiter=delimiter.decode(), quote_char=False),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(names, pa.float64()), null_values=_NULLS),
        )
    except pa.ArrowInvalid:
        return None
    whole = np.empty((table.num_rows, columns))
    for i, column in enumerate(table.columns):
        start = 0
        for chunk in column.chunks:
            whole[start : start + len(chunk), i] = chunk.to_numpy(zero_copy_only=False)
            start += len(chunk)
    ends = np.flatnonzero(whole[:, 0] == np.inf)
    ends = ends[(whole[ends] == np.inf).all(1)]
    if len(ends) != len(bodies) - 1:  # a file has such a row itself
        return None
    starts = [0, *(ends + 1).tolist()]
    return [whole[a:b] for a, b in zip(starts, [*ends.tolist(), len(whole)], strict=True)]


def _parse_slowly(name: str, body: bytes, where: str, states: bool) -> np.ndarray:
    # Row by row: for files in mixed notation, and to say where a bad one is wrong.
    rows: list[list[float]] = []
    lines: list[int] = []
    for i, line in enumerate(body.splitlines(), 1):
        if not line.strip():
            continue
        parts = _SEPARATOR.split(line.strip().strip(b",;"))
        try:
            rows.append([float(part) for part in parts])
        except ValueError:
            raise ValueError(f"{where}, sequence {name}, line {i}: {line.decode(errors='replace')!r}; expected numbers") from None
        lines.append(i)
    width = max(map(len, rows)) if states else len(rows[0])
    for i, row in zip(lines, rows, strict=True):
        if len(row) == 1 < width and states:
            row[:] = [np.nan] * width
        if len(row) != width:
            raise ValueError(f"{where}, sequence {name}, line {i}: {len(row)} numbers; expected {width} as in the other lines")
    return np.array(rows)


def to_ltwh(table: np.ndarray, boxes: BoxFormat | None, *, source: str, corner_pixel: bool = True, rounds: bool = False) -> np.ndarray:
    """Boxes of a table of numbers.

    Args:
        table: ``[T, 4]``, ``[T, 5]`` with a confidence last, or ``[T, 8]`` corners x1, y1, ..., x4, y4.
        boxes: notation; None is corners for eight columns and ltwh otherwise.
        source: for messages.
        corner_pixel: the right and bottom numbers are the last pixel of the box, so widths have one more. The kit of RGBT234
            takes them without.
        rounds: round corners and ltrb in single precision, half to even, before their difference is taken.

    Returns:
        ``[T, 4]`` ltwh.

    Raises:
        ValueError: the number of columns does not fit.
    """
    columns = table.shape[1]
    boxes = boxes or ("corners" if columns == 8 else "ltwh")
    if not len(table):
        return np.zeros((0, 4))
    if columns not in ((8,) if boxes == "corners" else (4, 5)):
        raise ValueError(f"{source}: {columns} columns; expected {'8' if boxes == 'corners' else '4'} for {boxes} boxes")
    if boxes == "ltwh":
        return table[:, :4]
    if rounds:
        table = np.round(table.astype(np.float32)).astype(np.float64)
    if boxes == "ltrb":
        low, high = table[:, :2], table[:, 2:4]
    else:
        corners = table.reshape(len(table), 4, 2)
        low, high = corners.min(1), corners.max(1)
    return np.concatenate([low, high - low + (1 if corner_pixel else 0)], 1)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a tracker wrote about one sequence."""

    runs: Mapping[int, np.ndarray]
    """Boxes ``[R, 4]`` ltwh by the frame where the tracker was started: 0 alone in one-pass evaluation."""
    confidences: np.ndarray | None = None
    """``[R]`` of a long-term tracker."""


_SIDE_FILES = ("_time", "_confidence", "_all_boxes", "_all_scores", "_object_presence_scores", "_scores")


def read_results(
    files: Files,
    sequences: Sequence[str],
    *,
    tracker: str,
    boxes: BoxFormat | None = None,
    anchors: bool = False,
    corner_pixel: bool = True,
    rounds: bool = False,
) -> dict[str, Result]:
    """Results of one tracker.

    A sequence's file is ``SEQ.txt``, ``SEQ_001.txt`` or the same after a prefix that all files share (of a single file, one that ends
    in ``_`` or the like); vot-toolkit's ``SEQ/SEQ_001.txt`` with ``SEQ_001_confidence.value`` beside it; or, with anchors,
    ``SEQ_00000050.txt`` or ``.bin`` for each.

    Args:
        files: folder or zip.
        sequences: which ones to look for.
        tracker: its name, for messages.
        boxes: notation; by the number of columns when None.
        anchors: read the runs of a multistart experiment.
        corner_pixel: see :func:`to_ltwh`.
        rounds: likewise.

    Returns:
        Result by sequence; without those that have no file. Files of one sequence in several folders are a ValueError, as is what is wrong
        with a file.
    """
    found: dict[str, str] = {}
    again: dict[str, str] = {}
    for path in files.paths:
        stem, suffix = posixpath.splitext(posixpath.basename(path))
        mine = suffix in (".txt", ".csv", ".bin") and not stem.endswith(_SIDE_FILES)
        if mine and posixpath.dirname(found.setdefault(stem, path)) != posixpath.dirname(path):
            again.setdefault(stem, path)
    if anchors:
        return _anchored(files, sequences, found, again, tracker, boxes)
    first, last = min(found, default=""), max(found, default="")
    prefix = first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))]
    candidates = [prefix[:i] for i in range(len(prefix), 0, -1)]
    if len(found) == 1:
        candidates = [start for start in candidates if not start[-1].isalnum()]
    owners = {}
    for sequence in sorted(sequences, key=len):  # a file is of the longest name that it ends in
        names = (f"{start}{sequence}{end}" for end in ("", "_001") for start in ("", *candidates))
        if match := next((name for name in names if name in found), None):
            owners[match] = sequence
    for stem, sequence in owners.items():
        _refuse_several(found, again, stem, f"{tracker}, sequence {sequence}")
    places = {sequence: found[stem] for stem, sequence in owners.items()}
    tables = _tables(files, places, tracker)
    known = set(files.paths)
    results = {}
    for sequence, table in tables.items():
        stem = places[sequence].rpartition(".")[0]
        scores = next((p for p in (f"{stem}_confidence.value", f"{stem}_confidence.txt") if p in known), None)
        confidences = table[:, 4] if table.shape[1] == 5 else None
        if scores:
            confidences = _confidences(files.text(scores), len(table), f"{tracker}, sequence {sequence}, {scores}")
        source = f"{tracker}, sequence {sequence}"
        results[sequence] = Result(
            runs={0: to_ltwh(table, boxes, source=source, corner_pixel=corner_pixel, rounds=rounds)}, confidences=confidences
        )
    return results


def _refuse_several(found: Mapping[str, str], again: Mapping[str, str], stem: str, source: str) -> None:
    if stem in again:
        raise ValueError(f"{source}: both {found[stem]} and {again[stem]}; expected the results of one tracker in one experiment")


def _anchored(
    files: Files,
    sequences: Sequence[str],
    found: Mapping[str, str],
    again: Mapping[str, str],
    tracker: str,
    boxes: BoxFormat | None,
) -> dict[str, Result]:
    places = {}
    wanted = set(sequences)
    for stem, path in found.items():
        name, _, anchor = stem.rpartition("_")
        if len(anchor) == 8 and anchor.isdigit() and name in wanted:
            _refuse_several(found, again, stem, f"{tracker}, sequence {name}")
            places[name, int(anchor)] = path
    keys = {f"{name} from frame {anchor}": (name, anchor) for name, anchor in places}
    tables = _tables(files, {key: places[pair] for key, pair in keys.items()}, tracker)
    runs: dict[str, dict[int, np.ndarray]] = {}
    for key, (name, anchor) in sorted(keys.items(), key=lambda item: item[1]):
        runs.setdefault(name, {})[anchor] = to_ltwh(tables[key], boxes, source=f"{tracker}, sequence {key}")
    return {name: Result(runs=r) for name, r in runs.items()}


def _tables(files: Files, places: Mapping[str, str], tracker: str) -> dict[str, np.ndarray]:
    contents = {name: files.read(path) for name, path in places.items()}
    binary = {n: _trajectory(c, f"{tracker}, sequence {n}") for n, c in contents.items() if places[n].endswith(".bin")}
    text = parse_columns({n: c for n, c in contents.items() if n not in binary}, where=tracker, states=True)
    tables = {**text, **binary}
    return {name: tables[name] if tables[name].size else np.zeros((0, 4)) for name in places}


def _confidences(text: str, rows: int, source: str) -> np.ndarray:
    # One number a line; a blank line, as the first one is, stands for 0.
    try:
        values = np.array([float(line) if line.strip() else 0.0 for line in text.splitlines()])
    except ValueError as error:
        raise ValueError(f"{source}: {error}; expected one number a line") from None
    if len(values) == rows - 1:
        # The frame of the start has no line; or it has a blank one, and the last one, blank too, has no end.
        values = np.concatenate([values, [0.0]] if text[:1] in "\r\n" else [[0.0], values])
    if len(values) != rows:
        raise ValueError(f"{source}: {len(values)} confidences; expected {rows}, one per box")
    return values


def _trajectory(content: bytes, source: str) -> np.ndarray:
    # vot-toolkit's binary file: int16, uint32 count, then per row a type byte and its numbers.
    stream = io.BytesIO(content)
    rows = []
    try:
        _, count = struct.unpack("<hI", stream.read(6))
        for _ in range(count):
            kind = stream.read(1)[0]
            if kind == 0:
                stream.read(4)
                rows.append([np.nan] * 4)
            elif kind == 1:
                rows.append(list(struct.unpack("<ffff", stream.read(16))))
            else:
                raise ValueError(f"{source}: row {len(rows) + 1} is a region of type {kind}; expected rectangles")
    except (struct.error, IndexError):
        raise ValueError(f"{source}: the file ends in row {len(rows) + 1}; write it anew") from None
    return np.array(rows)
