import re

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from srft.data.depth import depth_image
from tests.reference import depth as reference

FRAMES = hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 20_000))


@settings(max_examples=60, deadline=None)
@given(FRAMES)
def test_levels_are_those_of_the_slow_reference_rounded(frame):
    before = frame.copy()
    image = depth_image(frame, encoding="normalized")
    np.testing.assert_array_equal(frame, before)
    assert image.shape == (*frame.shape, 3)
    assert image.dtype == np.uint8
    assert (image[..., :1] == image).all()
    assert np.abs(image[..., 0] - reference.levels(frame)).max() <= 0.501


@settings(max_examples=30, deadline=None)
@given(FRAMES)
def test_the_colour_map_shows_the_levels_and_is_sound_in_both_orders(frame):
    levels, rgb = depth_image(frame, encoding="normalized")[..., 0], depth_image(frame)
    np.testing.assert_array_equal(depth_image(frame, order="bgr"), rgb[..., ::-1])
    assert rgb.flags.c_contiguous
    for level, color in zip(levels.ravel(), rgb.reshape(-1, 3), strict=True):
        assert np.abs(np.array(reference.jet(float(level))) - color).max() <= 6  # OpenCV's table is jet in 64 steps


def test_near_is_blue_and_far_is_red_in_rgb_order():
    image = depth_image(np.array([[500, 1000, 1500]], np.uint16))
    assert image[0, 0, 2] > 100 > image[0, 0, 0]
    assert image[0, -1, 0] > 100 > image[0, -1, 2]


def test_the_median_clips_and_ten_metres_clip():
    frame = np.full((3, 3), 1000, np.uint16)
    frame[0] = (500, 2000, 60_000)  # median 1000: 60 m is 3 m
    assert depth_image(frame, encoding="normalized")[0, :, 0].tolist() == [0, 153, 255]
    far = np.array([[5000, 10_000, 65_535]], np.uint16)
    assert depth_image(far, encoding="normalized")[0, :, 0].tolist() == [0, 255, 255]
    assert depth_image(far, encoding="raw")[0, :, 0].tolist() == [128, 255, 255]


def test_holes_are_level_zero_and_do_not_erase_a_frame_that_is_mostly_holes():
    frame = np.zeros((10, 10), np.uint16)
    frame[0, :4] = (1000, 2000, 2000, 3000)
    for encoding in ("normalized", "raw"):
        image = depth_image(frame, encoding=encoding)
        assert (image[frame == 0] == 0).all()
        assert (np.diff(image[0, [0, 1, 3], 0].astype(int)) > 0).all()
    assert (depth_image(np.zeros((4, 4), np.uint16), encoding="normalized") == 0).all()
    assert (depth_image(np.full((4, 4), 700, np.uint16), encoding="normalized") == 0).all()


def test_scaling_all_depths_changes_nothing_below_ten_metres():
    frame = np.random.default_rng(0).integers(100, 1600, (20, 30)).astype(np.uint16)
    np.testing.assert_array_equal(depth_image(frame), depth_image(frame * 2))
    assert not np.array_equal(depth_image(frame, encoding="raw"), depth_image(frame * 2, encoding="raw"))


def test_a_16_bit_png_goes_through(tmp_path):
    frame = np.random.default_rng(0).integers(0, 9000, (24, 32)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "00000001.png"), frame)
    read = cv2.imread(str(tmp_path / "00000001.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(depth_image(read), depth_image(frame))


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (np.zeros((4, 5), np.uint8), "uint8 [4, 5]; expected uint16 [H, W] in millimetres; 8-bit is a picture"),
        (np.zeros((4, 5), np.float32), "float32 [4, 5]; expected uint16 [H, W] in millimetres; turn metres into millimetres"),
        (np.zeros((4, 5, 3), np.uint16), "uint16 [4, 5, 3]"),
        (np.zeros((0, 5), np.uint16), "empty, [0, 5]"),
    ],
)
def test_other_frames_are_refused(frame, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        depth_image(frame)


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match=r"'jett'.*'jet', 'normalized', 'raw'"):
        depth_image(np.zeros((2, 2), np.uint16), encoding="jett")
    with pytest.raises(ValueError, match=r"'gbr'.*'rgb', 'bgr'"):
        depth_image(np.zeros((2, 2), np.uint16), order="gbr")
