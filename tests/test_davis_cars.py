"""The shipped real test set: complete, sensible, and made by the script that says it made it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from srft.data import davis_cars, events

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "platform" / "srft" / "assets" / "davis_cars"
RECORDING = ROOT.parent / "shared" / "data" / "events" / "davis346.aedat4"


@pytest.fixture(scope="module")
def sequences():
    return davis_cars.load()


def test_three_sequences_of_six_channel_frames(sequences):
    assert [(s.name, len(s)) for s in sequences] == [
        ("davis_cars/light_hatchback", 58),
        ("davis_cars/white_sedan", 58),
        ("davis_cars/dark_car", 24),
    ]
    for s in sequences:
        assert s.frames[0].shape == (260, 346, 6)
        assert s.frames[0].dtype == np.uint8
        assert s.boxes.dtype == np.float64
        assert s.absent.dtype == bool
        assert not s.absent.any()
        assert np.array_equal(s.frames[3][..., 0], s.frames[3][..., 2])


def test_boxes_stay_inside_move_smoothly_and_change_size_slowly(sequences):
    for s in sequences:
        left, top, width, height = s.boxes.T
        assert (width >= 19).all()
        assert (height >= 10).all()
        assert (left >= 0).all()
        assert (top >= 0).all()
        assert (left + width <= 346).all()
        assert (top + height <= 260).all()
        assert np.abs(np.diff(s.boxes[:, :2] + s.boxes[:, 2:] / 2, n=2, axis=0)).max() < 1.0
        assert np.abs(np.diff(np.log(s.boxes[:, 2:]), axis=0)).max() < 0.05


def test_events_crowd_inside_the_boxes(sequences):
    """A box that drifted off its car would hold no more events than the road beside it."""
    for s in sequences:
        shares = []
        for frame, (left, top, width, height) in zip(s.frames, s.boxes, strict=True):
            active = frame[..., 3:].any(axis=-1)
            inside = active[int(top) : int(top + height) + 1, int(left) : int(left + width) + 1].mean()
            shares.append(inside / active.mean())
        assert min(shares) > 15


def test_boxes_differ_from_the_empty_street(sequences):
    """Under every box the frame differs from the median of all frames, outside all boxes it hardly does."""
    recording = davis_cars.load_recording()
    change = np.abs(recording.frames - np.median(recording.frames, axis=0))
    for s in sequences:
        first = 59 - len(s)
        for i, (left, top, width, height) in enumerate(s.boxes):
            inside = change[first + i, int(top) : int(top + height) + 1, int(left) : int(left + width) + 1]
            assert (inside > 10).mean() > 0.4


def test_auxiliary_image_holds_the_events_since_the_frame_before(sequences):
    recording = davis_cars.load_recording()
    assert len(recording.events) == 78_830
    t = recording.events["t"]
    member = (t >= recording.frame_times[39]) & (t < recording.frame_times[40])
    expected = events.polarity_image(recording.events[member], 260, 346)
    assert expected.any()
    assert np.array_equal(sequences[0].frames[40 - 1][..., 3:], expected)
    assert np.array_equal(sequences[2].frames[40 - 35][..., 3:], expected)
    assert np.array_equal(sequences[2].frames[40 - 35][..., 0], recording.frames[40])


@pytest.mark.parametrize("name", ["recording.npz", "dark_car.csv"])
def test_missing_file_is_named(tmp_path, name):
    shutil.copytree(ASSETS, tmp_path / "cars")
    (tmp_path / "cars" / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: missing"):
        davis_cars.load(tmp_path / "cars")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "first line"),
        ("a,b\n1,2\n", "first line"),
        ("frame,left,top,width,height,absent\n1,2,3,x,5,0\n", "not six numbers"),
        ("frame,left,top,width,height,absent\n1,2,3,4\n", "not six numbers"),
        ("frame,left,top,width,height,absent\n", "consecutive"),
        ("frame,left,top,width,height,absent\n57,1,1,9,9,0\n59,1,1,9,9,0\n", "consecutive"),
    ],
)
def test_bad_annotation_is_named(tmp_path, text, words):
    shutil.copytree(ASSETS, tmp_path / "cars")
    (tmp_path / "cars" / "white_sedan.csv").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        davis_cars.load(tmp_path / "cars")
    assert "white_sedan.csv" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 1000, 2_000_000])
def test_damaged_recording_is_named(tmp_path, keep):
    path = tmp_path / "recording.npz"
    path.write_bytes((ASSETS / "recording.npz").read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"recording\.npz: damaged"):
        davis_cars.load_recording(tmp_path)


@pytest.mark.skipif(not RECORDING.is_file(), reason=f"no recording at {RECORDING}")
def test_script_writes_the_shipped_files_again(tmp_path):
    script = ROOT / "experiments" / "annotate_davis_cars.py"
    out = tmp_path / "new"
    command = [sys.executable, str(script), "--recording", str(RECORDING), "--out", str(out), "--preview", str(tmp_path / "look.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT / "platform")}, timeout=60)
    assert done.stdout.count("\n") == 3
    assert sorted(p.name for p in out.iterdir()) == ["dark_car.csv", "light_hatchback.csv", "recording.npz", "white_sedan.csv"]
    for path in out.iterdir():
        assert path.read_bytes() == (ASSETS / path.name).read_bytes(), path.name
    assert (tmp_path / "look_dark_car.png").stat().st_size > 10_000
    real = events.read_aedat4(RECORDING)
    shipped = davis_cars.load_recording()
    assert np.array_equal(real.frames, shipped.frames)
    assert np.array_equal(real.events["t"] - real.frame_times[0], shipped.events["t"])
    assert np.array_equal(real.events[["x", "y", "p"]], shipped.events[["x", "y", "p"]])


def test_script_says_what_is_wrong_with_the_recording(tmp_path):
    script = ROOT / "experiments" / "annotate_davis_cars.py"
    command = [sys.executable, str(script), "--recording", str(tmp_path / "gone.aedat4"), "--out", str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT / "platform")}, timeout=60)
    assert done.returncode != 0
    assert "gone.aedat4: no such file" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()
