import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.data.crops import Window, crop_reduced, cut, cut_stored
from srft.data.depth import depth_image
from srft.data.images import ImageError, ImageFrames, StoredFrame, StoredFrames, StoredImage, decode, decode_frame, jpeg_layout


def scene(height=150, width=203, seed=0):
    """Smooth, coloured, no two places alike."""
    rng = np.random.default_rng(seed)
    fine = cv2.resize(rng.normal(0, 1, (9, 11, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 60 * fine + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)


def jpeg(image, *options, quality=92):
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality, *options])[1].tobytes()


def png(image):
    return cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)[1].tobytes()


def image(data, rendering="image"):
    return StoredImage(data, rendering, "a/0001")


SUBSAMPLINGS = {
    "420": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "422": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "440": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "444": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
}


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_upper_rows_are_the_same_bytes_as_those_of_the_whole_image(subsampling):
    data = jpeg(scene(), cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SUBSAMPLINGS[subsampling])
    whole = decode(image(data)).pixels
    np.testing.assert_array_equal(whole, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB))
    fewer = 0
    for rows in (-5, 0, 1, 15, 16, 17, 31, 32, 33, 64, 100, 149, 150, 400):
        part = decode(image(data), rows=rows)
        assert (part.height, part.width) == (150, 203)
        assert len(part.pixels) >= min(rows, 150)
        fewer += len(part.pixels) < 150
        np.testing.assert_array_equal(part.pixels[: max(rows, 0)], whole[: max(rows, 0)])
    assert fewer >= 8


@pytest.mark.parametrize("options", [(cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 3)])
def test_other_orders_of_rows_are_decoded_right(options):
    data = jpeg(scene(), *options)
    whole = decode(image(data)).pixels
    np.testing.assert_array_equal(decode(image(data), rows=40).pixels[:40], whole[:40])


def test_one_channel_becomes_three():
    grey = scene()[..., 0]
    data = cv2.imencode(".jpg", grey)[1].tobytes()
    got = decode(image(data), rows=20).pixels
    np.testing.assert_array_equal(got[:20, :, 0], cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)[:20])
    assert (got == got[..., :1]).all()
    np.testing.assert_array_equal(decode(image(png(grey))).pixels, np.repeat(grey[..., None], 3, 2))


@settings(max_examples=60, deadline=None)
@given(st.integers(-90, 230), st.integers(-90, 170), st.integers(1, 260), st.booleans())
def test_a_square_of_a_stored_frame_equals_that_of_the_decoded_one(left, top, side, part):
    square = Window(left, top, side)
    whole = StoredFrame((image(JPEG_PAIR[0]), image(JPEG_PAIR[1])))
    stored = StoredFrame(whole.images, (190, 260), (21, 17)) if part else whole
    np.testing.assert_array_equal(cut_stored(stored, square), cut(decode_frame(stored), square))


JPEG_PAIR = jpeg(scene(seed=1)), jpeg(scene(seed=2))


def test_a_part_of_a_frame_stands_at_its_corner():
    stored = StoredFrame((image(png(scene())),), (190, 260), (21, 17))
    frame = decode_frame(stored)
    np.testing.assert_array_equal(frame[17 : 17 + 150, 21 : 21 + 203], scene())
    assert frame.shape == (190, 260, 3)
    assert frame.sum() == scene().sum()


@pytest.mark.parametrize("side", [128, 150, 300, 700])
def test_a_reduced_crop_is_near_the_antialiased_crop_and_not_shifted(side):
    """Beside the mean over all pixels (INTER_AREA); shifted by one output pixel it is farther off."""
    frame = cv2.GaussianBlur(scene(480, 640), (0, 0), 4)
    square = Window(40, 30, side)
    got = crop_reduced(StoredFrame((image(jpeg(frame, quality=100)),)), square, 64).astype(float)
    expected = cv2.resize(cut(frame, square), (64, 64), interpolation=cv2.INTER_AREA).astype(float)
    inner = np.s_[2:-2, 2:-2] if side < 440 else np.s_[2:36, 2:50]
    error = np.abs(got - expected)[inner].mean()
    assert error < 1.5
    assert all(np.abs(np.roll(got, shift, axis) - expected)[inner].mean() > 1.5 * error for shift in (-1, 1) for axis in (0, 1))


