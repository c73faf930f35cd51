"""``srft track`` and what it is made of: clips, overlays, result files."""

import json
import os
import sys

import cv2
import numpy as np
import pytest

from srft import cli
from srft.commands.track import parse_box
from srft.data import davis_cars
from srft.data.clip import Clip, EventImages, open_clip
from srft.data.events import EVENT_DTYPE, Recording, polarity_image, represent
from srft.data.events.aedat4_writer import write_aedat4
from srft.data.events.windows import frame_windows
from srft.data.video import VideoFrames, video_writer
from srft.evaluation.online import OnlineTracker
from srft.evaluation.overlay import overlay
from srft.model.pretrained import load_tracker


@pytest.fixture(scope="module")
def car():
    return davis_cars.load()[0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, car):
    """The first frames of a car as two folders of PNG images."""
    root = tmp_path_factory.mktemp("car")
    for name, part in (("rgb", slice(0, 3)), ("aux", slice(3, 6))):
        (root / name).mkdir()
        for t in range(6):
            cv2.imwrite(str(root / name / f"{t + 8}.png"), np.ascontiguousarray(car.frames[t][..., part][..., ::-1]))
    return root


def srft(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["srft", *map(str, arguments)])
    cli.main()


def expected(car, count, streams):
    tracker = OnlineTracker(load_tracker("tiny_rgb", streams=streams))
    tracker.initialize(car.frames[0], car.boxes[0])
    return [tracker.track(frame) for frame in car.frames[1:count]]


def box_of(car):
    return ",".join(map(str, car.boxes[0]))


def test_the_shipped_car_is_followed_and_shown(monkeypatch, tmp_path, capsys, car):
    srft(monkeypatch, "track", "davis_cars:light_hatchback", "--frames", 5, "--out", tmp_path / "car.mp4", "--boxes", tmp_path / "car.json")
    said = capsys.readouterr().out
    assert said.startswith("5 frames, ")
    assert "frames/s in the tracker, 2 stream(s) on" in said
    results = json.loads((tmp_path / "car.json").read_text())
    answers = expected(car, 5, 2)
    np.testing.assert_allclose(results["boxes_ltwh"], [car.boxes[0], *(box for box, _ in answers)], atol=1e-2)
    np.testing.assert_allclose(results["scores"], [1, *(score for _, score in answers)], atol=1e-4)
    video = VideoFrames(tmp_path / "car.mp4")
    assert len(video) == 5
    assert video[4].shape == (260, 2 * 346, 3)
    assert sorted(os.listdir(tmp_path)) == ["car.json", "car.mp4"]


def test_folders_of_both_modalities_give_the_same(monkeypatch, tmp_path, folders, car):
    at = ["--init", box_of(car), "--aux", folders / "aux", "--boxes"]
    srft(monkeypatch, "track", folders / "rgb", *at, tmp_path / "car.csv")
    header, *rows = (tmp_path / "car.csv").read_text().splitlines()
    assert header == "frame,left,top,width,height,score"
    table = np.array([row.split(",") for row in rows], float)
    answers = expected(car, 6, 2)
    np.testing.assert_array_equal(table[:, 0], range(6))
    np.testing.assert_allclose(table[1:, 1:5], [box for box, _ in answers], atol=1e-2)
    np.testing.assert_allclose(table[1:, 5], [score for _, score in answers], atol=1e-4)
    srft(monkeypatch, "track", folders / "rgb", *at, tmp_path / "rgb.txt", "--rgb-only")
    table = np.loadtxt(tmp_path / "rgb.txt", delimiter=",")
    np.testing.assert_allclose(table[1:], [box for box, _ in expected(car, 6, 1)], atol=1e-2)
    assert np.loadtxt(tmp_path / "rgb_scores.txt").shape == (6,)


