"""Published results of other trackers, each figure with its source, to place one's own among them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from srft.evaluation.protocols import Protocol

__all__ = ["Published", "peers", "read_published"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """One figure that somebody has published."""

    tracker: str
    benchmark: str
    protocol: str
    """The rules it was scored by, as far as is known: ``kit``."""
    sequences: int
    """How many test sequences; figures over different numbers are not comparable."""
    measure: str
    percent: float
    source: str
    error: str
    """Why the figure must be wrong, where it must."""
    note: str


def read_published() -> tuple[Published, ...]:
    """Everything in the package's ``assets/published.csv``.

    Returns:
        All figures.
    """
    text = resources.files("srft").joinpath("assets", "published.csv").read_text(encoding="utf-8")
    return tuple(
        Published(**{**row, "sequences": int(row["sequences"]), "percent": float(row["percent"])})  # type: ignore[arg-type]
        for row in csv.DictReader(text.splitlines())
    )


def peers(protocol: Protocol, sequences: int) -> Mapping[str, Mapping[str, Published]]:
    """Figures that are comparable with scores under a protocol.

    Args:
        protocol: of one's own scores.
        sequences: how many were scored.

    Returns:
        Figure by measure, by tracker; empty for another protocol than the published one or another number of sequences.
    """
    if not protocol.whole(sequences):
        return {}
    found: dict[str, dict[str, Published]] = {}
    for figure in read_published():
        if (figure.benchmark, figure.protocol, figure.sequences) == (protocol.benchmark, protocol.name, protocol.sequences):
            found.setdefault(figure.tracker, {})[figure.measure] = figure
    return found
