"""What trackers are tested on where no benchmark is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from srft.config import DataConfig
from srft.data import davis_cars
from srft.data.domain import rendered
from srft.evaluation.runner import TestSet

__all__ = ["logged_names", "test_sets"]


def test_sets(data: DataConfig, cache: Path) -> list[TestSet]:
    """Sequences that no run trains or validates on.

    Args:
        data: a run's data settings.
        cache: folder of rendered sequences.

    Returns:
        Synthetic test sequences; for events the real recording too; source RGB sequences without an auxiliary modality.
    """
    sets = [TestSet(name="synthetic test", sequences=rendered(data, "target-test", cache))]
    if data.modality == "rgbe":
        sets.append(TestSet(name="DAVIS cars", sequences=tuple(davis_cars.load())))
    return [*sets, TestSet(name="source RGB only", sequences=rendered(data, "source-test", cache), rgb_only=True)]


def logged_names(tests: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Figures of tests by the names that runs are compared by.

    Args:
        tests: measures by name, by test set.

    Returns:
        ``test/<set>/<measure>`` to value, with underscores for spaces.
    """
    return {f"test/{name.replace(' ', '_')}/{key}": value for name, figures in tests.items() for key, value in figures.items()}
