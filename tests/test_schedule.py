from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.config import Schedule
from srft.method.schedule import QUANTILES, AdaptiveWeight, adaptive_weight, change, prior_weight
from srft.method.sketch import histogram_of
from srft.method.sparsity import MergedStatistics, Sketch, merge
from tests.reference.schedule import moved

SHAPES = [shape for shape in get_args(Schedule) if shape != "adaptive"]
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


def statistics(step, **magnitudes):
    """Merged statistics of arrays by group name."""
    return MergedStatistics.of(
        step, Sketch({name: histogram_of(torch.as_tensor(m, dtype=torch.float32), name) for name, m in magnitudes.items()})
    )


def settling(refreshes=12, seed=0, groups=(("a", 400), ("b", 90)), noise=2.0):
    """Running means of squared gradients, which settle; every element has its own scale."""
    rng = np.random.default_rng(seed)
    scales = {name: np.exp2(rng.normal(size=n)) for name, n in groups}
    sums = {name: np.zeros(n) for name, n in groups}
    out = []
    for k in range(1, refreshes + 1):
        for name, n in groups:
            sums[name] += (scales[name] * np.exp2(noise * rng.normal(size=n))) ** 2
        out.append(statistics(10 * k, **{name: np.sqrt(s / k) for name, s in sums.items()}))
    return out


def test_the_weight_falls_as_the_statistics_settle():
    history = settling()
    weights = [adaptive_weight(history[:k], 1.0) for k in range(len(history) + 1)]
    assert weights[:3] == [1.0, 1.0, 1.0]
    assert weights[-1] < 0.4
    assert len(set(weights)) > 5


@given(seed=st.integers(0, 10**6), kappa=st.floats(0.05, 20), scale=st.integers(-20, 20), noise=st.floats(0, 6))
@settings(max_examples=25, deadline=None)
def test_it_is_bounded_never_rises_and_depends_on_the_statistics_alone(seed, kappa, scale, noise):
    history = settling(6, seed, noise=noise)
    state, weights = AdaptiveWeight(), [1.0]
    for s in history:
        resumed = AdaptiveWeight.from_state(state.state_dict())
        state = state.after(s, kappa)
        assert resumed.after(MergedStatistics.from_bytes(s.to_bytes()), kappa).weight == state.weight
        weights.append(state.weight)
    assert all(0 <= b <= a <= 1 for a, b in pairwise(weights))
    assert weights[-1] == adaptive_weight(history, kappa)
    assert adaptive_weight(history, 2 * kappa) <= weights[-1]


def test_every_worker_layout_gives_the_same_weight():
    rng = np.random.default_rng(1)
    for workers in (2, 3):
        whole, shared = [], []
        for k in range(1, 6):
            m = torch.from_numpy(np.exp2(rng.normal(size=301) + 2 * rng.normal(size=301) / k).astype(np.float32))
            whole.append(statistics(k, a=m))
            parts = [Sketch({"a": histogram_of(m[301 * r // workers : 301 * (r + 1) // workers])}) for r in reversed(range(workers))]
            shared.append(MergedStatistics.of(k, merge(parts)))
        assert adaptive_weight(whole, 1.5) == adaptive_weight(shared, 1.5)


@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(1, 80), min_size=1, max_size=3), spread=st.floats(0, 8))
@settings(max_examples=40, deadline=None)
def test_change_is_the_reference(seed, sizes, spread):
    rng = np.random.default_rng(seed)
    before = {f"g{i}": np.exp2(spread * rng.normal(size=n)) * (rng.random(n) > 0.1) for i, n in enumerate(sizes)}
    after = {f"g{i}": np.exp2(spread * rng.normal(size=n)) for i, n in enumerate(sizes)}
    got = change(statistics(1, **before), statistics(2, **after))
    assert got == moved(before, after, QUANTILES)
    assert 0 <= got <= 1


def test_a_common_factor_is_no_change_and_one_groups_factor_is():
    rng = np.random.default_rng(2)
    a, b = np.exp2(rng.normal(size=200)), np.exp2(rng.normal(size=100))
    start = statistics(1, a=a, b=b)
    assert change(start, statistics(2, a=a, b=b)) == 0
    assert change(start, statistics(2, a=a * 2.0**-9, b=b * 2.0**-9)) == 0
    assert change(start, statistics(2, a=a, b=b * 2**0.5)) == pytest.approx(0.5 / 3, abs=0.03)
    assert change(start, statistics(2, a=a, b=b * 2**30)) == pytest.approx(1 / 3)
    assert change(start, statistics(2, c=a)) == 1
    assert change(statistics(1, a=a, b=np.zeros(0)), statistics(2, a=a, b=b)) == 0


def test_statistics_that_never_move_keep_the_prior_and_those_that_stop_lose_it():
    a, b = np.exp2(np.arange(30.0)), np.exp2(2 * np.arange(30.0))
    assert adaptive_weight([statistics(k, a=a) for k in range(1, 9)], 1.0) == 1
    stopped = [statistics(1, a=a), *(statistics(k, a=b) for k in range(2, 9))]
    weights = [adaptive_weight(stopped[:k], 1.0) for k in range(2, 9)]
    assert weights == [0.5**k for k in range(7)]


def test_adaptive_refusals():
    first = AdaptiveWeight().after(statistics(5, a=[1.0]), 1.0)
    with pytest.raises(ValueError, match="step 5 follow those of step 5"):
        first.after(statistics(5, a=[1.0]), 1.0)
    for kappa in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="kappa"):
            AdaptiveWeight().after(statistics(5, a=[1.0]), kappa)


def test_a_late_unrest_does_not_bring_the_prior_back():
    b = np.ones(300)  # most elements: the common move is theirs
    moves = [0.0, 0.5, 0.5, 0.5, 0.9]
    history = [statistics(k, a=np.full(100, 2.0**m), b=b) for k, m in enumerate(moves)]
    states, state = [], AdaptiveWeight()
    for s in history:
        state = state.after(s, 1.0)
        states.append(state)
    assert [s.weight for s in states[:4]] == [1, 1, 0.5, 0.25]
    assert states[4].smoothed > states[3].smoothed
    assert states[4].smoothed < states[4].peak
    assert states[4].weight == 0.25
