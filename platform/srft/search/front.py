"""Trials by two measures at once: their Pareto front, their order for a selection, and how much a front covers. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["at_best", "by_fronts", "hypervolume", "pareto_front"]


def at_best(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Two measures of a trial at the epoch that is best by the first, the earliest of equals.

    Args:
        first: after each epoch.
        second: likewise; epochs of which it is not known may be lacking at the end.

    Returns:
        Both; not-a-number where there is none.
    """
    epochs = [epoch for epoch, value in enumerate(first) if not math.isnan(value)]
    if not epochs:
        return math.nan, math.nan
    best = max(epochs, key=lambda epoch: first[epoch])
    return first[best], second[best] if best < len(second) else math.nan


def pareto_front(points: np.ndarray) -> np.ndarray:
    """Which points no other is better than: as high in every column, and higher in one.

    Args:
        points: ``[N, M]``, larger is better; rows with a NaN are on no front.

    Returns:
        ``[N]`` bool. Of equal points all are on the front.
    """
    front = np.zeros(len(points), bool)
    for i, point in enumerate(np.asarray(points, np.float64)):
        better = (points >= point).all(1) & (points > point).any(1)
        front[i] = not (np.isnan(point).any() or better.any())
    return front


def by_fronts(points: Mapping[int, Sequence[float]]) -> list[int]:
    """Trials from the best down: front by front, and on each those with the most room around them first (Deb et al. 2002, NSGA-II).

    By one measure that is its order.

    Args:
        points: measures by trial, larger is better; as many of each. Trials of which one is NaN come last.

    Returns:
        The trials; of equal room the lower index first. The ends of a front have all the room there is.
    """
    known = {index: point for index, point in points.items() if not any(map(math.isnan, point))}
    if 0 < len(known) < len(points):
        return by_fronts(known) + by_fronts({index: point for index, point in points.items() if index not in known})
    left, order = dict(sorted(points.items())), []
    while left:
        values = np.nan_to_num(np.array(list(left.values()), np.float64), nan=-math.inf)
        front = pareto_front(values)
        on_front = [index for index, on in zip(left, front, strict=True) if on]
        order += [index for _, index in sorted(zip(-_room(values[front]), on_front, strict=True))]
        left = {index: point for index, point in left.items() if index not in on_front}
    return order


def _room(points: np.ndarray) -> np.ndarray:
    # Crowding distance: of every measure the distance of both neighbours, in units of the front's extent.
    room = np.zeros(len(points))
    for column in points.T if points.shape[1] > 1 else ():
        order = np.argsort(column, kind="stable")
        low, high = column[order[[0, -1]]]
        room[order[[0, -1]]] = math.inf
        if -math.inf < low < high:
            room[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / (high - low)
    return room


def hypervolume(points: np.ndarray, reference: Sequence[float]) -> float:
    """Area that points cover: of all pairs of measures above a reference, how much is no better than one of them.

    Args:
        points: ``[N, 2]``, larger is better.
        reference: both measures of a corner; points that are not above it add nothing.

    Returns:
        Area in the product of the measures' units.
    """
    low, high = reference
    covered, top = 0.0, high
    for first, second in sorted(map(tuple, points), reverse=True):
        if first > low and second > top:
            covered += (first - low) * (second - top)
            top = second
    return covered