def test_a_part_of_a_video_is_tracked_from_a_given_box(monkeypatch, tmp_path, folders, car):
    srft(monkeypatch, "track", folders / "rgb", "--init", box_of(car), "--start", 2, "--frames", 3, "--boxes", tmp_path / "a.csv")
    rows = (tmp_path / "a.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == [2, 3, 4]
    tracker = OnlineTracker(load_tracker("tiny_rgb"))
    tracker.initialize(car.frames[2][..., :3], car.boxes[0])
    np.testing.assert_allclose([float(v) for v in rows[1].split(",")[1:5]], tracker.track(car.frames[3][..., :3]).box, atol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--init", "1,2,3,4"], "nothing would be kept"),
        (["--init", "1,2,3", "--boxes", "a.csv"], "--init is '1,2,3'; expected left,top,width,height"),
        (["--boxes", "a.csv"], "where is the target in frame 0"),
        (["--init", "1,2,3,4", "--boxes", "a.xml"], r"expected a name ending in \.txt, \.csv or \.json"),
        (["--init", "1,2,3,4", "--boxes", "a.csv", "--start", "6"], "has 6 frames, from 0"),
        (["--init", "1,2,3,4", "--boxes", "a.csv", "--fps", "0"], "--fps is 0; expected a positive rate"),
        (["--init", "1,2,3,4", "--boxes", "a.csv", "--fps", "nan"], "--fps is nan; expected a positive rate"),
        (["--init", "1,2,3,4", "--boxes", "a.csv", "--frames", "0"], "at least one frame"),
        (["--init", "900,2,3,4", "--boxes", "a.csv"], "outside the 346x260 frame"),
        (["--init", "1,2,3,4", "--boxes", "a.csv", "--weights", "large"], "no weights 'large'"),
        (["--init", "1,2,3,4", "--boxes", "a.csv", "--aux", "few"], "6 frames come with 2 auxiliary images"),
        (["--init", "1,2,3,4", "--boxes", "a.csv", "--aux", "deep"], "0.png: uint16 pixels.*--aux-pixels"),
        (["--init", "1,2,3,4", "--boxes", "a.csv", "--aux", "few", "--events", "e.npz"], "expected one auxiliary modality"),
        (["--init", "1,2,3,4", "--boxes", "a.csv", "--times", "t.txt"], "times of frames are given without events"),
        (["--init", "1,2,3,4", "--out", "a.webm"], r"ending in \.mp4 or \.avi"),
    ],
)
def test_what_a_user_can_put_right_is_one_sentence(monkeypatch, tmp_path, folders, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name, count, kind in (("few", 2, np.uint8), ("deep", 6, np.uint16)):
        (tmp_path / name).mkdir()
        for t in range(count):
            cv2.imwrite(str(tmp_path / name / f"{t}.png"), np.zeros((260, 346), kind))
    with pytest.raises(SystemExit, match=message):
        srft(monkeypatch, "track", folders / "rgb", *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "few"]


def test_boxes_are_read_as_four_numbers():
    assert parse_box("1,2.5, 3,-4e1") == [1, 2.5, 3, -40]
    with pytest.raises(ValueError, match="'a,b,c,d'"):
        parse_box("a,b,c,d")


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Events of the shipped recording as a file, the times of its frames as another."""
    source, root = davis_cars.load_recording(), tmp_path_factory.mktemp("events")
    events = source.events
    np.savez(root / "events.npz", **{name: events[name] for name in ("t", "x", "y", "p")}, height=260, width=346)
    (root / "times.txt").write_text("\n".join(map(str, source.frame_times[1:7].tolist())))
    return root


def test_events_become_the_images_that_the_shipped_sequence_holds(folders, recording, car):
    """With the times of the frames; the first window is as long as the second, as nothing is known of the frame before."""
    clip = open_clip(str(folders / "rgb"), events=recording / "events.npz", times=recording / "times.txt")
    assert clip.has_aux
    for t in range(1, 6):
        rgb, aux = clip.frame(t)
        np.testing.assert_array_equal(np.concatenate([rgb, aux], 2), car.frames[t])


def test_without_times_video_and_events_start_together(folders, recording):
    clip = open_clip(str(folders / "rgb"), events=recording / "events.npz", fps=10, representation="red_blue")
    events = davis_cars.load_recording().events
    first = events["t"][0]
    inside = events[(events["t"] >= first + 100_000) & (events["t"] < first + 200_000)]
    image = clip.frame(1)[1]
    np.testing.assert_array_equal((image != 255).any(2), polarity_image(inside, 260, 346).any(2))
    assert len(frame_windows(events["t"], np.array([first + 100_000]))) == 1


def test_another_rate_of_the_result_does_not_move_events_along_a_video(folders, recording, tmp_path):
    """The video says when its frames were."""
    frames = [cv2.imread(str(path)) for path in sorted((folders / "rgb").iterdir())]
    with video_writer(tmp_path / "a.avi", fps=10, width=346, height=260) as writer:
        for frame in frames:
            writer.write(frame)
    own, other = (open_clip(str(tmp_path / "a.avi"), events=recording / "events.npz", fps=fps) for fps in (None, 40))
    assert (own.fps, other.fps) == (10, 40)
    for t in range(len(frames)):
        np.testing.assert_array_equal(other.frame(t)[1], own.frame(t)[1])


@pytest.mark.parametrize("representation", ["polarity", "red_blue", "three_windows"])
def test_events_of_a_clip_are_shown_as_those_of_a_benchmark(representation):
    """Thirds are those of the time since the frame before, whenever the first and the last event in it were."""
    events = np.zeros(3, EVENT_DTYPE)
    events["t"], events["x"], events["p"] = [1100, 1101, 2900], [1, 2, 3], [1, 0, 1]
    recording = Recording(frames=np.empty((0, 4, 5), np.uint8), frame_times=np.empty(0, np.int64), events=events)
    images = EventImages(recording, np.array([1000, 2000, 3000]), representation=representation)
    for i, (window, start) in enumerate([(events[:0], 0), (events[:2], 1000), (events[2:], 2000)]):
        np.testing.assert_array_equal(images[i], represent(representation, window, 4, 5, start=start, stop=start + 1000))


def test_a_recording_with_frames_is_a_clip(tmp_path, recording, car):
    source = davis_cars.load_recording()
    write_aedat4(tmp_path / "cars.aedat4", source)
    clip = open_clip(str(tmp_path / "cars.aedat4"))
    assert len(clip) == 59
    assert clip.fps == pytest.approx(25, rel=0.01)
    for t in (0, 30):
        rgb, aux = clip.frame(t + 1)
        np.testing.assert_array_equal(rgb, car.frames[t][..., :3])
        np.testing.assert_array_equal(aux, car.frames[t][..., 3:])
    with pytest.raises(ValueError, match="is a recording that brings its events with it; leave folder out"):
        open_clip(str(tmp_path / "cars.aedat4"), aux="folder")


def test_a_sensor_whose_size_the_file_does_not_say_is_that_of_the_frames(tmp_path, folders):
    """Not up to the last row and column with an event."""
    (tmp_path / "events.csv").write_text("t,x,y,p\n0,1,2,1\n20000,30,20,0\n90000,3,4,1\n")
    clip = open_clip(str(folders / "rgb"), events=tmp_path / "events.csv", fps=25)
    np.testing.assert_array_equal(np.argwhere(clip.frame(0)[1]), [[2, 1, 0], [20, 30, 2]])
    (tmp_path / "events.csv").write_text("t,x,y,p\n0,1,2,1\n20000,346,20,0\n")
    with pytest.raises(ValueError, match=r"x is 346; expected less than 346"):
        open_clip(str(folders / "rgb"), events=tmp_path / "events.csv")


def test_times_and_sensors_that_do_not_fit_are_named(tmp_path, folders, recording):
    (tmp_path / "two.txt").write_text("1\n2")
    with pytest.raises(ValueError, match=r"two\.txt: 2 times for 6 frames"):
        open_clip(str(folders / "rgb"), events=recording / "events.npz", times=tmp_path / "two.txt")
    (tmp_path / "word.txt").write_text("1.5\n" * 6)
    with pytest.raises(ValueError, match=r"word\.txt: .*1\.5.*; expected one whole number"):
        open_clip(str(folders / "rgb"), events=recording / "events.npz", times=tmp_path / "word.txt")
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((10, 12, 3), np.uint8))
    with pytest.raises(ValueError, match="its sensor has 346x260 pixels, the frames 12x10"):
        open_clip(str(tmp_path), events=recording / "events.npz")


def test_shipped_sequences_have_names_and_numbers(car):
    for name in ("davis_cars:0", "davis_cars:light_hatchback"):
        clip = open_clip(name)
        np.testing.assert_array_equal(clip.frame(3), car.frames[3])
        np.testing.assert_array_equal(clip.box, car.boxes[0])
    with pytest.raises(ValueError, match="expected davis_cars: and one of light_hatchback, white_sedan, dark_car, 0, 1, 2"):
        open_clip("davis_cars:3")
    with pytest.raises(ValueError, match="brings its events with it"):
        open_clip("davis_cars:0", aux="folder")


def test_pairs_of_different_length_are_refused(car):
    with pytest.raises(ValueError, match="x: 4 frames come with 3 auxiliary images"):
        Clip(name="x", frames=car.frames[:4], aux=car.frames[:3])


def test_an_overlay_shows_both_modalities_and_the_box_on_each():
    frame = np.zeros((40, 60, 6), np.uint8)
    frame[..., :3], frame[..., 3:] = 100, 30
    box = np.array([10.0, 8, 20, 16])
    both = overlay(frame, box, aux=True)
    assert both.shape == (40, 120, 3)
    assert (both[30, 5] == 100).all()
    assert (both[30, 65] == 30).all()
    for x in (10, 30, 70, 90):
        assert both[16, x].tolist() == [80, 255, 80]
    assert overlay(frame, box).shape == (40, 60, 3)
    np.testing.assert_array_equal(overlay((frame[..., :3], frame[..., 3:]), box, aux=True), both)
    blind = overlay((None, frame[..., 3:]), box, aux=True)
    assert (blind[30, 5] == 0).all()
    assert (blind[30, 65] == 30).all()
    assert (overlay(frame, box, "7  0.93") != overlay(frame, box)).any()
    assert (frame[..., :3] == 100).all()
