"""Asynchronous successive halving (Li et al. 2020): trials pause at rungs, the best of those that reached one go on. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from srft.search.front import at_best, by_fronts

__all__ = ["expected_epochs", "promotable", "rungs"]


def rungs(total: int, *, grace: int, reduction: int, bracket: int = 0) -> list[int]:
    """Epochs after which a trial pauses.

    Args:
        total: epochs of a whole trial.
        grace: epochs before the first rung of bracket 0.
        reduction: factor from rung to rung, and from bracket to bracket.
        bracket: number of the trial's bracket (HyperBand, Li et al. 2018).

    Returns:
        Ascending, all below ``total``; empty if the bracket's first look would be too late.
    """
    found, rung = [], grace * reduction**bracket
    while rung < total:
        found.append(rung)
        rung *= reduction
    return found


def promotable(
    curves: Mapping[int, Sequence[float]], at: Sequence[int], *, reduction: int, second: Mapping[int, Sequence[float]] | None = None
) -> list[int]:
    """Trials that may go on from the rung where they are.

    Args:
        curves: measure after each finished epoch by trial, of all trials of one bracket that did not fail, paused or not.
        at: the bracket's rungs.
        reduction: the best ``1 / reduction`` of the trials that reached a rung go on from it.
        second: a second measure after the same epochs. Both of a trial's best epoch by the first count, and the best trials are those on
            the front, then those on the front of the others, and so on (Schmucker et al. 2021).

    Returns:
        Those whose last epoch is a rung, from the highest rung down, the best first.
    """
    found: list[int] = []
    for rung in reversed(at):
        reached = [index for index, curve in curves.items() if len(curve) >= rung]
        if second is None:
            best = {index: _best(curves[index][:rung]) for index in reached}
            order = sorted(best, key=lambda index: (-best[index], index))
        else:
            order = by_fronts({index: at_best(curves[index][:rung], second[index]) for index in reached})
        found += [index for index in order[: len(order) // reduction] if len(curves[index]) == rung]
    return found


def _best(values: Sequence[float]) -> float:
    return max((value for value in values if not math.isnan(value)), default=-math.inf)


def expected_epochs(count: int, total: int, *, at: Sequence[int], reduction: int) -> int:
    """What trials of a bracket come to if only the best go on from each rung.

    Args:
        count: trials.
        total: epochs of a whole trial.
        at: the bracket's rungs.
        reduction: the best ``1 / reduction`` go on, at least one of them.

    Returns:
        Epochs of all of them.
    """
    epochs, before = 0, 0
    for rung in [*at, total]:
        epochs += count * (rung - before)
        before, count = rung, max(min(count, 1), count // reduction)
    return epochs
