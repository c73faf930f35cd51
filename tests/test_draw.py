"""How points are drawn: even, complete, better than chance, near where they came from; never outside the space."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.config import TrainConfig
from srft.search.draw import Observation, grid, perturb, propose, random, sobol
from srft.search.space import Choice, Integer, LogUniform, Space, Uniform, srft_space, wide_space
from srft.settings import from_flat

MIXED = Space({"srft.kappa": LogUniform(0.1, 10.0), "srft.rank": Choice((4, 8, 16)), "srft.schedule": Choice(("power", "cosine"))})


def inside(space, point):
    for key, dimension in space.dimensions.items():
        value = point[key]
        if isinstance(dimension, Choice):
            assert value in dimension.values
        else:
            assert dimension.low <= value <= dimension.high
            assert isinstance(value, int) or not isinstance(dimension, Integer)


@pytest.mark.parametrize("draws", [random, sobol])
def test_draws_follow_the_seed_and_the_first_ones_do_not_depend_on_the_count(draws):
    few, many = draws(srft_space(), 5, 3), draws(srft_space(), 20, 3)
    assert many[:5] == few
    assert draws(srft_space(), 5, 4) != few
    assert draws(srft_space(), 0, 3) == []
    for point in many:
        inside(srft_space(), point)
        from_flat(point, TrainConfig())


@pytest.mark.parametrize("seed", range(8))
def test_no_point_is_drawn_twice_while_the_space_has_others(seed):
    space = Space({"srft.rank": Choice((4, 8, 16)), "data.max_gap": Integer(1, 4)})
    points = random(space, 14, seed)
    assert {tuple(point.values()) for point in points[:12]} == {tuple(point.values()) for point in grid(space, 4)}
    assert random(space, 10, seed) == points[:10]
    for point in points:
        inside(space, point)


def test_sobol_points_are_spread_evenly():
    space = Space({"srft.damping_strength": Uniform(0.0, 1.0), "srft.kappa": LogUniform(0.01, 100.0), "data.max_gap": Integer(1, 4)})
    points = sobol(space, 64, 0)
    assert sorted(int(8 * p["srft.damping_strength"]) for p in points) == [i for i in range(8) for _ in range(8)]
    assert sorted(int(4 * (math.log10(p["srft.kappa"]) + 2) / 4) for p in points) == [i for i in range(4) for _ in range(16)]
    assert [[p["data.max_gap"] for p in points].count(i) for i in (1, 2, 3, 4)] == [16] * 4


def test_a_grid_has_every_combination_once():
    points = grid(MIXED, 3)
    assert len(points) == 3 * 3 * 2
    assert len({tuple(p.items()) for p in points}) == 18
    assert {p["srft.kappa"] for p in points} == {0.1, 1.0, 10.0}
    assert [p["srft.schedule"] for p in points[:2]] == ["power", "cosine"]


def worth(point):
    return -abs(math.log10(point["srft.kappa"])) - abs(point["srft.rank"] - 8) / 8 - (point["srft.schedule"] == "power")


def test_proposals_find_what_random_draws_do_not():
    def search(seed):
        seen = []
        for i in range(30):
            point = propose(MIXED, seen, seed=1000 * seed + i)
            inside(MIXED, point)
            seen.append(Observation(point=point, state="finished", values=(worth(point),)))
        return [one.values[0] for one in seen]

    runs = [search(seed) for seed in range(3)]
    chance = [worth(point) for point in random(MIXED, 300, 0)]
    assert np.mean([run[15:] for run in runs]) > np.quantile(chance, 0.7)
    assert search(1) == runs[1]  # nothing else decides


def test_proposals_learn_from_stopped_and_earlier_trials_and_pass_over_those_of_other_spaces():
    points = random(MIXED, 60, 1)
    stopped = [Observation(point=p, state="stopped", curve=(worth(p) - 1, worth(p))) for p in points]
    strange = [
        Observation(point={"srft.rank": 8}, state="finished", values=(9.0,)),
        Observation(point={**points[0], "srft.kappa": 99.0}, state="finished", values=(9.0,)),
        Observation(point=points[0], state="finished", values=(math.nan,)),
        Observation(point=points[1], state="failed"),
        Observation(point=points[2], state="running", curve=(math.nan,)),
    ]
    proposed = [propose(MIXED, [*stopped, *strange], seed=i) for i in range(20)]
    assert np.mean([worth(p) for p in proposed]) > np.quantile([worth(p) for p in points], 0.8)


def test_two_objectives_are_proposed_along_their_front():
    rng = np.random.default_rng(0)
    space = Space({"srft.kappa": LogUniform(0.1, 10.0), "srft.damping_strength": Uniform(0.0, 1.0)})
    both = lambda p: (-math.log10(p["srft.kappa"]) - p["srft.damping_strength"], math.log10(p["srft.kappa"]) - p["srft.damping_strength"])
    seen = [Observation(point=p, state="finished", values=both(p)) for p in (space.sample(rng) for _ in range(60))]
    proposed = [propose(space, seen, seed=i, objectives=2) for i in range(25)]
    assert np.mean([p["srft.damping_strength"] for p in proposed]) < 0.3  # bad for both
    assert np.ptp([math.log10(p["srft.kappa"]) for p in proposed]) > 0.8  # a compromise


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_perturbed_points_stay_in_the_space(seed, resample):
    rng = np.random.default_rng(seed)
    space = Space({**wide_space().dimensions, "data.max_gap": Integer(1, 9)})
    inside(space, perturb(space, space.sample(rng), rng, resample=resample))


def test_without_resampling_every_setting_moves_one_step():
    rng = np.random.default_rng(0)
    space = Space({**MIXED.dimensions, "data.max_gap": Integer(1, 9)})
    point = {"srft.kappa": 1.0, "srft.rank": 8, "srft.schedule": "power", "data.max_gap": 2}
    seen = [perturb(space, point, rng, resample=0.0) for _ in range(50)]
    assert {p["srft.kappa"] for p in seen} == {0.8, 1.2}
    assert {p["srft.rank"] for p in seen} == {4, 16}
    assert {p["srft.schedule"] for p in seen} == {"power"}
    assert {p["data.max_gap"] for p in seen} == {1, 3}
    edge = {**point, "srft.kappa": 10.0, "srft.rank": 16}
    assert {p["srft.kappa"] for p in (perturb(space, edge, rng, resample=0.0) for _ in range(20))} == {8.0, 10.0}
