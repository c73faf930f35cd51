"""Many sequences tracked from their first boxes to their ends, several in each forward pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from srft.data.frames import Frame, read_ahead
from srft.data.sequence import Sequence
from srft.evaluation.online import BatchTracker, Precision, Tracked, Trajectory
from srft.model.tracker import MultiModalTracker

__all__ = ["Followed", "follow", "track_sequences"]


@dataclass(frozen=True, kw_only=True)
class Followed:
    """One of several sequences, tracked to its end or to where that failed."""

    number: int
    """Of the sequence among those that were given."""
    trajectory: Trajectory
    seconds: np.ndarray
    """``[T]`` a frame took in the tracker; frames that were tracked together share the time equally. Decoding is not in it."""
    error: ValueError | OSError | None = None
    """Why it was not tracked to its end."""


@dataclass
class _Course:
    followed: Followed
    frames: Iterator[np.ndarray]
    at: int = 1


def follow(
    network: MultiModalTracker,
    sequences: Iterable[Sequence],
    *,
    rgb_only: bool = False,
    batch: int = 16,
    precision: Precision = "fp32",
    on_frames: Callable[[int], object] | None = None,
) -> Iterator[Followed]:
    """Track every sequence from its first groundtruth box, many at once; the next one starts when one ends.

    Args:
        network: in eval mode afterwards.
        sequences: what to track; lengths may differ.
        rgb_only: leave the auxiliary channels out.
        batch: sequences at once.
        precision: of the network.
        on_frames: called with the number of frames tracked since the last call.

    Yields:
        Each sequence when it ends. One whose frame or box cannot be read or tracked ends there, and says why; the others go on.

    Raises:
        ValueError: the batch is not positive.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch} sequences at once; expected at least 1")
    tracker = BatchTracker(network, precision=precision, rgb_only=rgb_only)
    waiting = enumerate(sequences)
    active: dict[Hashable, _Course] = {}
    while True:
        while len(active) < batch and (following := next(waiting, None)):
            number, sequence = following
            boxes = np.repeat(sequence.boxes[:1], len(sequence), 0).astype(np.float64)
            trajectory = Trajectory(name=sequence.name, boxes=boxes, scores=np.ones(len(sequence)))
            followed = Followed(number=number, trajectory=trajectory, seconds=np.zeros(len(sequence)))
            if len(sequence) < 2:
                yield followed
                continue
            try:
                first = sequence.frames[0]
                started = time.perf_counter()
                tracker.join((sequence.name, number), first, sequence.boxes[0])
            except (ValueError, OSError) as error:
                yield replace(followed, error=error)
                continue
            followed.seconds[0] = time.perf_counter() - started
            active[sequence.name, number] = _Course(followed, read_ahead(sequence.frames.__getitem__, range(1, len(sequence))))
        if not active:
            return
        frames: dict[Hashable, Frame] = {}
        failed: dict[Hashable, ValueError | OSError] = {}
        for name, course in active.items():
            try:
                frames[name] = next(course.frames)
            except (ValueError, OSError) as error:
                failed[name] = error
        started = time.perf_counter()
        found = _track(tracker, frames, failed)
        seconds = (time.perf_counter() - started) / max(1, len(found))
        for name, (box, score) in found.items():
            course = active[name]
            course.followed.trajectory.boxes[course.at], course.followed.trajectory.scores[course.at] = box, score
            course.followed.seconds[course.at] = seconds
            course.at += 1
        if on_frames:
            on_frames(len(found))
        ended = [name for name, course in active.items() if name in failed or course.at == len(course.followed.seconds)]
        for name in ended:
            tracker.leave(name)
            yield replace(active.pop(name).followed, error=failed.get(name))


def _track(tracker: BatchTracker, frames: dict[Hashable, Frame], failed: dict[Hashable, ValueError | OSError]) -> dict[Hashable, Tracked]:
    # If the frames cannot be tracked together, one by one, which shows whose fault it is.
    try:
        return tracker.track(frames)
    except ValueError:
        found: dict[Hashable, Tracked] = {}
        for name, frame in frames.items():
            try:
                found |= tracker.track({name: frame})
            except ValueError as error:
                failed[name] = error
        return found


def track_sequences(
    network: MultiModalTracker,
    sequences: Iterable[Sequence],
    *,
    rgb_only: bool = False,
    batch: int = 16,
    precision: Precision = "fp32",
    on_frames: Callable[[int], object] | None = None,
) -> list[Trajectory]:
    """Track every sequence to its end, as :func:`follow` does; the first failure is an error.

    Args:
        network: in eval mode afterwards.
        sequences: what to track; lengths may differ.
        rgb_only: leave the auxiliary channels out.
        batch: sequences at once.
        precision: of the network.
        on_frames: called with the number of frames tracked since the last call.

    Returns:
        One trajectory per sequence, in order. A frame or box that cannot be tracked is a ValueError that names the sequence; a frame that
        cannot be read may be an OSError.
    """
    tracked: dict[int, Trajectory] = {}
    for followed in follow(network, sequences, rgb_only=rgb_only, batch=batch, precision=precision, on_frames=on_frames):
        if (error := followed.error) is not None:
            raise error
        tracked[followed.number] = followed.trajectory
    return [tracked[number] for number in range(len(tracked))]
