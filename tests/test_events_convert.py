"""``srft events``: summaries, frame times, and images of whole recordings."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import cv2
import numpy as np
import pytest

import srft.cli
from srft.commands import events as command_module
from srft.commands.events import Events, run
from srft.data import events as ev
from srft.data.events import convert, windows
from tests.reference import event_files as encode

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "events"
RECORDING, TUMBLING = DATA / "davis346.aedat4", DATA / "dvs.es"
needs_recording = pytest.mark.skipif(not RECORDING.is_file(), reason=f"no recording at {RECORDING}")
needs_tumbling = pytest.mark.skipif(not TUMBLING.is_file(), reason=f"no recording at {TUMBLING}")


def load(folder):
    images = sorted(folder.glob("frame*"))
    return np.stack([np.load(path) if path.suffix == ".npy" else cv2.imread(str(path))[..., ::-1] for path in images])


@pytest.fixture
def small(tmp_path):
    """A DAT recording of 1,000 events in 0.1 s on 12x9 pixels."""
    rng = np.random.default_rng(0)
    times = np.sort(rng.integers(1_000, 101_000, 1_000))
    times[[0, -1]] = 1_000, 100_999
    columns = (times, rng.integers(12, size=1_000), rng.integers(9, size=1_000), rng.integers(2, size=1_000))
    path = tmp_path / "small.dat"
    path.write_bytes(encode.dat(list(zip(*(column.tolist() for column in columns), strict=True)), 12, 9))
    return path


def test_the_command_offers_all_representations():
    assert get_args(get_type_hints(Events, vars(command_module))["representation"]) == tuple(ev.REPRESENTATIONS)


@needs_recording
def test_real_recording_becomes_59_images(tmp_path, capsys):
    out = tmp_path / "dvs"
    run(Events(recording=RECORDING, out=out, json=tmp_path / "summary.json"))
    printed = capsys.readouterr().out
    assert "AEDAT 4, sensor 346x260" in printed
    assert "78,830 events" in printed
    assert "59 frames, 25.00 per second, exposed for 0.50 ms" in printed
    assert "59 frames of polarity, window interval; 59 written now, 1 without events" in printed
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["events"], summary["frames"], summary["width"], summary["height"]) == (78_830, 59, 346, 260)

    recording = ev.read_aedat4(RECORDING)
    expected = [ev.polarity_image(recording.events[s], 260, 346) for s in ev.frame_windows(recording.events["t"], recording.frame_times)]
    assert np.array_equal(load(out), np.stack(expected))

    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "frame0007.png").unlink()
    run(Events(recording=RECORDING, out=out))
    assert "1 written now" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    with pytest.raises(ValueError, match=r"made otherwise .*representation polarity instead of red_blue"):
        run(Events(recording=RECORDING, out=out, representation="red_blue"))


@needs_recording
def test_red_blue_images_show_the_exposure(tmp_path, capsys):
    run(Events(recording=RECORDING, out=tmp_path / "dvs", representation="red_blue"))
    assert "window exposure" in capsys.readouterr().out
    recording = ev.read_aedat4(RECORDING)
    for image, (start, stop) in zip(load(tmp_path / "dvs"), recording.exposures, strict=True):
        inside = recording.events[(recording.events["t"] >= start) & (recording.events["t"] < stop)]
        assert np.array_equal(image, ev.event_image(inside, 260, 346))


@needs_tumbling
def test_real_event_stream_needs_a_rate(tmp_path, capsys):
    with pytest.raises(ValueError, match="has no frames to go by; give their times with --frames FILE, or a rate with --fps 25"):
        run(Events(recording=TUMBLING, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert "473,225 events, 57.1 % brighter, in 0.999 s" in capsys.readouterr().out
    run(Events(recording=TUMBLING, out=tmp_path / "out", representation="counts", fps=10.0))
    counts = load(tmp_path / "out")
    assert counts.shape == (10, 2, 240, 320)
    assert counts.sum() == 473_225


@pytest.mark.parametrize("representation", ev.REPRESENTATIONS)
@pytest.mark.parametrize("option", [{}, {"duration": 30_000}, {"count": 50}])
def test_windows_of_the_command(tmp_path, small, representation, option):
    out = tmp_path / "out"
    run(Events(recording=small, out=out, fps=50.0, representation=representation, bins=3, tau=5_000.0, **option))
    events = ev.read_events(small).events
    times = windows.regular_times(1_000, 100_999, 50.0)
    assert times.tolist() == [21_000, 41_000, 61_000, 81_000, 101_000]
    own = {"time_surface": {"tau": 5_000.0}, "voxel_grid": {"bins": 3}}.get(representation, {})
    expected = []
    for i, stop in enumerate(times.tolist()):
        start = stop - option["duration"] if "duration" in option else stop - 20_000
        inside = events[(events["t"] >= start) & (events["t"] < stop)]
        edges = {"start": start, "stop": stop}
        if "count" in option:
            inside, edges = events[events["t"] < stop][-50:], {}
        elif not option and i == 0:
            assert start == 1_000
        expected.append(ev.represent(representation, inside, 9, 12, **edges, **own))
    assert np.array_equal(load(out), np.stack(expected))
    manifest = json.loads((out / convert.MANIFEST).read_text())
    assert manifest["recording"] == "small.dat"
    assert manifest["frames"] == 5


def test_frame_times_and_exposures_from_a_file(tmp_path, small):
    table = tmp_path / "times.csv"
    table.write_text("# taken by the camera beside\nstart,stop\n\n2000,4000\n10000,30001\n")
    times, exposures = convert.read_frame_times(table)
    assert times.tolist() == [3000, 20_000]
    assert exposures.tolist() == [[2000, 4000], [10_000, 30_001]]
    run(Events(recording=small, out=tmp_path / "out", frames=table, window="exposure", representation="counts"))
    when = ev.read_events(small).events["t"]
    assert load(tmp_path / "out").sum(axis=(1, 2, 3)).tolist() == [np.sum((when >= a) & (when < b)) for a, b in exposures]
    table.write_text("0.002\n0.0205\n")
    times, exposures = convert.read_frame_times(table)
    assert times.tolist() == [2_000, 20_500]
    assert exposures is None


@pytest.mark.parametrize("text", ["12\n12.04\n13\n", "# s\nbegin,end\n11.999,12\n12,12.08\n13,13\n"])
def test_whole_numbers_among_fractions_are_seconds(tmp_path, text):
    """As written with %g: a file has one unit."""
    path = tmp_path / "times.txt"
    path.write_text(text)
    assert convert.read_frame_times(path)[0].tolist() == [12_000_000 - 500 * ("," in text), 12_040_000, 13_000_000]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no frame times"),
        ("1\n2\nx\n", "line 3 is 'x'"),
        ("1 2 3\n", "line 1 has 3 values"),
        ("1\n2,3\n", "line 2 has 2 values; expected 1"),
        ("5\n4\n", r"line 2 is \[4\] after \[5\]"),
        ("5,4\n", r"line 1 is \[5, 4\]"),
    ],
)
def test_bad_frame_times_are_named(tmp_path, text, words):
    path = tmp_path / "times.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        convert.read_frame_times(path)
    assert str(path) in str(caught.value)


def test_files_that_are_not_in_order_need_sort(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("30,1,1,1\n10,2,2,0\n20,0,0,1\n")
    command = Events(recording=path, out=tmp_path / "out", fps=1e5, representation="counts")
    with pytest.raises(ValueError, match=r"event 1: its time is 10.*srft events --sort"):
        run(command)
    run(dataclasses.replace(command, sort=True))
    assert load(tmp_path / "out").shape == (3, 2, 3, 3)
    assert load(tmp_path / "out").sum(axis=(1, 2, 3)).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": Path("x"), "fps": 25.0}, "--frames and --fps"),
        ({"fps": 25.0, "duration": 5, "count": 5}, "give one"),
        ({"fps": 25.0, "window": "interval", "count": 5}, "give one"),
        ({"fps": 25.0, "window": "exposure"}, "needs exposures"),
        ({"fps": -1.0}, "-1.0 frames per second"),
        ({"fps": 0.0}, "0.0 frames per second"),
        ({"frames": Path("x"), "fps": 0.0}, "--frames and --fps"),
        ({"fps": 25.0, "count": 0}, "windows of 0 events"),
    ],
)
def test_contradicting_options_are_named(tmp_path, small, options, words):
    with pytest.raises(ValueError, match=words):
        run(Events(recording=small, out=tmp_path / "out", **options))


def test_a_folder_of_other_files_is_not_written_to(tmp_path, small):
    out = tmp_path / "out"
    run(Events(recording=small, out=out, fps=50.0))
    (out / convert.MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        run(Events(recording=small, out=out, fps=50.0))
    (out / convert.MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"holds frames but no events\.json"):
        run(Events(recording=small, out=out, fps=50.0))
    shutil.rmtree(out)
    run(Events(recording=small, out=out, fps=50.0))
    assert len(load(out)) == 5


def test_no_events_is_a_summary_too(tmp_path, capsys):
    path = tmp_path / "none.dat"
    path.write_bytes(encode.dat([], 12, 9))
    run(Events(recording=path))
    assert "sensor 12x9\n  no events\n" in capsys.readouterr().out


def test_errors_of_the_command_line_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["srft", "events", str(tmp_path / "gone.es")])
    with pytest.raises(SystemExit, match=r"^error: .*gone\.es: no such file"):
        srft.cli.main()
