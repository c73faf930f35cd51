"""What is kept of the proof study: every finished cell, in a folder while it runs and in the results for good.

``paradigms_cells.zip`` holds the cells' files as they are, so that a clone has what the tables are made from, and goes on with the study:

    python -m zipfile -e experiments/results/paradigms_cells.zip outputs/paradigms/cells

``paradigms.csv`` has a line for each cell. Cells without a file in the archive, from before there was one, are known by that line only.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from srft.files import aside

__all__ = ["CELLS", "LINES", "Row", "as_csv", "cell_files", "read_csv", "read_rows", "write_cells"]

CELLS, LINES = "paradigms_cells.zip", "paradigms.csv"
MEASURES = (
    "test/pair_auc",
    "test/online_auc",
    "test/online_precision",
    "source/pair_auc",
    "source/online_auc",
    "val/pair_auc",
    "train/pair_auc",
    "cars/online_auc",
)
"""Columns of the CSV."""
WHAT = ("modality", "pairs", "seed", "method", "setting")
_NUMBER = re.compile(r"(\d),(\d)")
"""As cells wrote broken numbers before names had points."""
REST = ("best_step", "train_seconds", "device", "commit")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One finished cell."""

    modality: str
    size: int
    """Target pairs; 0: not tuned."""
    seed: int
    method: str
    setting: str
    measures: dict[str, float]
    """Fractions of 1."""
    per_sequence: dict[str, list[float]]
    """The same of every sequence; empty where only the means were kept."""
    history: list[dict[str, float]]
    """Of each epoch."""
    best_step: int | None
    """Of the best epoch on validation."""
    seconds: float
    """Of training."""
    commit: str
    device: str = ""

    @property
    def gap(self) -> float:
        """Training less test success."""
        return self.measures.get("train/pair_auc", float("nan")) - self.measures["test/pair_auc"]

    @property
    def key(self) -> tuple[str, int, str, str, int]:
        """What it is of, in the order of tables."""
        return self.modality, self.size, self.method, self.setting, self.seed


def cell_files(study: Path, archive: Path) -> dict[str, bytes]:
    """The files of all finished cells, new and kept.

    Args:
        study: output directory of the study; need not exist.
        archive: of the cells finished before; need not exist.

    Returns:
        Content by name, the study's where both have it.

    Raises:
        ValueError: there are none, or the archive is damaged.
    """
    found: dict[str, bytes] = {}
    if archive.exists():
        try:
            with zipfile.ZipFile(archive) as kept:
                found = {name: kept.read(name) for name in kept.namelist()}
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"{archive}: not a whole archive ({error}); restore it with git checkout") from None
    found |= {path.name: path.read_bytes() for path in sorted((study / "cells").glob("*.json"))}
    if not found:
        raise ValueError(f"{study / 'cells'}: no finished cell, and none in {archive}; run experiments/paradigms.py first")
    return found


def write_cells(files: dict[str, bytes], archive: Path) -> None:
    """Keep cells for good: the same cells give the same bytes.

    Args:
        files: content by name.
        archive: ZIP to write.
    """
    with aside(archive) as temporary, zipfile.ZipFile(temporary, "w") as kept:
        for name in sorted(files):
            kept.writestr(zipfile.ZipInfo(name), files[name], zipfile.ZIP_DEFLATED, 9)


def read_rows(files: dict[str, bytes]) -> list[Row]:
    """The finished cells.

    Args:
        files: content by name.

    Returns:
        In order of what they are.

    Raises:
        ValueError: one cannot be read, or two are of the same cell.
    """
    rows: dict[tuple[str, int, str, str, int], tuple[str, Row]] = {}
    for name, content in files.items():
        try:
            found = json.loads(content)
            modality, size, seed, method, setting = found["cell"]
            measures = dict(found["measures"])
            lists = measures.pop("per_sequence")
            curve = [entry.get("val/success_auc", 0.0) for entry in found["history"]]
            row = Row(
                modality=modality,
                size=int(size),
                seed=int(seed),
                method=method,
                setting=_NUMBER.sub(r"\1.\2", setting),
                measures=measures,
                per_sequence=lists,
                history=found["history"],
                best_step=int(found["history"][int(np.argmax(curve))]["step"]) if curve else None,
                seconds=found.get("train_seconds", 0.0),
                commit=found.get("commit") or "",
                device=found.get("device", ""),
            )
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name}: not a finished cell ({error}); delete it and the study runs it again") from None
        if row.key in rows:
            raise ValueError(f"{name} and {rows[row.key][0]} are of the same cell, {row.key}, trained otherwise; delete one of them")
        rows[row.key] = name, row
    return [rows[key][1] for key in sorted(rows)]


def as_csv(rows: Iterable[Row]) -> str:
    """Every cell as a line.

    Args:
        rows: the cells.

    Returns:
        CSV with a header.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*WHAT, *MEASURES, *REST])
    for row in rows:
        figures = [f"{row.measures[name]:.4f}" if name in row.measures else "" for name in MEASURES]
        step = "" if row.best_step is None else row.best_step
        what = [row.modality, row.size, row.seed, row.method, row.setting]
        writer.writerow([*what, *figures, step, f"{row.seconds:.1f}", row.device, row.commit])
    return text.getvalue()


def read_csv(path: Path) -> list[Row]:
    """Cells as their lines know them: means to four digits, without sequences and curves.

    Args:
        path: of as_csv; need not exist.

    Returns:
        The cells.

    Raises:
        ValueError: a line is not one of a cell.
    """
    if not path.exists():
        return []
    rows = []
    with path.open(newline="") as file:
        for number, line in enumerate(csv.DictReader(file), 2):
            try:
                row = Row(
                    modality=line["modality"],
                    size=int(line["pairs"]),
                    seed=int(line["seed"]),
                    method=line["method"],
                    setting=line["setting"],
                    measures={name: float(line[name]) for name in MEASURES if line[name]},
                    per_sequence={},
                    history=[],
                    best_step=int(line["best_step"]) if line["best_step"] else None,
                    seconds=float(line["train_seconds"]),
                    commit=line["commit"],
                    device=line["device"],
                )
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: not a cell ({error!r}); restore the file with git checkout") from None
            rows.append(row)
    return rows
