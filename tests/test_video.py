from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srft.data.depth import depth_image
from srft.data.thermal import thermal_image
from srft.data.video import ImageFolder, VideoFrames, natural_key, open_frames, video_writer


def moving(count, width=64, height=48):
    """Frames with a bright square that moves right by four pixels a frame, on a colour of its own."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames[...] = (40, 90, 160)
    for t in range(count):
        frames[t, 16:32, 4 * t : 4 * t + 12] = (250, 220, 30)
    return frames


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "new" / "clip.mp4"
    with video_writer(path, fps=12, width=64, height=48) as writer:
        for frame in moving(10):
            writer.write(frame)
    return path


def test_a_video_comes_back_frame_by_frame_in_any_order(clip):
    frames, written = VideoFrames(clip), moving(10)
    assert len(frames) == 10
    assert frames.fps == 12
    for index in (0, 1, 2, 7, 3, 3, 9, 0, -1):
        frame = frames[index]
        assert frame.dtype == np.uint8
        assert np.abs(frame.astype(int) - written[index]).mean() < 6  # lossy
        nearest = min(range(10), key=lambda t: np.abs(frame.astype(int) - written[t]).mean())
        assert nearest == index % 10
    with pytest.raises(IndexError, match="frame 10 of 10"):
        frames[10]


def test_avi_too(tmp_path):
    with video_writer(tmp_path / "clip.avi", fps=10, width=64, height=48) as writer:
        writer.write(moving(1)[0])
    assert np.abs(open_frames(tmp_path / "clip.avi")[0].astype(int) - moving(1)[0]).mean() < 6


def test_a_video_is_whole_or_absent(tmp_path):
    path = tmp_path / "clip.mp4"
    with pytest.raises(ValueError, match="frame 1 is uint8"), video_writer(path, fps=10, width=64, height=48) as writer:
        [writer.write(frame) for frame in (moving(1)[0], moving(1)[0, :-1])]
    with pytest.raises(ValueError, match="no frame was written"), video_writer(path, fps=10, width=64, height=48):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"clip\.gif: .*\.mp4 or \.avi"), video_writer(tmp_path / "clip.gif", fps=1, width=8, height=8):
        pass
    with pytest.raises(ValueError, match="0 frames per second"), video_writer(tmp_path / "a.mp4", fps=0, width=8, height=8):
        pass
    for wrong in (moving(1)[0][:, 1:], moving(1)[0].astype(np.float32)):
        with (
            pytest.raises(ValueError, match=r"frame 0 is .*; expected uint8 \[48, 64, 3\]"),
            video_writer(tmp_path / "a.mp4", fps=1, width=64, height=48) as writer,
        ):
            writer.write(wrong)


def test_what_is_no_video_is_named(tmp_path, clip):
    with pytest.raises(ValueError, match=r"none\.mp4: no such file or folder"):
        open_frames(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"text\.mp4: no frames"):
        open_frames(tmp_path / "text.mp4")
    with pytest.raises(ValueError, match="8-bit pictures, not depth"):
        open_frames(clip, pixels="depth")
    with pytest.raises(ValueError, match="pixels is 'sound'"):
        open_frames(clip, pixels="sound")


def test_a_cut_off_video_says_where_it_ends(tmp_path):
    """Motion JPEG keeps the number of frames where the cut does not reach."""
    path, noise = tmp_path / "clip.avi", np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), np.uint8)
    with video_writer(path, fps=10, width=64, height=48) as writer:
        for frame in noise:
            writer.write(frame)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = VideoFrames(path)
    with pytest.raises(ValueError, match=rf"clip\.avi: frame \d+ of {len(frames)} cannot be decoded"):
        [frames[i] for i in range(len(frames))]


@given(st.lists(st.integers(0, 10**12), unique=True), st.sampled_from(["{}", "a{}b", "IMG_{}.x9"]))
def test_numbers_in_names_are_compared_as_numbers(numbers, pattern):
    names = [pattern.format(number) for number in numbers]
    assert sorted(names, key=natural_key) == [pattern.format(number) for number in sorted(numbers)]


def test_any_two_names_can_be_compared():
    names = ["10", "a", "9", "a10", "A2", "", "2b", "b2"]
    assert sorted(names, key=natural_key) == ["", "2b", "9", "10", "a", "A2", "a10", "b2"]


def test_a_folder_is_read_in_natural_order(tmp_path):
    for number in (10, 2, 1, 33):
        cv2.imwrite(str(tmp_path / f"frame{number}.png"), np.full((4, 6, 3), (number, 0, 200), np.uint8))
    (tmp_path / "groundtruth.txt").write_text("1,2,3,4")
    (tmp_path / "._frame5.png").write_text("left by another system")
    folder = ImageFolder(tmp_path)
    assert [folder[i][0, 0].tolist() for i in range(len(folder))] == [[200, 0, n] for n in (1, 2, 10, 33)]  # BGR on disk, RGB here


@pytest.mark.parametrize(
    ("image", "pixels", "expected"),
    [
        (np.arange(24, dtype=np.uint8).reshape(4, 6), "picture", lambda a: np.repeat(a[..., None], 3, 2)),
        (np.arange(24, dtype=np.uint8).reshape(4, 6), "thermal", lambda a: np.repeat(a[..., None], 3, 2)),
        (np.arange(96, dtype=np.uint8).reshape(4, 6, 4), "picture", lambda a: a[..., 2::-1]),
        (np.arange(24, dtype=np.uint16).reshape(4, 6) * 100, "depth", depth_image),
        (np.arange(24, dtype=np.uint16).reshape(4, 6) * 100, "thermal", thermal_image),
    ],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, image, pixels, expected):
    cv2.imwrite(str(tmp_path / "0.png"), image)
    got = ImageFolder(tmp_path, pixels=pixels)[0]
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected(image))


def test_images_that_are_something_else_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        ImageFolder(tmp_path / "none")
    with pytest.raises(ValueError, match="no image in it"):
        ImageFolder(tmp_path)
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((4, 6), np.uint16))
    with pytest.raises(ValueError, match=r"0\.png: uint16 pixels; expected 8 bits.*--aux-pixels"):
        ImageFolder(tmp_path)[0]
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((4, 6), np.uint8))
    with pytest.raises(ValueError, match=r"0\.png: depth is uint8"):
        ImageFolder(tmp_path, pixels="depth")[0]
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:20])
    with pytest.raises(ValueError, match=r"0\.png: truncated"):
        ImageFolder(tmp_path)[0]


def test_one_video_read_by_several_threads_gives_each_its_frames(tmp_path):
    """Two at once in one decoder would end the process."""
    path = tmp_path / "steps.avi"
    with video_writer(path, fps=25, width=32, height=32) as writer:
        for level in range(200):
            writer.write(np.full((32, 32, 3), level, np.uint8))
    frames = VideoFrames(path)
    wanted = np.random.default_rng(0).permutation(200)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda i: float(frames[int(i)].mean()), wanted))
    np.testing.assert_allclose(found, wanted, atol=3)
