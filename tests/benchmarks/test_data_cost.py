"""The measurement of data loading runs, and what it recorded is what was asked for."""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks.data_cost import measure

RECORDED = Path(__file__).parent / "results" / "data.json"


def test_every_way_is_measured():
    figures = measure(sequences=2, frames=12, count=4, rounds=1, preset="tiny")["per_core"]
    assert isinstance(figures, dict)
    assert len(figures) == 8
    assert all(each["samples_per_s"] > 0 for each in figures.values())


def test_recorded_figures():
    recorded = json.loads(RECORDED.read_text())
    ways = recorded["per_core"]
    assert ways["exact"]["ratio"] >= 3
    assert ways["reduced"]["ratio"] >= 3
    for decode in ("exact", "reduced"):
        assert ways[f"pack, {decode}"]["ratio"] >= 0.97 * ways[decode]["ratio"]  # at least as fast; the rest is noise
    assert recorded["loader"]["memory_mib_beyond_torch"] < 400
