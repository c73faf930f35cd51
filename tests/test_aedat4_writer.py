import numpy as np
import pytest

from srft.data import davis_cars
from srft.data.events import EVENT_DTYPE, Recording, read_aedat4, read_events
from srft.data.events.aedat4_writer import write_aedat4


def assert_equal(read: Recording, written: Recording) -> None:
    np.testing.assert_array_equal(read.frames, written.frames)
    np.testing.assert_array_equal(read.frame_times, written.frame_times)
    for name in EVENT_DTYPE.names:
        np.testing.assert_array_equal(read.events[name], written.events[name])


def test_a_real_recording_comes_back_through_the_library(tmp_path):
    recording = davis_cars.load_recording()
    path = tmp_path / "folder" / "cars.aedat4"
    write_aedat4(path, recording)
    assert_equal(read_aedat4(path), recording)
    stream = read_events(path)
    assert stream.frames.shape[1:] == (260, 346)
    assert [p.name for p in path.parent.iterdir()] == ["cars.aedat4"]


@pytest.mark.parametrize(("frames", "events"), [(1, 1), (3, 7), (2, 200)])
def test_small_recordings_and_their_exposures_come_back(tmp_path, frames, events):
    rng = np.random.default_rng(events)
    stream = np.zeros(events, EVENT_DTYPE)
    stream["t"] = np.sort(rng.integers(0, 90_000, events))
    stream["x"], stream["y"], stream["p"] = rng.integers(0, 9, events), rng.integers(0, 5, events), rng.integers(0, 2, events)
    times = 30_000 * np.arange(1, frames + 1)
    recording = Recording(
        frames=rng.integers(0, 256, (frames, 5, 9)).astype(np.uint8),
        frame_times=times,
        events=stream,
        exposures=np.stack([times - 4000, times + 4000], 1),
    )
    write_aedat4(tmp_path / "a.aedat4", recording, packet_us=1000)
    read = read_aedat4(tmp_path / "a.aedat4")
    assert_equal(read, recording)
    np.testing.assert_array_equal(read.exposures, recording.exposures)
