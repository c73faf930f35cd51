from __future__ import annotations

import math

import numpy as np
import pytest

from srft.config import ConfigError, TrainConfig
from srft.search.space import Choice, Integer, LogUniform, Space, Uniform, parse_space, srft_space, wide_space
from srft.settings import from_flat

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
        ("srft.rank", LogUniform(4, 64), "expected a whole number"),
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


def test_places_of_the_unit_interval() -> None:
    dimensions = (Choice(("a", "b", "c")), Integer(2, 4), Uniform(-1.0, 3.0), LogUniform(0.01, 100.0))
    ends = [(dimension.at(0.0), dimension.at(1 - 1e-12)) for dimension in dimensions]
    assert ends == [("a", "c"), (2, 4), (-1.0, pytest.approx(3.0)), (0.01, 100.0)]
    assert LogUniform(0.01, 100.0).at(0.5) == 1.0
    counts = [[dimension.at(i / 300) for i in range(300)].count(value) for dimension, value in zip(dimensions[:2], ("b", 3), strict=True)]
    assert counts == [100, 100]
    assert [list(dimension.levels(3)) for dimension in dimensions] == [["a", "b", "c"], [2, 3, 4], [-1.0, 1.0, 3.0], [0.01, 1.0, 100.0]]
    assert list(Integer(1, 2).levels(5)) == [1, 2]


def test_the_wide_space_is_valid() -> None:
    space = wide_space()
    space.validate(BASE)
    assert {"paradigm", "srft.damping_range", *srft_space().dimensions} < space.dimensions.keys()
    rng = np.random.default_rng(0)
    assert {from_flat(space.sample(rng), BASE).paradigm for _ in range(40)} == {"srft", "srft-lora", "srft-adapter", "srft-prompt"}


def test_a_space_from_the_command_line() -> None:
    space = parse_space(
        [
            "srft.rank=4,16",
            "paradigm=srft,srft-lora",
            "srft.kappa=0.25..4:log",
            "optim.weight_decay=0..1.5",
            "data.max_gap=1..4",
            "srft.damping_range=[0.25,0.65],[0,0.5]",
            "srft.refresh=1..20:log",
        ]
    )
    assert list(space.dimensions.values()) == [
        *(Choice((4, 16)), Choice(("srft", "srft-lora")), LogUniform(0.25, 4), Uniform(0, 1.5), Integer(1, 4)),
        *(Choice(((0.25, 0.65), (0, 0.5))), LogUniform(1, 20)),
    ]
    Space({key: one for key, one in space.dimensions.items() if key != "srft.refresh"}).validate(BASE)
    for wrong in ("srft.rank", "srft.rank=", "srft.kappa=1..", "srft.kappa=a..b", "srft.kappa=1..2:exp"):
        with pytest.raises(ConfigError, match="--vary"):
            parse_space([wrong])
    assert parse_space(["tracker.pretrained=tiny_rgb,../own.safetensors"]).dimensions["tracker.pretrained"] == Choice(
        ("tiny_rgb", "../own.safetensors")
    )
    with pytest.raises(ConfigError, match=r"srft\.rank is given twice"):
        parse_space(["srft.rank=4", "srft.rank=16"])
