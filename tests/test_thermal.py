import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from srft.data.thermal import thermal_image
from tests.reference import depth as reference


def test_8_bit_frames_are_kept_and_copied():
    grey = np.random.default_rng(0).integers(0, 256, (6, 7)).astype(np.uint8)
    for frame in (grey, grey[..., None]):
        image = thermal_image(frame)
        assert image.shape == (6, 7, 3)
        assert (image == grey[..., None]).all()
    colored = np.random.default_rng(1).integers(0, 256, (6, 7, 3)).astype(np.uint8)
    image = thermal_image(colored)
    np.testing.assert_array_equal(image, colored)
    assert not np.shares_memory(image, colored)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8)), st.floats(0, 400), st.floats(1, 200))
def test_a_fixed_range_equals_the_slow_reference_rounded(counts, low, width):
    image = thermal_image(counts, kelvin=(low, low + width))
    assert image.dtype == np.uint8
    assert (image[..., :1] == image).all()
    assert np.abs(image[..., 0] - reference.thermal(counts, 100 * low, 100 * (low + width))).max() <= 0.51


def test_a_fixed_range_means_the_same_in_every_frame_and_percentiles_do_not():
    cold = np.full((8, 8), 29_315, np.uint16)  # 20 degrees Celsius in centikelvin
    cold[0, 0] = 30_815
    hot = cold.copy()
    hot[4:, :] = 60_000
    fixed = [thermal_image(frame, kelvin=(273.15, 313.15)) for frame in (cold, hot)]
    assert fixed[0][0, 0, 0] == fixed[1][0, 0, 0] == round(255 * 35 / 40)
    assert thermal_image(hot)[0, 0, 0] < 30
    assert thermal_image(cold // 100, kelvin=(273, 313), counts_per_kelvin=1)[1, 0, 0] == 128  # 293 K


def test_percentiles_ignore_a_few_extreme_pixels():
    counts = np.random.default_rng(0).integers(29_000, 30_000, (64, 64)).astype(np.uint16)
    plain = thermal_image(counts)
    counts[0, :3] = (0, 65_535, 65_535)
    assert np.abs(thermal_image(counts)[1:].astype(int) - plain[1:]).max() <= 1
    assert (thermal_image(np.full((3, 3), 5, np.uint16)) == 0).all()


@pytest.mark.parametrize(
    "frame", [np.zeros((4, 5), np.float32), np.zeros((4, 5, 3), np.uint16), np.zeros((4, 5, 2), np.uint8), np.zeros(4, np.uint8)]
)
def test_other_frames_are_refused(frame):
    with pytest.raises(ValueError, match=rf"{frame.dtype} \[.*expected uint8 \[H, W\]"):
        thermal_image(frame)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"percentiles": (99, 1)}, "percentiles"), ({"kelvin": (300, 300)}, "kelvin"), ({"counts_per_kelvin": 0}, "centikelvin")],
)
def test_ranges_out_of_order_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        thermal_image(np.zeros((4, 5), np.uint16), **settings)
