"""Pareto fronts in order, and what they cover."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srft.search.front import by_fronts, hypervolume

MEASURES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=9)


def beats(first, second) -> bool:
    return first[0] >= second[0] and first[1] >= second[1] and first != second


@given(MEASURES)
def test_nobody_comes_before_one_that_beats_it(points) -> None:
    order = by_fronts(dict(enumerate(points)))
    assert sorted(order) == list(range(len(points)))
    for place, index in enumerate(order):
        assert not any(beats(points[other], points[index]) for other in order[place + 1 :])


def test_ends_first_then_where_there_is_room_and_nan_last() -> None:
    front = {7: (1.0, 0.0), 3: (0.9, 0.5), 1: (0.85, 0.55), 2: (0.0, 1.0)}  # room 0.7 and 1.4
    assert by_fronts({**front, 0: (math.nan, 0.9), 9: (0.1, 0.1)}) == [2, 7, 1, 3, 9, 0]
    assert by_fronts({0: (0.9, math.nan), 1: (0.5, 0.5), 2: (math.nan, math.nan), 3: (0.95, math.nan)}) == [1, 3, 0, 2]
    assert by_fronts({4: (0.5, 0.5), 2: (0.5, 0.5)}) == [2, 4]
    assert by_fronts({}) == []


@given(MEASURES, st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_area_is_that_of_the_squares_below_the_points(points, corner) -> None:
    squares = [(i, j) for i in range(6) for j in range(6) if i >= corner[0] and j >= corner[1]]
    covered = sum(any(x > i and y > j for x, y in points) for i, j in squares)
    assert hypervolume(np.array(points, float), corner) == pytest.approx(covered)
