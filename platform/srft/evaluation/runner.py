"""Track whole test sets: in this process, or in tasks of a Ray cluster."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from srft.data.sequence import Sequence
from srft.evaluation.follow import Followed, follow, track_sequences
from srft.evaluation.metrics import Measures, measure
from srft.evaluation.online import Precision, Trajectory
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


def balanced(frames: Several[int], parts: int) -> list[list[int]]:
    """Share sequences out so that all parts have about the same number of frames: the longest first, each to the emptiest part.

    Args:
        frames: of each sequence.
        parts: how many.

    Returns:
        Numbers of the sequences of each part, longest first; no part is empty, so there may be fewer.
    """
    heap: list[tuple[int, int]] = [(0, part) for part in range(min(parts, len(frames)))]
    shares: list[list[int]] = [[] for _ in heap]
    for number in sorted(range(len(frames)), key=lambda i: -frames[i]):
        load, part = heapq.heappop(heap)
        shares[part].append(number)
        heapq.heappush(heap, (load + frames[number], part))
    return shares


_PARTS = 4  # tasks per worker: the fast ones take more


def follow_in_tasks(
    network: MultiModalTracker,
    sequences: Several[Sequence],
    *,
    workers: int,
    rgb_only: bool = False,
    batch: int = 16,
    precision: Precision = "fp32",
    on_frames: Callable[[int], object] | None = None,
) -> Iterator[Followed]:
    """Track in tasks of the Ray cluster that this process is connected to, balanced by frames; as :func:`srft.evaluation.online.follow`.

    Each task has one CPU and, if the cluster has GPUs, a share of one. Trajectories come back to this process when their sequence
    ends. A task whose process dies starts again on another; after the third time its sequences fail and the others go on.

    Args:
        network: the tracker; sent once.
        sequences: what to track; what they read must be readable on every node.
        workers: tasks at once.
        rgb_only: leave the auxiliary channels out.
        batch: sequences at once in each task.
        precision: of the network.
        on_frames: called with the number of frames of each sequence that ends.

    Yields:
        Each sequence when it ends.
    """
    import ray
    from ray.exceptions import RayError

    gpus = ray.cluster_resources().get("GPU", 0.0)
    task = ray.remote(_follow_part).options(
        num_returns="streaming", num_cpus=1, num_gpus=min(1.0, gpus / workers) if gpus else 0, max_retries=2
    )
    shared = ray.put(network.cpu())
    waiting = iter(balanced([len(s) for s in sequences], min(_PARTS * workers, max(workers, len(sequences) // batch))))
    running: dict[Any, list[int]] = {}
    seen: set[int] = set()
    while True:
        while len(running) < workers and (part := next(waiting, None)) is not None:
            numbered = [(number, sequences[number]) for number in part]
            running[task.remote(shared, numbered, rgb_only, batch, precision)] = part
        if not running:
            return
        done: list[Any] = ray.wait(list(running), num_returns=1)[0]
        (ready,) = done
        try:
            found: Any = ray.get(next(ready))
        except StopIteration:
            del running[ready]
            continue
        except RayError as error:
            for number in running.pop(ready):
                if number not in seen:
                    yield _lost(number, sequences[number], error)
            continue
        if found.number not in seen:  # A task that starts again repeats itself.
            seen.add(found.number)
            if on_frames:
                on_frames(len(found.seconds) - 1)
            yield found


def _lost(number: int, sequence: Sequence, error: Exception) -> Followed:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    trajectory = Trajectory(name=sequence.name, boxes=np.zeros((len(sequence), 4)), scores=np.zeros(len(sequence)))
    failure = OSError(f"its task did not finish: {reason[-1][:300]}")
    return Followed(number=number, trajectory=trajectory, seconds=np.zeros(len(sequence)), error=failure)


def _follow_part(
    network: MultiModalTracker, numbered: list[tuple[int, Sequence]], rgb_only: bool, batch: int, precision: Precision
) -> Iterator[Followed]:
    import torch

    network = network.to("cuda" if torch.cuda.is_available() else "cpu")
    for followed in follow(network, [sequence for _, sequence in numbered], rgb_only=rgb_only, batch=batch, precision=precision):
        yield replace(followed, number=numbered[followed.number][0])
