import numpy as np
import pytest

from srft.data.sampling import dealt, draw_frames, mixture, unusable
from srft.data.sequence import Sequence


def sequence(absent, name="s"):
    absent = np.asarray(absent, bool)
    return Sequence(name=name, frames=np.zeros((len(absent), 4, 4, 3), np.uint8), boxes=np.ones((len(absent), 4)), absent=absent)


def draws(absent, rule, max_gap, count=4000):
    rng = np.random.default_rng(0)
    return np.array([drawn for _ in range(count) if (drawn := draw_frames(rng, absent, rule, max_gap))])


def test_published_frames_by_hand():
    """Templates are uniform over visible frames but the last; so is the search frame over visible ones in t + 1 ... t + max_gap."""
    absent = np.zeros(20, bool)
    absent[[3, 7, 8]] = True
    found = draws(absent, "published", 6)
    assert (found[:, 1] > found[:, 0]).all()
    assert (found[:, 1] - found[:, 0] <= 6).all()
    assert not absent[found].any()
    counts = np.bincount(found[:, 0], minlength=20)
    assert counts[19] == 0
    assert counts[~absent][:-1].min() > 0.75 * 4000 / 16
    after_two = np.bincount(found[found[:, 0] == 2, 1], minlength=20)
    assert set(np.flatnonzero(after_two)) == {4, 5, 6}
    assert after_two[4:7].min() > 0.6 * after_two.sum() / 3


def test_published_gap_widens_by_five_until_a_frame_is_visible():
    absent = np.ones(40, bool)
    absent[[0, 1, 2, 3, 16]] = False
    found = {tuple(pair) for pair in draws(absent, "published", 2)}
    assert {(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)} <= found
    assert (3, 16) in found  # 13 apart: 2 + 5 + 5 + 5, where 3 is drawn each time
    far = np.ones(40, bool)
    far[[5, 30]] = False
    assert {tuple(pair) for pair in draws(far, "published", 3, 50)} == {(5, 30)}


def test_near_frames_stay_within_the_gap_or_are_drawn_anew():
    absent = np.zeros(12, bool)
    absent[4:9] = True
    rng = np.random.default_rng(1)
    found = [draw_frames(rng, absent, "near", 3) for _ in range(400)]
    assert None in found
    assert {b - a for a, b in filter(None, found)} == {1, 2, 3}


@pytest.mark.parametrize(("frames", "visible", "fits"), [(20, 5, True), (19, 19, False), (30, 4, False), (400, 5, True)])
def test_what_the_published_rule_asks_of_a_sequence(frames, visible, fits):
    absent = np.ones(frames, bool)
    absent[:visible] = False
    reason = unusable(sequence(absent), "published", 200)
    assert (reason is None) == fits
    if not fits:
        assert f"s has {visible} visible of {frames} frames" in str(reason)


def test_a_mixture_draws_benchmarks_by_ratio_and_sequences_alike():
    few, many = (sequence([0] * 4, "few"),), tuple(sequence([0] * 4, f"m{i}") for i in range(30))
    sequences, weights = mixture({"few": few, "many": many}, {"few": 1, "many": 3})
    assert [s.name for s in sequences] == ["few", *(f"m{i}" for i in range(30))]
    assert weights[0] / sum(weights) == pytest.approx(0.25)
    assert len({*weights[1:]}) == 1
    equal = mixture({"few": few, "many": many})[1]
    assert equal[0] / sum(equal) == pytest.approx(0.5)


def test_mixtures_that_cannot_be_are_named():
    few = (sequence([0] * 4),)
    with pytest.raises(ValueError, match=r"ratios are of \['b'\], sequences of \['a'\]"):
        mixture({"a": few}, {"b": 1})
    with pytest.raises(ValueError, match="a has 0 sequences"):
        mixture({"a": ()})
    with pytest.raises(ValueError, match="ratio 0"):
        mixture({"a": few}, {"a": 0})


def test_whole_sequences_are_dealt_evenly_and_once():
    all_of_them = tuple(range(7))
    for workers in (1, 2, 3, 7):
        shares = [dealt(all_of_them, rank, workers) for rank in range(workers)]
        assert sum(shares, ()) == all_of_them
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    with pytest.raises(ValueError, match="7 sequences for 8 workers"):
        dealt(all_of_them, 0, 8)
