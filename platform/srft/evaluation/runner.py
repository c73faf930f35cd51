"""Track whole test sets and score them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from srft.data.sequence import Sequence
from srft.evaluation.metrics import Measures, measure
from srft.evaluation.online import Trajectory, track_sequences
from srft.model.tracker import MultiModalTracker


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """Sequences that are scored together."""

    __test__ = False

    name: str
    sequences: tuple[Sequence, ...]
    rgb_only: bool = False
    """Leave the auxiliary modality out."""

    @property
    def frames(self) -> int:
        """Frames to track."""
        return sum(len(sequence) - 1 for sequence in self.sequences)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one tracker did on several test sets, by the sets' names."""

    measures: Mapping[str, Measures]
    trajectories: Mapping[str, list[Trajectory]]


def evaluate(network: MultiModalTracker, sets: list[TestSet], *, on_frames: Callable[[int], object] | None = None) -> Evaluation:
    """Track and score.

    Args:
        network: one or two streams; a single stream is shown RGB only.
        sets: what to track.
        on_frames: called with the number of frames tracked since the last call.

    Returns:
        Measures and trajectories of each set.
    """
    measures: dict[str, Measures] = {}
    trajectories: dict[str, list[Trajectory]] = {}
    for test in sets:
        rgb_only = test.rgb_only or network.streams == 1
        trajectories[test.name] = track_sequences(network, test.sequences, rgb_only=rgb_only, on_frames=on_frames)
        measures[test.name] = measure([(t.boxes, s.boxes, s.absent) for t, s in zip(trajectories[test.name], test.sequences, strict=True)])
    return Evaluation(measures=measures, trajectories=trajectories)
