from __future__ import annotations

import math

import numpy as np
import pytest

from srft.config import ConfigError, TrainConfig, from_flat
from srft.search.space import Choice, Integer, LogUniform, Space, Uniform, srft_space

BASE = TrainConfig()


def test_draws_are_valid_and_follow_the_seed() -> None:
    space = srft_space()
    space.validate(BASE)
    draws = [space.sample(np.random.default_rng(5)) for _ in range(2)]
    assert draws[0] == draws[1]
    rng = np.random.default_rng(0)
    points = [space.sample(rng) for _ in range(300)]
    for point in points:
        from_flat(point, BASE)
    for key in ("srft.rank", "srft.schedule"):
        dimension = space.dimensions[key]
        assert isinstance(dimension, Choice)
        assert {point[key] for point in points} == set(dimension.values)
    kappas = [point["srft.kappa"] for point in points]
    assert min(kappas) >= 0.25
    assert max(kappas) <= 4.0
    assert abs(np.mean(np.log(kappas))) < 0.2  # log-uniform around 1


def test_bounds_are_reached() -> None:
    rng = np.random.default_rng(0)
    assert {Integer(2, 4).sample(rng) for _ in range(100)} == {2, 3, 4}
    assert all(0.5 <= Uniform(0.5, 0.6).sample(rng) < 0.6 for _ in range(100))
    assert all(1.001 <= LogUniform(1.001, 1.002).sample(rng) <= 1.002 for _ in range(100))


@pytest.mark.parametrize(
    ("key", "dimension", "part"),
    [
        ("srft.rnk", Choice((1,)), "unknown key srft.rnk"),
        ("srft.rank", Choice((1, -2)), "srft.rank is -2"),
        ("srft.rank", Choice((1.5,)), "whole number"),
        ("srft.schedule", Choice(("power", "cubic")), "cubic"),
        ("srft.kappa", Choice(()), "no values"),
        ("srft.kappa", LogUniform(0.0, 1.0), "positive"),
        ("srft.kappa", Uniform(2.0, 1.0), "lower below the upper"),
        ("optim.lr", LogUniform(1e-4, 2.0), "optim.lr is 2.0"),
        ("srft.damping_strength", Uniform(0.0, math.inf), "finite"),
    ],
)
def test_bad_space_is_refused(key: str, dimension: object, part: str) -> None:
    with pytest.raises(ConfigError, match=r"search space, srft|search space, optim") as caught:
        Space({key: dimension}).validate(BASE)  # type: ignore[dict-item]
    assert part in str(caught.value)


def test_same_space_for_ray_tune() -> None:
    space = Space(
        {"srft.rank": Choice((4, 8)), "srft.kappa": LogUniform(0.5, 2.0), "data.max_gap": Integer(1, 3), "optim.warmup": Uniform(0, 0.1)}
    )
    domains = space.param_space()
    drawn = [{key: domain.sample() for key, domain in domains.items()} for _ in range(50)]
    assert {point["srft.rank"] for point in drawn} == {4, 8}
    assert {point["data.max_gap"] for point in drawn} == {1, 2, 3}
    assert all(0.5 <= point["srft.kappa"] <= 2.0 and 0 <= point["optim.warmup"] <= 0.1 for point in drawn)
