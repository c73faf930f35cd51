"""Frames on disk that are not as the synthetic trees have them."""

import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from srft.data.benchmarks import DataError, made
from srft.data.benchmarks.made import EventImages, VideoFile
from srft.data.events import EVENT_DTYPE, Recording, aedat4_writer, represent
from srft.data.events.aedat4_writer import write_aedat4
from srft.data.video import video_writer


def coloured(pixels, time, start, begin, end):
    # Table Frame as of a colour camera: format 16 (8 bits, 3 channels) at the end of the table.
    height, width = pixels.shape
    vtable = struct.pack("<13H", 26, 56, 12, 20, 28, 36, 44, 52, 4, 6, 0, 0, 8)
    table = struct.pack("<ihhI5qb3x", 26, width, height, 48, time, start, end, begin, end, 16)
    frame = struct.pack("<I", 3 * pixels.size) + np.repeat(pixels, 3).tobytes()
    content = struct.pack("<I4s6x", 40, b"FRME") + vtable + table + frame
    return struct.pack("<I", len(content)) + content


@pytest.mark.parametrize("colour", [False, True])
def test_event_images_need_no_frames_of_the_recording_but_their_times(tmp_path, monkeypatch, colour):
    if colour:
        monkeypatch.setattr(aedat4_writer, "_frame", coloured)
    rng = np.random.default_rng(0)
    events = np.zeros(2000, EVENT_DTYPE)
    events["t"], events["x"], events["y"] = np.sort(rng.integers(0, 90_000, 2000)), rng.integers(0, 10, 2000), rng.integers(0, 8, 2000)
    events["p"] = rng.integers(0, 2, 2000)
    times = np.array([10_000, 40_000, 70_000])
    exposures = np.stack([times - 1000, times + 1000], 1)
    recording = Recording(frames=np.zeros((3, 8, 10), np.uint8), frame_times=times, events=events, exposures=exposures)
    starts = times - 8000  # a DAVIS begins with a frame well before it exposes it; FE108's images are cut there
    write_aedat4(tmp_path / "a.aedat4", recording, starts=starts)
    for representation, edges in (("red_blue", exposures[1:]), ("three_windows", [(2000, 32_000), (32_000, 62_000)])):
        images = EventImages(tmp_path / "a.aedat4", representation, 1)
        assert len(images) == 2
        for image, (start, stop) in zip((images[0], images[1]), edges, strict=True):
            window = events[(events["t"] >= start) & (events["t"] < stop)]
            assert len(window)
            np.testing.assert_array_equal(image, represent(representation, window, 8, 10, start=int(start), stop=int(stop)))


def test_a_recording_without_exposures_is_named(tmp_path):
    """Every image would be white."""
    events, times = np.zeros(5, EVENT_DTYPE), np.array([10_000, 40_000])
    events["t"] = np.arange(5) * 10_000
    write_aedat4(tmp_path / "a.aedat4", Recording(frames=np.zeros((2, 8, 10), np.uint8), frame_times=times, events=events))
    with pytest.raises(DataError, match=r"a\.aedat4: does not say how long its frames were exposed"):
        EventImages(tmp_path / "a.aedat4", "red_blue", 0)
    assert (EventImages(tmp_path / "a.aedat4", "three_windows", 0)[1] != 127).any()


def test_a_recording_without_frames_is_named(tmp_path):
    recording = Recording(
        frames=np.empty((0, 8, 10), np.uint8), frame_times=np.empty(0, np.int64), events=np.zeros(5, EVENT_DTYPE), exposures=None
    )
    write_aedat4(tmp_path / "a.aedat4", recording)
    with pytest.raises(DataError, match=r"a\.aedat4: 0 frames, and the sequence starts at frame 0"):
        EventImages(tmp_path / "a.aedat4", "red_blue", 0)


def test_recordings_are_read_once_and_let_go_when_there_is_no_room(tmp_path, monkeypatch):
    """Sequences are gone through several at a time, each in a thread."""
    times = np.array([10_000, 40_000, 70_000])
    for number in range(3):
        events = np.zeros(100 + number, EVENT_DTYPE)
        events["t"] = np.linspace(0, 90_000, len(events)).astype(np.int64)
        frames = np.zeros((3, 8, 10), np.uint8)
        write_aedat4(tmp_path / f"{number}.aedat4", Recording(frames=frames, frame_times=times, events=events))
    read, real = [], made._read
    monkeypatch.setattr(made, "_read", lambda path: (read.append(path.name), real(path))[1])
    monkeypatch.setattr(made, "_RECORDINGS", kept := made._Recordings(room=10_000))
    images = [EventImages(tmp_path / f"{number}.aedat4", "three_windows", 0) for number in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda i: images[i % 3][i // 3], range(9)))
    assert sorted(read) == ["0.aedat4", "1.aedat4", "2.aedat4"]
    kept.room = 1
    assert images[1][0].shape == (8, 10, 3)
    assert len(kept._kept) == 1


def test_a_file_that_takes_the_place_of_another_is_read(tmp_path):
    for name, count in (("a", 3), ("b", 5)):
        with video_writer(tmp_path / f"{name}.avi", fps=10, width=16, height=16) as writer:
            for _ in range(count):
                writer.write(np.full((16, 16, 3), 40 * count, np.uint8))
    old = VideoFile(tmp_path / "a.avi")
    assert (len(old), int(old[0].mean())) == (3, pytest.approx(120, abs=3))
    (tmp_path / "b.avi").replace(tmp_path / "a.avi")
    new = VideoFile(tmp_path / "a.avi")
    assert (len(new), int(new[4].mean())) == (5, pytest.approx(200, abs=3))