def test_a_crop_that_hardly_shrinks_is_not_reduced():
    assert crop_reduced(StoredFrame((image(JPEG_PAIR[0]),)), Window(0, 0, 127), 64) is None


def test_depth_is_rendered_from_all_pixels_whatever_rows_are_asked_for():
    depth = np.random.default_rng(0).integers(500, 9000, (40, 50)).astype(np.uint16)
    for name, options in {"depth:jet": {}, "depth:jet:bgr": {"order": "bgr"}, "depth:raw": {"encoding": "raw"}}.items():
        got = decode(image(png(depth), name), rows=10, reduce=4)
        np.testing.assert_array_equal(got.pixels, depth_image(depth, **options))


@pytest.mark.parametrize("rows", [None, 30])
def test_truncated_and_damaged_images_are_named(rows):
    data, other = jpeg(scene()), png(scene())
    bmp = cv2.imencode(".bmp", scene())[1].tobytes()
    for bad in (data[: len(data) // 2], data[:40], b"", b"\xff\xd8", b"text", other[: len(other) // 2], bmp[: len(bmp) // 2]):
        with pytest.raises(ImageError, match=r"a/0001: .*copy (it|the file) again"):
            decode(image(bad), rows=rows)


@pytest.mark.parametrize("channels", [1, 3])
def test_thermal_jpegs_are_shown_as_they_are_and_damage_is_named(channels):
    """The infrared images of LasHeR and RGBT234: the same bytes for any rows, at full size."""
    shown = scene()[..., :channels].squeeze()
    data = cv2.imencode(".jpg", shown)[1].tobytes()
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(decode(image(data, "thermal"), reduce=4).pixels, expected)
    np.testing.assert_array_equal(decode(image(data, "thermal"), rows=40).pixels[:40], expected[:40])
    middle = len(data) // 2
    for bad in (data[:middle], data[:middle] + b"\xff\xd9", data[:middle] + b"\xff\xd9" + data[middle + 2 :]):
        with pytest.raises(ImageError, match=r"a/0001: .*copy (it|the file) again"):
            decode(image(bad, "thermal"))


def test_bytes_between_pixels_and_end_marker_are_no_damage():
    data = jpeg(scene())
    padded = data[:-2] + b"\x00" * 7 + data[-2:]
    np.testing.assert_array_equal(decode(image(padded)).pixels, decode(image(data)).pixels)


def test_a_rendering_that_does_not_fit_is_named():
    deep = png(np.zeros((8, 8), np.uint16))
    with pytest.raises(ImageError, match="rendering is 'sonar'"):
        decode(image(deep, "sonar"))
    with pytest.raises(ImageError, match=r"a/0001.*depth:jet"):
        decode(image(png(scene()), "depth:jet"))


def test_a_header_longer_than_the_first_read_is_followed():
    data = jpeg(scene())
    comments = (b"\xff\xfe" + (65000).to_bytes(2, "big") + b"x" * 64998) * 3
    assert jpeg_layout(data[:2] + comments + data[2:], "n")[:2] == (150, 203)
    np.testing.assert_array_equal(decode(image(data[:2] + comments + data[2:]), rows=9).pixels[:9], decode(image(data)).pixels[:9])


def test_frames_in_folders_are_read_when_asked_for(tmp_path):
    for folder in ("rgb", "x"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            (tmp_path / folder / f"{i}.jpg").write_bytes(jpeg(scene(seed=i + 10 * (folder == "x"))))
    names = ("0.jpg", "1.jpg", "2.jpg")
    frames = ImageFrames(folders=(tmp_path / "rgb", tmp_path / "x"), names=(names, names))
    assert isinstance(frames, StoredFrames)
    assert len(frames) == 3
    assert frames[2].shape == (150, 203, 6)
    np.testing.assert_array_equal(frames[2][..., :3], decode(image(jpeg(scene(seed=2)))).pixels)
    (tmp_path / "x" / "1.jpg").write_bytes(jpeg(scene(100, 203)))
    with pytest.raises(ImageError, match=r"x/1.jpg is 203 x 100 pixels, .*rgb/1.jpg 203 x 150"):
        frames[1]
    (tmp_path / "x" / "1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.jpg"):
        frames[1]
    with pytest.raises(ValueError, match=r"hold \[3, 2\] frames"):
        ImageFrames(folders=(tmp_path / "rgb", tmp_path / "x"), names=(names, names[:2]))
