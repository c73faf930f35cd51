"""Rungs and who goes on from them."""

import math

from hypothesis import given
from hypothesis import strategies as st

from srft.search.halving import expected_epochs, promotable, rungs


def test_rungs() -> None:
    assert rungs(16, grace=1, reduction=2) == [1, 2, 4, 8]
    assert rungs(17, grace=1, reduction=4, bracket=1) == [4, 16]
    assert rungs(16, grace=3, reduction=3) == [3, 9]
    assert rungs(4, grace=4, reduction=2) == []


def test_the_best_of_those_that_reached_a_rung_go_on() -> None:
    curves = {0: [0.1], 1: [0.4], 2: [0.3], 3: [0.2, 0.5], 4: [], 5: [math.nan]}
    assert promotable(curves, [1, 2, 4], reduction=2) == [1, 2]  # the third place of five is no half
    assert promotable({**curves, 4: [0.9, 0.1, 0.1]}, [1, 2, 4], reduction=2) == [1, 2]  # 4 has left both rungs
    assert promotable({**curves, 4: [0.9, 0.1]}, [1, 2, 4], reduction=2) == [4, 1, 2]  # its best counts, also at the higher rung
    assert promotable(curves, [1, 2, 4], reduction=5) == [1]
    assert promotable({0: [0.5]}, [1], reduction=2) == []


def test_with_two_measures_fronts_go_on_before_what_they_beat() -> None:
    first = {0: [0.9], 1: [0.5], 2: [0.7], 3: [0.6], 4: [0.4]}
    second = {0: [0.1], 1: [0.8], 2: [0.5], 3: [0.4], 4: [0.9]}  # 3 alone is beaten, by 2
    assert promotable(first, [1, 2], reduction=2, second=second) == [0, 4]  # the ends
    assert promotable({**first, 5: [0.1]}, [1], reduction=2, second={**second, 5: [0.1]}) == [0, 4, 2]  # then the one with most room
    later = {**first, 0: [0.9, 0.2]}
    assert promotable(later, [1], reduction=2, second={**second, 0: [0.1, 0.9]}) == [4]  # 0 has left the rung; its first epoch counts there
    unknown = {0: [math.nan], 1: [0.5], 2: [0.6], 3: [0.7]}
    assert promotable(unknown, [1], reduction=2, second={0: [0.9], 1: [math.nan], 2: [0.6], 3: [0.5]}) == [2, 3]


def test_epochs_that_halving_comes_to() -> None:
    assert expected_epochs(16, 16, at=[1, 2, 4, 8], reduction=2) == 16 * 1 + 8 * 1 + 4 * 2 + 2 * 4 + 1 * 8
    assert expected_epochs(3, 8, at=[1, 2], reduction=4) == 3 + 1 + 6  # one goes on to the end
    assert expected_epochs(5, 4, at=[], reduction=2) == 20
    assert expected_epochs(0, 4, at=[1], reduction=2) == 0


@given(st.dictionaries(st.integers(0, 20), st.lists(st.floats(0, 1), max_size=5), max_size=12), st.integers(2, 4))
def test_a_rung_is_left_by_its_share_and_by_no_worse_trial_than_those_that_stay(curves, reduction) -> None:
    at = rungs(6, grace=1, reduction=reduction)
    going = promotable(curves, at, reduction=reduction)
    assert len(set(going)) == len(going)
    for rung in at:
        reached = [i for i in curves if len(curves[i]) >= rung]
        here = [i for i in going if len(curves[i]) == rung]
        assert len(here) <= len(reached) // reduction
        stay = [i for i in reached if len(curves[i]) == rung and i not in going]
        assert not here or not stay or min(max(curves[i]) for i in here) >= max(max(curves[i]) for i in stay)
