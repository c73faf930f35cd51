import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.data.crops import box_in_crop, crop, region_side
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


def places(frame_width, frame_height):
    """A frame whose pixels say where they are: 10 times the column plus the row, plus 1."""
    columns, rows = np.meshgrid(np.arange(frame_width), np.arange(frame_height))
    return np.repeat((10 * columns + rows + 1)[..., None], 3, 2).astype(np.uint8)


@pytest.mark.parametrize(
    ("box", "factor", "columns", "rows"),
    [
        # A frame of 20 x 9 pixels; columns and rows are those of the frame in the crop, None is black.
        ([8, 2, 4, 4], 1.0, [8, 9, 10, 11], [2, 3, 4, 5]),
        ([7, 2, 4, 4], 1.25, [6, 7, 8, 9, 10], [2, 3, 4, 5, 6]),  # corner at 6.5 and 1.5: half goes to the even one, 6 and 2
        ([8, 1, 4, 4], 1.25, [8, 9, 10, 11, 12], [0, 1, 2, 3, 4]),  # 7.5 and 0.5: 8 and 0
        ([0, 1, 4, 4], 1.25, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),  # -0.5 and 0.5: both 0
        ([-1, 2, 4, 4], 1.25, [None, None, 0, 1, 2], [2, 3, 4, 5, 6]),  # -1.5 is -2
        ([2, 2, 3, 3], 0.99, [2, 3, 4], [2, 3, 4]),  # side 2.97 is 3
        ([-2, 2, 4, 4], 1.0, [None, None, 0, 1], [2, 3, 4, 5]),
        ([8, -3, 4, 4], 1.0, [8, 9, 10, 11], [None, None, None, 0]),
        ([15, 2, 4, 4], 1.0, [15, 16, 17, 18], [2, 3, 4, 5]),  # ends before the last column: all there
        ([16, 2, 4, 4], 1.0, [16, 17, 18, None], [2, 3, 4, 5]),  # ends with the last column, which is left out
        ([17, 2, 4, 4], 1.0, [17, 18, None, None], [2, 3, 4, 5]),
        ([8, 4, 4, 4], 1.0, [8, 9, 10, 11], [4, 5, 6, 7]),
        ([8, 5, 4, 4], 1.0, [8, 9, 10, 11], [5, 6, 7, None]),
        ([8, 7, 4, 4], 1.0, [8, 9, 10, 11], [7, None, None, None]),
        ([8, 8, 4, 4], 1.0, [8, 9, 10, 11], [None] * 4),  # only the last row is inside, and it is left out
        ([19, 2, 4, 4], 1.0, [None] * 4, [2, 3, 4, 5]),
        ([-4, -4, 4, 4], 1.0, [None] * 4, [None] * 4),
        ([16, 5, 4, 4], 1.0, [16, 17, 18, None], [5, 6, 7, None]),
        ([-2, -3, 13, 13], 1.0, [None, None, *range(11)], [None, None, None, *range(8), None, None]),  # taller than the frame
    ],
)
def test_hand_worked_crops_at_every_border(box, factor, columns, rows):
    frame = places(20, 9)
    patch, resize_factor = crop(frame, np.array(box, float), factor, len(columns))
    expected = [[0 if c is None or r is None else 10 * c + r + 1 for c in columns] for r in rows]
    assert resize_factor == 1
    np.testing.assert_array_equal(patch[..., 0], expected)
    np.testing.assert_array_equal(patch[..., 0], patch[..., 2])


def test_sides_are_rounded_up():
    assert [region_side(np.array([0, 0, w, h]), 4.0) for w, h in ((10, 10), (10, 10.1), (3, 7), (0.1, 0.1))] == [40, 41, 19, 1]


def allocated(frame, box):
    tracemalloc.start()
    crop(frame, box, 4.0, 128)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("corner", [(-20.0, -20.0), (60.0, 60.0)])
def test_a_crop_costs_what_is_in_it_and_not_what_is_in_the_frame(corner):
    """Of a frame of 3840 x 2160 pixels, 150 MB, no more is copied than of a small one."""
    box = np.array([*corner, 30, 30])
    small, large = np.zeros((300, 300, 6), np.uint8), np.zeros((2160, 3840, 6), np.uint8)
    assert allocated(large, box) <= allocated(small, box) + 1000
    assert allocated(large, box) < 2 * 6 * (120**2 + 128**2)


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
