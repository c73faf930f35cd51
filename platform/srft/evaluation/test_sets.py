"""What trackers are tested on where no benchmark is at hand."""

from __future__ import annotations

from pathlib import Path

from srft.config import DataConfig
from srft.data import davis_cars
from srft.data.sequence import Sequence
from srft.data.synthetic import Split, sequences
from srft.evaluation.runner import TestSet

__all__ = ["test_sets"]


def test_sets(data: DataConfig, cache: Path) -> list[TestSet]:
    """Sequences that no run trains or validates on.

    Args:
        data: a run's data settings.
        cache: folder of rendered sequences.

    Returns:
        Synthetic test sequences; for events the real recording too; source RGB sequences without an auxiliary modality.
    """

    def render(split: Split, count: int) -> tuple[Sequence, ...]:
        return tuple(sequences(split, count, seed=data.world_seed, length=data.length, modality=data.modality, cache=cache))

    sets = [TestSet(name="synthetic test", sequences=render("target-test", data.test_sequences))]
    if data.modality == "rgbe":
        sets.append(TestSet(name="DAVIS cars", sequences=tuple(davis_cars.load())))
    return [*sets, TestSet(name="source RGB only", sequences=render("source-test", data.source_sequences), rgb_only=True)]
