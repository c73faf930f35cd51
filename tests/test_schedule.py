from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srft.config import Schedule
from srft.method.schedule import prior_weight

SHAPES = get_args(Schedule)
kappas = st.floats(1e-3, 100)


@pytest.mark.parametrize(
    ("schedule", "kappa", "t", "expected"),
    [
        ("power", 1, 0.25, 0.75),
        ("power", 2, 0.5, 0.25),
        ("constant", 3, 0.9, 1.0),
        ("linear", 5, 0.25, 0.75),
        ("cosine", 1, 0.5, 0.5),
        ("cosine", 2, 0.5, 0.25),
        ("exponential", 2, 0.5, (np.exp(-1) - np.exp(-2)) / (1 - np.exp(-2))),
        ("step", 1, 0.49, 1.0),
        ("step", 1, 0.51, 0.0),
        ("step", 3, 0.26, 0.0),
    ],
)
def test_values(schedule, kappa, t, expected):
    assert prior_weight(schedule, kappa, t) == pytest.approx(expected, abs=1e-12)


@given(schedule=st.sampled_from(SHAPES), kappa=kappas)
def test_starts_at_one_ends_at_zero_never_rises(schedule, kappa):
    w = prior_weight(schedule, kappa, np.linspace(0, 1, 101))
    assert w[0] == pytest.approx(1, abs=1e-12)
    assert w[-1] == pytest.approx(1 if schedule == "constant" else 0, abs=1e-12)
    assert (np.diff(w) <= 1e-12).all()
    assert ((w >= 0) & (w <= 1)).all()


@given(schedule=st.sampled_from([s for s in SHAPES if s not in ("constant", "linear")]), low=kappas, high=kappas, t=st.floats(0, 1))
def test_larger_kappa_hands_over_earlier(schedule, low, high, t):
    low, high = sorted((low, high))
    assert prior_weight(schedule, high, t) <= prior_weight(schedule, low, t) + 1e-9


@given(schedule=st.sampled_from(SHAPES), kappa=kappas, t=st.lists(st.floats(0, 1), max_size=9))
def test_array_is_the_numbers_one_by_one(schedule, kappa, t):
    w = prior_weight(schedule, kappa, np.array(t))
    assert isinstance(w, np.ndarray)
    assert w.shape == (len(t),)
    assert w.tolist() == pytest.approx([prior_weight(schedule, kappa, x) for x in t], abs=1e-15)
    assert isinstance(prior_weight(schedule, kappa, 0.5), float)


@pytest.mark.parametrize("kappa", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("schedule", ["power", "step"])
def test_mean_over_the_run(schedule, kappa):
    t = (np.arange(20_000) + 0.5) / 20_000
    assert prior_weight(schedule, kappa, t).mean() == pytest.approx(1 / (1 + kappa), abs=1e-4)


@pytest.mark.parametrize(
    ("args", "match"), [(("power", 0.0, 0.5), "kappa"), (("power", 1.0, 1.01), "progress"), (("bent", 1.0, 0.5), "schedule")]
)
def test_bad_input(args, match):
    with pytest.raises(ValueError, match=match):
        prior_weight(*args)
    with pytest.raises(ValueError, match="progress"):
        prior_weight("constant", 1.0, float("nan"))
