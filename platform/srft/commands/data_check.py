"""``srft data check``."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True, kw_only=True)
class Check:
    """Count what a benchmark on disk holds and list everything that is wrong with it; exit status 1 if anything is.

    srft data check lasher /data/LasHeR

    srft data check visevent /data/VisEvent --images --json visevent.json

    srft data check coesot annos.zip
    """

    benchmark: tyro.conf.Positional[str]
    """Name of the benchmark; ``srft data layouts`` lists them."""
    root: tyro.conf.Positional[Path]
    """Folder of the data set or of a pack of it, or a zip file of annotations."""
    images: bool = False
    """Decode every image, not only the first and last of each sequence."""
    rgb_only: bool = False
    """Leave the auxiliary frames out."""
    annotations_only: bool = False
    """Look at annotations alone, for a folder without frames; what is meant for a zip file anyway."""
    json: Path | None = None
    """Write counts and problems here."""


def run(command: Check) -> None:
    """Count, list the problems, and exit with status 1 if there are any.

    Args:
        command: the options.
    """
    from tqdm import tqdm

    from srft.data.benchmarks.check import check_annotations, check_benchmark
    from srft.data.packing import check_pack
    from srft.data.shards import is_pack
    from srft.files import write_json

    if command.annotations_only or command.root.is_file():
        report = check_annotations(command.benchmark, command.root)
    else:
        with tqdm(desc=command.benchmark, unit="sequence", disable=None) as bar:

            def show(total: int) -> None:
                if total:
                    bar.reset(total)
                else:
                    bar.update()

            if is_pack(command.root):
                report = check_pack(command.root, images=command.images, on_sequence=show)
            else:
                only = command.rgb_only
                report = check_benchmark(command.benchmark, command.root, images=command.images, rgb_only=only, on_sequence=show)
    print(report.summary())
    for problem in report.problems:
        print(f"  {problem.kind:<10} {problem.split:<5}  {problem.message}")
    if command.json:
        write_json(command.json, dataclasses.asdict(report))
    if report.problems:
        sys.exit(1)
