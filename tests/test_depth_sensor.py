import dataclasses

import numpy as np
import pytest

from srft.data.synthetic.depth_sensor import distances, measure_depth, place_in_depth
from srft.data.synthetic.scene import build
from srft.data.synthetic.textures import keyed


def scene(index: int, condition: str = "low light"):
    drawn = build(keyed(3, index), "target-test", seed=3, length=8)
    return dataclasses.replace(drawn, condition=condition)


def placed(wanted: str):
    """The first scene of a situation."""
    for index in range(200):
        made = scene(index)
        depth = place_in_depth(keyed(9, index), made)
        if depth.situation == wanted:
            return made, depth
    raise AssertionError(wanted)


def mask(body, moment):
    area, patch = body.warp(body.sprite, moment)
    out = np.zeros((120, 160), bool)
    area.of(out)[patch[..., 3] > 0.5] = True
    return out


@pytest.mark.parametrize("index", range(12))
def test_what_hides_something_is_nearer_than_it(index):
    made = scene(index)
    depth = place_in_depth(keyed(9, index), made)
    nearest = [s.distance - s.layers[..., 1].max() for s in depth.surfaces]
    assert all((a.distance > b.distance).all() for a, b in zip(depth.surfaces, depth.surfaces[1:], strict=False) if b.body is made.target)
    assert depth.backdrop[..., 0].min() >= max(s.distance.max() for s in depth.surfaces)
    assert all((n > 0.2).all() for n in nearest)
    others = [s.distance[0] for s in depth.surfaces if any(s.body is o for o in made.others)]
    assert others == sorted(others, reverse=True)
    for s in depth.surfaces:
        if any(s.body is b for b in made.bars):
            (target,) = (t for t in depth.surfaces if t.body is made.target)
            assert (s.distance < target.distance).all()


def test_the_target_comes_nearer_as_it_grows():
    made, depth = placed("")
    (target,) = (s for s in depth.surfaces if s.body is made.target)
    np.testing.assert_allclose(target.distance * made.target.size, (target.distance * made.target.size)[0])


def test_noise_grows_with_distance_and_readings_are_true_on_average():
    made, depth = placed("")
    truth = distances(made, depth, 0)[0]
    readings = np.stack([measure_depth(keyed(1, i), made, depth, range(1))[0] for i in range(80)]).astype(float)
    often = (readings > 0).mean(0) > 0.9
    seen = np.where(readings > 0, readings, np.nan)[:, often]
    error, spread = np.abs(np.nanmean(seen, 0) - 1000 * truth[often]), np.nanstd(seen, 0)
    sigma = 1000 * (0.0012 + 0.0019 * (truth[often] - 0.4) ** 2)
    assert np.quantile(error / (sigma / np.sqrt(80)), 0.99) < 4
    np.testing.assert_allclose(np.median(spread / np.hypot(sigma, 0.29)), 1, atol=0.05)  # 0.29: rounding to millimetres


def test_light_does_not_reach_beside_near_things():
    """The shadow lies on one side, as the projector stands on one side of the camera."""
    made, depth = placed("")
    readings = np.stack([measure_depth(keyed(1, i), made, depth, range(1))[0] for i in range(20)])
    truth, loss = distances(made, depth, 0)
    never = (readings == 0).all(0) & (loss < 0.5) & (truth < 6)
    assert never.any()
    rows, columns = np.nonzero(never)
    nearer_left = [truth[y, max(x - 14, 0) : x].min(initial=np.inf) < truth[y, x] for y, x in zip(rows, columns, strict=True)]
    assert np.mean(nearer_left) > 0.95


def test_situations_hide_the_target_from_the_sensor():
    share, contrast = {}, {}
    for situation in ("", "absorbing target", "out of range", "same depth"):
        made, depth = placed(situation)
        frame = measure_depth(keyed(5), made, depth, range(1))[0].astype(float)
        inside = mask(made.target, 0)
        for post in made.bars:
            inside &= ~mask(post, 0)
        share[situation] = (frame[inside] > 0).mean()
        wall = 1000 * depth.backdrop[..., 0].min()
        contrast[situation] = abs(np.median(frame[inside & (frame > 0)]) - wall) / wall if (frame[inside] > 0).any() else 0
    assert share[""] > 0.8
    assert share["absorbing target"] < 0.4
    assert share["out of range"] < 0.6
    assert contrast["same depth"] < 0.02 < contrast[""]


def test_sunlight_blinds_the_sensor_at_a_distance():
    holes = {}
    for condition in ("low light", "over-exposure"):
        holes[condition] = []
        for index in range(12):
            made = scene(index, condition)
            depth = place_in_depth(keyed(9, index), made)
            holes[condition].append((measure_depth(keyed(5, index), made, depth, range(1)) == 0).mean())
    changed = np.array(holes["over-exposure"]) > np.array(holes["low light"]) + 0.1
    assert 2 <= changed.sum() <= 10
