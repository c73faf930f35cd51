"""The measurement of event speeds runs, and the count image is as fast as asked for: 20 million events per second and core."""

from __future__ import annotations

import json
from pathlib import Path

from srft.data import events as ev
from tests.benchmarks.events_cost import measure

RECORDED = Path(__file__).parent / "results" / "events.json"


def test_everything_is_measured():
    result = measure(2_000, 1, 1)
    for rates in result["representations"].values():
        assert set(rates) == {"np.add.at", *ev.REPRESENTATIONS}
    assert len(result["readers"]) == 7
    assert all(rate > 0 for rate in result["readers"].values())


def test_recorded_figures_are_what_was_asked_for():
    for sensor, rates in json.loads(RECORDED.read_text())["representations"].items():
        assert rates["counts"] > 20, sensor
        assert rates["polarity"] > 20, sensor
