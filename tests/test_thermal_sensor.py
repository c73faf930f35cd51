import dataclasses

import numpy as np
import pytest

from srft.data.synthetic.scene import SUBFRAMES, build
from srft.data.synthetic.textures import keyed
from srft.data.synthetic.thermal_sensor import measure_temperature, temperatures, warm_up


def warmed(wanted: str, count: int):
    """The first scenes of a situation."""
    out = []
    for index in range(400):
        made = build(keyed(3, index), "target-test", seed=3, length=8)
        thermal = warm_up(keyed(9, index), made)
        if thermal.situation == wanted:
            out.append((made, thermal))
        if len(out) == count:
            return out
    raise AssertionError(wanted)


def contrast(made, thermal, moment):
    """Target's mean above the wall's, kelvin."""
    area, patch = made.target.warp(made.target.sprite, moment)
    inside = np.zeros((120, 160), bool)
    area.of(inside)[patch[..., 3] > 0.5] = True
    hidden = dataclasses.replace(thermal, radiators=tuple(r for r in thermal.radiators if r.body is made.target))
    seen = temperatures(made, hidden, moment)
    return seen[inside].mean() - (thermal.air + thermal.backdrop.mean())


def test_targets_differ_from_their_surroundings_except_in_a_cross_over():
    usual = [abs(contrast(*pair, 0)) for pair in warmed("", 15)]
    assert np.median(usual) > 2
    crossing = warmed("thermal cross-over", 15)
    least = [min(abs(contrast(*pair, m)) for m in range(len(pair[0]))) for pair in crossing]
    assert np.median(least) < 1
    change = [contrast(*pair, 0) * contrast(*pair, len(pair[0]) - 1) for pair in crossing]
    assert sum(c < 0 for c in change) >= 3  # the warmer one becomes the colder one


def test_counts_are_centikelvin_of_the_blurred_scene():
    ((made, thermal),) = warmed("", 1)
    still = dataclasses.replace(made, camera=0 * made.camera)
    frozen = dataclasses.replace(thermal, radiators=())
    counts = measure_temperature(keyed(1), still, frozen)
    assert counts.shape == (8, 120, 160)
    assert counts.dtype == np.uint16
    np.testing.assert_allclose(counts.mean() / 100, temperatures(still, frozen, 0).mean(), atol=0.05)
    noise = (counts[0].astype(float) - counts[1]).std() / 100 / np.sqrt(2)
    assert 0.03 < noise < 0.11


def test_what_moves_leaves_a_trail():
    """After a jump the pixel has gone 1 - exp(-t / 10 ms) of the way."""
    ((made, thermal),) = warmed("", 1)
    still = dataclasses.replace(made, camera=0 * made.camera)
    frozen = dataclasses.replace(thermal, radiators=())
    jump = still.camera.copy()
    jump[2 * SUBFRAMES - 1 :, 0] = 10.0
    moved = dataclasses.replace(still, camera=jump)
    counts = measure_temperature(keyed(1), moved, frozen).astype(float)
    before, during, after = counts[0], counts[1], counts[-1]
    way = after - before
    clear = np.abs(way) > 100
    assert clear.sum() > 50
    share = np.median((during - before)[clear] / way[clear])
    assert share == pytest.approx(1 - np.exp(-1000 / 30 / SUBFRAMES / 10), abs=0.05)


def test_metal_mirrors_the_sky():
    cold = 0
    for _, thermal in warmed("", 25):
        for radiator in thermal.radiators:
            steady = radiator.layers[..., 1]
            assert steady.max() <= 0
            cold += steady.min() < 4 * steady.max() - 0.5
    assert cold > 5
