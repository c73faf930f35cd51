import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.data.crops import box_in_crop, crop
from tests.reference import crops as reference

FRAME = np.random.default_rng(0).integers(0, 256, (40, 50, 6), np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.floats(-30, 60), st.floats(-30, 60), st.floats(1, 30), st.floats(1, 30), st.sampled_from([2.0, 4.0, 5.0]))
def test_crop_equals_the_pixel_by_pixel_one_anywhere(left, top, width, height, factor):
    box = np.array([left, top, width, height])
    got, got_factor = crop(FRAME, box, factor, 32)
    expected, expected_factor = reference.crop(FRAME, box, factor, 32)
    assert got_factor == expected_factor
    np.testing.assert_array_equal(got, expected)


def test_the_last_column_is_left_out_when_the_crop_reaches_it():
    frame = np.full((20, 20, 3), 200, np.uint8)
    patch, _ = crop(frame, np.array([10.0, 5.0, 10.0, 10.0]), 1.0, 10)
    assert (patch[:, -1] == 0).all()
    assert (patch[:, :-1] == 200).all()


@pytest.mark.parametrize("box", [[0, 0, 0, 5], [0, 0, -3, -3], [np.nan, 0, 5, 5], [0, 0, np.inf, 5]])
def test_an_impossible_box_is_named(box):
    with pytest.raises(ValueError, match="positive size"):
        crop(FRAME, np.array(box, float), 4.0, 32)


def test_box_in_crop_is_centred_for_its_own_crop_and_follows_shifts():
    around = np.array([10.0, 12.0, 8.0, 6.0])
    own = box_in_crop(around, around, 4.0, 128)
    np.testing.assert_allclose(own, [63.5 / 128, 63.5 / 128, 32 / 128, 24 / 128], rtol=1e-6)
    moved = box_in_crop(around + np.array([2, -1, 0, 0]), around, 4.0, 128)
    np.testing.assert_allclose((moved - own) * 128, [8, -4, 0, 0], atol=1e-4)
