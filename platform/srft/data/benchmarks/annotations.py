"""What annotators wrote: boxes, absent flags and their traps, read from data-set folders, evaluation kits and zip files.

Boxes are ltwh (left, top, width, height) in pixels. Rows keep their places: frame i has row i.
"""

from __future__ import annotations

import fnmatch
import re
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from srft.data.benchmarks.layouts import AnnotationFiles, DataError, layout_of

__all__ = ["Annotation", "Tree", "has_area", "parse_boxes", "parse_flags", "read_annotation", "read_annotations"]


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """The annotation of one sequence, as published."""

    name: str
    boxes: np.ndarray
    """``[T, 4]`` float64 ltwh as in the file; NaN where a row says that there is no box."""
    absent: np.ndarray
    """``[T]`` bool, what the benchmark says: its flags, or where it has none, rows whose box has no area."""
    aux_boxes: np.ndarray | None = None
    """``[T, 4]`` boxes in the auxiliary frames, where a benchmark annotates both (RGB-T)."""
    anchors: np.ndarray | None = None
    """``[T]`` int64 of VOT: above 0 a tracker starts here and runs forward, below 0 backward."""
    attributes: tuple[str, ...] = field(default=())
    """Challenges, where the files list them."""

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def visible(self) -> np.ndarray:
        """``[T]`` bool: not absent, and the box has an area."""
        return ~self.absent & has_area(self.boxes)

    @property
    def leading_absent(self) -> int:
        """Frames before the first visible one; T if there is none."""
        return int(np.argmax(self.visible)) if self.visible.any() else len(self)

    @property
    def contradictions(self) -> np.ndarray:
        """``[T]`` bool: flagged present without a box, or flagged absent with one."""
        return self.absent == has_area(self.boxes)


def has_area(boxes: np.ndarray) -> np.ndarray:
    """Which rows are boxes at all.

    Args:
        boxes: ``[T, 4]`` ltwh.

    Returns:
        ``[T]`` bool: no NaN, width and height above 0.
    """
    return np.asarray(np.isfinite(boxes).all(1) & (boxes[:, 2:] > 0).all(1))


def parse_boxes(text: str, where: str) -> np.ndarray:
    """Boxes of a text file: one row a frame, numbers apart by commas, semicolons, tabs or spaces.

    A row of four numbers is a ltwh box, of eight (or six and more, even) a polygon x, y, x, y, ... whose axis-parallel bounding rectangle
    is taken, of one number a VOT special (no box). A row of NaN or an empty row between others is no box. Empty rows at the end are none.

    Args:
        text: content of the file.
        where: its name, for messages.

    Returns:
        ``[T, 4]`` float64, rows without a box NaN. Widths and heights of 0 or below are kept.

    Raises:
        DataError: there are no rows, or a row is none of these.
    """
    text = text.lstrip("\ufeff").rstrip().replace("\r", "")
    if not text:
        raise DataError(f"{where}: empty; expected one box a frame. Fetch the annotation again")
    plain = re.sub("[,;\t]", " ", text)
    lines = plain.split("\n")
    try:
        if all(line.count(" ") == 3 for line in lines) and len(values := [float(value) for value in plain.split()]) == 4 * len(lines):
            boxes = np.array(values).reshape(-1, 4)
        else:
            boxes = np.array([_box([float(value) for value in line.split()]) for line in lines])
    except ValueError:
        boxes = np.full((len(lines), 4), np.inf)
    if not np.isinf(boxes).any():
        return boxes
    bad = [number for number, line in enumerate(lines, 1) if not _readable(line.split())]
    original = text.split("\n")[bad[0] - 1]
    more = f" (and {len(bad) - 1} more lines)" if len(bad) > 1 else ""
    raise DataError(
        f"{where}, line {bad[0]}{more}: {original[:60]!r}; expected left, top, width, height, or the points of a polygon, or NaN. "
        "Fetch the annotation again or put the line right"
    )


def _box(values: list[float]) -> list[float]:
    if len(values) == 4:
        return values
    if len(values) <= 1:
        return [np.nan] * 4
    if len(values) < 6 or len(values) % 2:
        raise ValueError
    x, y = values[::2], values[1::2]
    if np.isnan(values).any():
        return [np.nan] * 4
    return [min(x), min(y), max(x) - min(x), max(y) - min(y)]


def _readable(row: list[str]) -> bool:
    try:
        return bool(np.isfinite([0 if np.isnan(value) else value for value in _box([float(value) for value in row])]).all())
    except ValueError:
        return False


