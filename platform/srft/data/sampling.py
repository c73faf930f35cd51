"""Which frames make a pair: a visible template frame, then a later visible search frame of the same sequence."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from srft.config import PUBLISHED_FRAMES, PairRule
from srft.data.sequence import Sequence

__all__ = ["dealt", "draw_frames", "draw_sequence", "mixture", "unusable"]

_PUBLISHED_VISIBLE, _PUBLISHED_WIDENING = 2 * (1 + 1) + 1, 5


def unusable(sequence: Sequence, rule: PairRule, max_gap: int) -> str | None:
    """Whether pairs can be drawn from a sequence.

    Args:
        sequence: the sequence.
        rule: by which rule, see :func:`draw_frames`.
        max_gap: largest distance between the two frames.

    Returns:
        None if they can, else the reason.
    """
    visible = int(np.count_nonzero(~sequence.absent))
    if rule == "published":
        if visible >= _PUBLISHED_VISIBLE and len(sequence) >= PUBLISHED_FRAMES:
            return None
        return (
            f"sequence {sequence.name} has {visible} visible of {len(sequence)} frames; the published rule needs at least "
            f"{_PUBLISHED_VISIBLE} of {PUBLISHED_FRAMES}: leave the sequence out or set data.pairs to near"
        )
    if (gap := sequence.shortest_gap) > max_gap:
        return (
            f"sequence {sequence.name} has {visible} visible frames, the nearest {gap:g} apart; "
            f"training needs two at most max_gap = {max_gap} apart: raise data.max_gap or leave the sequence out"
        )
    return None


def draw_frames(rng: np.random.Generator, absent: np.ndarray, rule: PairRule, max_gap: int) -> tuple[int, int] | None:
    """Draw template and search frame.

    * ``near``: the template uniformly among visible frames but the last, the search frame uniformly among visible ones at most
      ``max_gap`` later. Where none is visible, None: draw the sequence anew.
    * ``published`` (OSTrack and its descendants, with ``max_gap`` 200): the template t uniformly among visible frames but the
      sequence's last, the search frame among visible ones in t + 1, ..., t + max_gap + g. Where none is visible, g grows by 5 and both
      are drawn anew.

    Args:
        rng: drawn from.
        absent: ``[T]`` bool of a sequence that :func:`unusable` has nothing against.
        rule: which.
        max_gap: frames.

    Returns:
        The two frames.
    """
    visible = np.flatnonzero(~absent)
    if rule == "near":
        first = int(visible[rng.integers(len(visible) - 1)])
        later = visible[(visible > first) & (visible <= first + max_gap)]
        return (first, int(later[rng.integers(len(later))])) if len(later) else None
    first_of = visible[visible < len(absent) - 1]
    while True:
        first = int(first_of[rng.integers(len(first_of))])
        later = visible[(visible > first) & (visible <= first + max_gap)]
        if len(later):
            return first, int(later[rng.integers(len(later))])
        max_gap += _PUBLISHED_WIDENING


def draw_sequence(rng: np.random.Generator, count: int, weights: tuple[float, ...]) -> int:
    """Draw a sequence.

    Args:
        rng: drawn from.
        count: how many there are.
        weights: shares of the draws; all alike when empty.

    Returns:
        Its index.
    """
    if not weights:
        return int(rng.integers(count))
    edges = np.cumsum(weights)
    return min(int(np.searchsorted(edges, rng.random() * edges[-1], side="right")), count - 1)


def dealt(sequences: tuple[Sequence, ...], rank: int, world_size: int) -> tuple[Sequence, ...]:
    """One worker's share of whole sequences: neighbours, which share the shards of a pack, and as many as any other's or one less.

    Args:
        sequences: of all workers.
        rank: this worker.
        world_size: workers.

    Returns:
        Its sequences.

    Raises:
        ValueError: there are fewer sequences than workers.
    """
    if len(sequences) < world_size:
        raise ValueError(f"{len(sequences)} sequences for {world_size} workers; expected at least one for each, or data.spread=all")
    return sequences[rank * len(sequences) // world_size : (rank + 1) * len(sequences) // world_size]


def mixture(
    benchmarks: Mapping[str, tuple[Sequence, ...]], ratios: Mapping[str, float] | None = None
) -> tuple[tuple[Sequence, ...], tuple[float, ...]]:
    """Mix benchmarks: one is drawn by its ratio, then one of its sequences, all alike.

    Args:
        benchmarks: sequences by benchmark, those that no pair can be drawn from left out.
        ratios: relative to each other; all alike when None.

    Returns:
        All sequences, and the weight of each: what ``PairSampler`` takes.

    Raises:
        ValueError: a benchmark has no sequences, or a ratio is missing, unknown or not positive.
    """
    ratios = dict.fromkeys(benchmarks, 1.0) if ratios is None else ratios
    if set(ratios) != set(benchmarks):
        raise ValueError(f"ratios are of {sorted(ratios)}, sequences of {sorted(benchmarks)}; expected one ratio for each benchmark")
    for name, sequences in benchmarks.items():
        if not sequences or not 0 < ratios[name] < np.inf:
            raise ValueError(f"{name} has {len(sequences)} sequences and ratio {ratios[name]}; expected at least one and a positive ratio")
    weights = tuple(ratios[name] / len(sequences) for name, sequences in benchmarks.items() for _ in sequences)
    return tuple(s for sequences in benchmarks.values() for s in sequences), weights
