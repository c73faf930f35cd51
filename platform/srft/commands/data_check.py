"""``srft data check``."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Check:
    """Look through annotations (a folder or a zip file of them) and say what they hold and what is wrong with them.

    srft data check coesot annos.zip --json coesot.json
    """

    benchmark: tyro.conf.Positional[str]
    """Name of the benchmark; ``srft data layouts`` lists them."""
    root: tyro.conf.Positional[Path]
    """Folder of the data set, or zip file of annotations."""
    json: Path | None = None
    """Write counts and problems here."""


def run(command: Check) -> None:
    """Count, list the problems, and exit with status 1 if there are any.

    Args:
        command: the options.
    """
    from srft.data.benchmarks.check import check_annotations
    from srft.files import write_json

    report = check_annotations(command.benchmark, command.root)
    print(report.summary())
    for problem in report.problems:
        print(f"  {problem}")
    if command.json:
        write_json(command.json, dataclasses.asdict(report))
    if report.problems:
        sys.exit(1)
