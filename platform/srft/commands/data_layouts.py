"""``srft data layouts``."""

from __future__ import annotations

from dataclasses import dataclass

import tyro


@dataclass(frozen=True, kw_only=True)
class Layouts:
    """Show where each benchmark's files are expected: the folders of the official downloads, unrenamed.

    srft data layouts

    srft data layouts lasher
    """

    benchmark: tyro.conf.Positional[str] = "all"
    """Name of a benchmark, or ``own`` for data of your own."""


def run(command: Layouts) -> None:
    """Print the layouts.

    Args:
        command: the options.
    """
    from srft.data.benchmarks import LAYOUTS, describe, layout_of

    for layout in LAYOUTS.values() if command.benchmark == "all" else [layout_of(command.benchmark)]:
        print(describe(layout), end="\n\n")