def parse_table(text: str, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Boxes of a CSV file whose first line names the columns.

    Columns are ``left, top`` with ``width, height`` or ``right, bottom``; optionally ``absent`` (1 = absent) and ``frame``, which must
    count the rows from 0 or 1. Others are passed over. Cells of a row without a box are empty or NaN.

    Args:
        text: content of the file.
        where: its name, for messages.

    Returns:
        ``[T, 4]`` float64 ltwh, and ``[T]`` bool absent flags if there is such a column.

    Raises:
        DataError: a column is missing, a row is incomplete or no row of numbers, or frames are not numbered one by one.
    """
    lines = [line for line in text.lstrip("\ufeff").splitlines() if line.strip()]
    names = [name.strip().lower() for name in lines[0].split(",")] if lines else []
    corners = ["right", "bottom"] if "right" in names else ["width", "height"]
    missing = [name for name in ("left", "top", *corners) if name not in names]
    if missing or len(lines) < 2:
        raise DataError(f"{where}: columns {', '.join(names)}, {len(lines) - 1} rows; expected left,top,width,height and one row a frame")
    cells = [line.split(",") for line in lines[1:]]
    columns: dict[str, np.ndarray] = {}
    for name in {"left", "top", *corners, "absent", "frame"} & set(names):
        for number, row in enumerate(cells, 2):
            if len(row) != len(names) or not _number(row[names.index(name)]):
                raise DataError(f"{where}, line {number}: {lines[number - 1][:60]!r}; expected {len(names)} numbers, or nothing for no box")
        columns[name] = np.array([float(row[names.index(name)].strip() or "nan") for row in cells])
        if name == "absent" and (bad := ~np.isin(columns[name], (0, 1)) & ~np.isnan(columns[name])).any():
            at = int(np.argmax(bad))
            raise DataError(f"{where}, line {at + 2}: absent is {columns[name][at]:g}; expected 0 or 1, or nothing for a target in view")
    if "frame" in columns and (columns["frame"][0] not in (0, 1) or np.any(np.diff(columns["frame"]) != 1)):
        raise DataError(f"{where}: frames {columns['frame'][:4].tolist()}, ...; expected every one, from 0 or 1. Add rows without a box")
    boxes = np.stack([columns[name] for name in ("left", "top", *corners)], 1)
    if corners == ["right", "bottom"]:
        boxes[:, 2:] -= boxes[:, :2]
    return boxes, columns["absent"] == 1 if "absent" in columns else None


def _number(cell: str) -> bool:
    try:
        return not np.isinf(float(cell.strip() or "nan"))
    except ValueError:
        return False


def parse_flags(text: str, where: str, *, absent: int) -> np.ndarray:
    """Absent flags: 0 or 1, one a line or in one line with commas.

    Args:
        text: content of the file.
        where: its name, for messages.
        absent: the value that means absent. Benchmarks disagree.

    Returns:
        ``[T]`` bool, True where absent.

    Raises:
        DataError: there are no flags, or one is neither 0 nor 1.
    """
    values = re.split(r"\s*[,;]\s*|\s+", text.lstrip("\ufeff").strip().rstrip(",; \t\r\n"))
    if values == [""]:
        raise DataError(f"{where}: empty; expected one flag a frame. Fetch the annotation again")
    flags = np.array([float(value) if _number(value or "inf") and float(value) in (0, 1) else -1 for value in values])
    if (flags < 0).any():
        bad = int(np.argmax(flags < 0))
        raise DataError(f"{where}, flag {bad + 1}: {values[bad][:40]!r}; expected 0 or 1. Fetch the annotation again")
    return flags == absent


class Tree:
    """Files below a folder or in a zip file, by relative path."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.exists():
            raise DataError(f"{self.root}: no such folder or zip file; expected annotations")
        try:
            self._zip = zipfile.ZipFile(self.root) if self.root.is_file() else None
        except zipfile.BadZipFile as error:
            raise DataError(f"{self.root}: not a zip file ({error}); expected one, or a folder of annotations. Unpack it") from None
        self._names = set(self._zip.namelist()) if self._zip else None

    def text(self, name: str) -> str | None:
        """Content of a file.

        Args:
            name: relative path.

        Returns:
            Its text; None if there is no such file.

        Raises:
            DataError: the zip file is damaged.
        """
        if self._zip is not None:
            try:
                return self._zip.read(name).decode("utf-8", "replace") if name in (self._names or ()) else None
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise DataError(f"{self.root}/{name}: damaged ({error}). Fetch the zip file again") from None
        path = self.root / name
        return path.read_text("utf-8", "replace") if path.is_file() else None

    def glob(self, pattern: str) -> list[str]:
        """Files that a pattern names; a star does not cross folders. Hidden ones, as of interrupted writing, are none.

        Args:
            pattern: relative path with stars.

        Returns:
            Relative paths, sorted.
        """
        if self._names is None:
            names = [path.relative_to(self.root).as_posix() for path in self.root.glob(pattern)]
        else:
            names = [name for name in fnmatch.filter(self._names, pattern) if name.count("/") == pattern.count("/")]
        return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def read_annotations(benchmark: str, source: str | Path, *, names: Iterable[str] | None = None) -> dict[str, Annotation]:
    """Annotations without frames: of a data set's own folders, of its evaluation kit, or of a zip file of either.

    Args:
        benchmark: one of ``srft.data.benchmarks.LAYOUTS``.
        source: the folder or zip file; what it holds is recognized by its file names, up to two folders deep.
        names: the sequences wanted, in this order; None takes all, sorted.

    Returns:
        Annotations by sequence name.

    Raises:
        DataError: a wanted sequence is missing. So is one where nothing is found, or where a file is damaged.
    """
    tree = Tree(source)
    files, places = annotation_files(benchmark, tree)
    missing = [name for name in names or () if name not in places]
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise DataError(f"{source}: no annotation of {missing[0]}{others}; expected one of each sequence. Fetch the annotations again")
    return {name: read_annotation(tree, files, name, places[name]) for name in (names if names is not None else places)}


def annotation_files(benchmark: str, tree: Tree) -> tuple[AnnotationFiles, dict[str, str]]:
    """Find the annotations of a benchmark.

    Args:
        benchmark: its name.
        tree: where to look, up to two folders deep.

    Returns:
        The kind of files found, and by sequence name, sorted, the folders before them.

    Raises:
        DataError: there are none.
    """
    layout = layout_of(benchmark)
    known = (layout.annotations, *layout.kits)
    for files in known:
        for boxes in files.boxes:
            for above in ("", "*/", "*/*/"):
                found = tree.glob(above + boxes.format(name="*", category="*"))
                matches = [match for match in map(re.compile(_regex(above, boxes)).fullmatch, found) if match]
                if matches:
                    return files, dict(sorted((match["name"], match["above"]) for match in matches))
    expected = " or ".join(boxes for files in known for boxes in files.boxes)
    raise DataError(f"{tree.root}: no annotations of {layout.title}; expected files {expected}. Give the folder that holds them")


def sequence_names(files: AnnotationFiles, tree: Tree) -> tuple[str, ...]:
    """Sequences that are annotated directly below a folder.

    Args:
        files: how they are annotated.
        tree: the folder.

    Returns:
        Their names, sorted.
    """
    names = set()
    for boxes in files.boxes:
        pattern = re.compile(_regex("", boxes))
        names |= {match["name"] for match in map(pattern.fullmatch, tree.glob(boxes.format(name="*", category="*"))) if match}
    return tuple(sorted(names))


def _regex(above: str, pattern: str) -> str:
    text = re.escape(pattern).replace(r"\{name\}", "(?P<name>[^/]+)").replace(r"\{category\}", "[^/]+")
    return f"(?P<above>{above.replace('*', '[^/]+')}){text}"


def _category(name: str) -> str:
    return name.rpartition("-")[0]


def read_annotation(tree: Tree, files: AnnotationFiles, name: str, prefix: str = "") -> Annotation:
    """The annotation of one sequence.

    Args:
        tree: what the files are in.
        files: where they are in it.
        name: of the sequence.
        prefix: folders before the patterns, ending with a slash.

    Returns:
        The annotation.

    Raises:
        DataError: a file is missing or damaged, or their rows differ in number.
    """

    def read(pattern: str) -> tuple[str, str | None]:
        place = prefix + pattern.format(name=name, category=_category(name))
        return str(tree.root / place), tree.text(place)

    where, content = next((found for found in map(read, files.boxes) if found[1] is not None), read(files.boxes[0]))
    if content is None:
        raise DataError(f"{where}: missing; expected the boxes of sequence {name}. Fetch the annotation again")
    flagged = aux_boxes = anchors = None
    if where.endswith(".csv"):
        boxes, flagged = parse_table(content, where)
    else:
        boxes = parse_boxes(content, where)
    for flag in files.flags:
        at, content = read(flag.file)
        if content is None and not flag.required:
            continue
        if content is None:
            raise DataError(f"{at}: missing; expected the absent flags of sequence {name}, {flag.absent} for absent")
        flags = _of_length(parse_flags(content, at, absent=flag.absent), "flags", at, boxes, where)
        flagged = flags if flagged is None else flagged | flags
    if files.aux_boxes:
        at, content = read(files.aux_boxes)
        if content is None:
            raise DataError(f"{at}: missing; expected the boxes of sequence {name} in the auxiliary frames. Fetch the annotation again")
        aux_boxes = _of_length(parse_boxes(content, at), "boxes", at, boxes, where)
    if files.anchors and (content := read(files.anchors)[1]) is not None:
        at = read(files.anchors)[0]
        anchors = _of_length(_whole_numbers(content, at), "anchors", at, boxes, where)
    attributes: tuple[str, ...] = ()
    if files.attributes and (content := read(files.attributes)[1]) is not None:
        flags = parse_flags(content, read(files.attributes)[0], absent=1)
        attributes = tuple(attribute for attribute, present in zip(files.attribute_names.split(), flags, strict=False) if present)
    return Annotation(
        name=name,
        boxes=boxes,
        absent=~has_area(boxes) if flagged is None else flagged,
        aux_boxes=aux_boxes,
        anchors=anchors,
        attributes=attributes,
    )


def _of_length(values: np.ndarray, what: str, at: str, boxes: np.ndarray, where: str) -> np.ndarray:
    if len(values) != len(boxes):
        raise DataError(f"{at}: {len(values)} {what}, but {len(boxes)} boxes in {where}; expected one of each a frame. Fetch both again")
    return values


def _whole_numbers(text: str, where: str) -> np.ndarray:
    try:
        return np.array([float(line) for line in text.split()]).astype(np.int64)
    except ValueError as error:
        raise DataError(f"{where}: {error}; expected one whole number a line") from error
