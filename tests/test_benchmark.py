"""From a benchmark's folder to result files and scores, with the shipped tracker."""

import configparser
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from srft.cli import main
from srft.data import davis_cars
from srft.data.benchmarks import open_benchmark
from srft.data.native import write_native
from srft.data.sequence import Sequence
from srft.evaluation.benchmark import plan, score_runs, track_runs, write_workspace_of
from srft.evaluation.follow import follow, track_sequences
from srft.evaluation.result_files import FORMATS, runs_of, tracker_folder, write_result
from srft.evaluation.results import Files, read_results
from srft.model.pretrained import load_tracker, save_tracker
from tests.test_native import recorded

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    found = {}
    for benchmark, modality in (("lasher", "rgbt"), ("depthtrack", "rgbd"), ("vot-rgbd2022", "rgbd"), ("visevent", "rgbe")):
        found[benchmark] = tmp_path_factory.mktemp(benchmark)
        write_native(benchmark, found[benchmark], recorded(modality))
    return found


@pytest.fixture(scope="module")
def network():
    return load_tracker("tiny_rgb", streams=2)


@pytest.mark.parametrize("official", ["lasher", "depthtrack", "vot-rgbd2022", "visevent"])
def test_result_files_are_read_back_and_scored(official, roots, network, tmp_path):
    work = plan(official, roots[official], tmp_path / "mine", weights="w")
    assert len(work.todo) == len(work.runs) >= 1
    counted = []
    assert track_runs(network, work, batch=3, on_frames=counted.append) == []
    assert sum(counted) == work.frames
    again = plan(official, roots[official], tmp_path / "mine", weights="w")
    assert again.todo == ()
    names = [s.name for s in open_benchmark(official, roots[official])]
    found = read_results(Files(tmp_path / "mine"), names, tracker="mine", anchors=FORMATS[official].from_anchors)
    for run in work.runs:
        start = int(run.file.stem.rpartition("_")[2]) if FORMATS[official].from_anchors else 0
        rows = found[run.sequence.name].runs[start]
        assert len(rows) == len(run.sequence) + run.leading
        assert run.file.with_name(FORMATS[official].times.format(stem=run.file.stem)).read_text().count("\n") == len(rows)
    scores = score_runs([work])
    assert scores is not None
    assert list(scores.trackers) == ["mine"]
    assert all(0 <= value <= 1 for value in scores.trackers["mine"].measures.values())


def test_results_of_other_weights_are_refused_and_a_broken_picture_costs_one_sequence(roots, network, tmp_path):
    root = tmp_path / "LasHeR"
    shutil.copytree(roots["lasher"], root)
    first, *others = open_benchmark("lasher", root)
    pictures = sorted(root.rglob(f"{first.name}/visible/*.jpg"))
    whole = pictures[4].read_bytes()
    pictures[4].write_bytes(whole[:100])
    work = plan("lasher", root, tmp_path / "mine", weights="w")
    (failure,) = track_runs(network, work, batch=8)
    assert failure.run.sequence.name == first.name
    assert pictures[4].name in failure.error
    assert all((tmp_path / "mine" / f"{s.name}.txt").exists() for s in others)
    assert not (tmp_path / "mine" / f"{first.name}.txt").exists()
    with pytest.raises(ValueError, match=first.name):
        score_runs([work])
    pictures[4].write_bytes(whole)
    rest = plan("lasher", root, tmp_path / "mine", weights="w")
    assert [run.sequence.name for run in rest.todo] == [first.name]
    assert track_runs(network, rest) == []
    with pytest.raises(ValueError, match="holds results of weights w, precision fp32"):
        plan("lasher", root, tmp_path / "mine", weights="v", precision="bf16")
    with pytest.raises(ValueError, match="--sequences: nobody"):
        plan("lasher", root, tmp_path / "mine", weights="w", names=("nobody",))


def test_some_sequences_tracked_anew_do_not_pass_the_others_off_as_of_the_new_weights(roots, tmp_path):
    folder = tmp_path / "mine"
    work = plan("lasher", roots["lasher"], folder, weights="old")
    first, *others = work.runs
    for run in work.runs:
        run.file.write_text("1,2,3,4\n")
    only = (first.sequence.name,)
    assert len(plan("lasher", roots["lasher"], folder, weights="old", names=only, resume=False).todo) == 1
    first.file.write_text("1,2,3,4\n")
    with pytest.raises(ValueError, match=rf"weights old.* of {len(others)} sequences more .*leave --sequences out"):
        plan("lasher", roots["lasher"], folder, weights="new", names=only, resume=False)
    assert first.file.exists()
    assert len(plan("lasher", roots["lasher"], folder, weights="new", resume=False).todo) == len(work.runs)
    assert plan("lasher", roots["lasher"], folder, weights="new", names=only, resume=False).todo
    assert len(plan("lasher", roots["lasher"], folder, weights="new").todo) == len(work.runs)


class Odd:
    """Frames of which one has another size."""

    def __init__(self, frames, odd):
        self.frames, self.odd = frames, odd

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        return self.frames[index][:-1] if index == self.odd else self.frames[index]


def test_a_frame_that_cannot_be_tracked_ends_its_sequence_alone(roots, network):
    whole = open_benchmark("lasher", roots["lasher"])
    sequences = [replace(whole[0], frames=Odd(whole[0].frames, 3)), whole[1], replace(whole[2], boxes=whole[2].boxes * [1, 1, 0, 0])]
    found = {f.number: f for f in follow(network, sequences, batch=3)}
    assert "first one" in str(found[0].error)
    assert found[1].error is None
    assert "positive width and height" in str(found[2].error)
    (alone,) = track_sequences(network, [whole[1]])
    np.testing.assert_allclose(found[1].trajectory.boxes, alone.boxes, atol=1e-3)
    assert (found[1].seconds > 0).all()


def test_a_killed_process_loses_nothing_that_was_finished(roots, network, tmp_path):
    program = f"""
import os, signal
from pathlib import Path
from srft.evaluation.benchmark import plan, track_runs
from srft.model.pretrained import load_tracker
work = plan("lasher", Path({str(roots["lasher"])!r}), Path({str(tmp_path / "killed")!r}), weights="w")
def killed(frames):
    if any(run.file.exists() for run in work.runs):
        os.kill(os.getpid(), signal.SIGKILL)
track_runs(load_tracker("tiny_rgb", streams=2), work, batch=1, on_frames=killed)
"""
    died = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": "platform"}, cwd=ROOT)
    assert died.returncode == -signal.SIGKILL
    rest = plan("lasher", roots["lasher"], tmp_path / "killed", weights="w")
    assert len(rest.todo) == len(rest.runs) - 1
    (kept,) = (run for run in rest.runs if run.file.exists())
    finished = kept.file.stat().st_mtime_ns
    assert track_runs(network, rest) == []
    assert kept.file.stat().st_mtime_ns == finished
    whole = plan("lasher", roots["lasher"], tmp_path / "whole", weights="w")
    track_runs(network, whole, batch=1)
    for run in whole.runs:
        a, b = (np.loadtxt(f, delimiter=",") for f in (run.file, tmp_path / "killed" / run.file.name))
        np.testing.assert_allclose(a, b, atol=1e-2)
    again = plan("lasher", roots["lasher"], tmp_path / "killed", weights="other", resume=False)
    assert len(again.todo) == len(again.runs)


def test_kits_get_the_rows_and_numbers_they_expect(tmp_path):
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    boxes = np.arange(12.0).reshape(3, 4) + 1
    sequence = Sequence(name="s", frames=frames, boxes=boxes, absent=np.zeros(3, bool), offset=2)
    for official, rows in (("lasher", 5), ("coesot", 5), ("visevent", 3), ("rgbt234", 5)):
        (run,) = runs_of(sequence, FORMATS[official], tmp_path / official)
        write_result(run, FORMATS[official], boxes, np.ones(3), np.full(3, 0.5))
        found = read_results(Files(tmp_path / official), ["s"], tracker="t", corner_pixel=False)["s"].runs[0]
        assert len(found) == rows
        assert found[-3:].tolist() == boxes.tolist()
        assert not found[:-3].any()
        assert np.loadtxt(run.file, delimiter=",").shape[1] == (8 if official == "rgbt234" else 4)
        assert np.loadtxt(run.file.with_name("s_time.txt")).tolist() == [0.0] * (rows - 3) + [0.5] * 3


def test_runs_backward_end_in_the_first_frame_even_where_it_has_no_target(roots, network, tmp_path):
    root = tmp_path / "vot"
    shutil.copytree(roots["vot-rgbd2022"], root)
    folder = next(path.parent for path in sorted(root.rglob("anchor.value")))
    lines = (folder / "groundtruth.txt").read_text().splitlines()
    (folder / "groundtruth.txt").write_text("\n".join(["nan,nan,nan,nan"] * 2 + lines[2:]) + "\n")
    (folder / "anchor.value").write_text("\n".join(["0", "0", "1", *["0"] * (len(lines) - 4), "-1"]) + "\n")
    work = plan("vot-rgbd2022", root, tmp_path / "mine", weights="w", names=(folder.name,))
    forward, backward = work.runs
    assert len(forward.sequence) == len(lines) - 2
    assert len(backward.sequence) == len(lines)
    np.testing.assert_array_equal(forward.sequence.frames[0], backward.sequence.frames[len(lines) - 3])
    assert track_runs(network, work) == []
    assert score_runs([work]) is not None


@pytest.mark.parametrize("official", ["depthtrack", "vot-rgbd2022"])
def test_a_workspace_of_the_toolkit(official, roots, network, tmp_path):
    folder = tracker_folder(tmp_path, official, "mine")
    assert folder == tmp_path / official / "results" / "mine"
    work = plan(official, roots[official], folder, weights="w")
    track_runs(network, work)
    for name in ("mine", "yours"):  # a second call adds to the first
        workspace = write_workspace_of([work], {name: '"some/where"'})
    assert workspace == tmp_path / official
    assert f"stack: {FORMATS[official].stack}" in (workspace / "config.yaml").read_text()
    registry = configparser.ConfigParser()
    registry.read(workspace / "trackers.ini")
    assert registry.sections() == ["mine", "yours"]
    assert registry["mine"]["command"] == 'srft trax "some/where"'
    assert (workspace / "sequences" / "list.txt").read_text().split() == sorted(work.sequences)
    for run in work.runs:
        place = workspace / "sequences" / run.sequence.name
        about = dict(line.split("=") for line in (place / "sequence").read_text().splitlines())
        assert (about["width"], about["height"]) == ("160", "120")
        assert (place / (about["channels.depth"] % 1)).exists()
        assert (place / (about["channels.color"] % int(about["length"]))).exists()
    there = score_runs([work], groundtruth=workspace / "sequences")
    assert there is not None
    assert there.trackers["mine"].measures == score_runs([work]).trackers["mine"].measures
    with pytest.raises(ValueError, match=r"v1\.5"):
        tracker_folder(tmp_path, official, "v1.5")


def test_runs_start_at_anchors_and_go_both_ways(tmp_path):
    frames = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    sequence = Sequence(name="s", frames=frames, boxes=np.arange(24.0).reshape(6, 4), absent=np.zeros(6, bool))
    forward, backward = runs_of(sequence, FORMATS["vot-rgbd2022"], tmp_path, np.array([0, 1, 0, 0, -1, 0]))
    assert [int(forward.sequence.frames[i][0, 0, 0]) for i in range(len(forward.sequence))] == [1, 2, 3, 4, 5]
    assert [int(backward.sequence.frames[i][0, 0, 0]) for i in range(len(backward.sequence))] == [4, 3, 2, 1, 0]
    assert backward.sequence.boxes[0].tolist() == [16, 17, 18, 19]
    assert backward.file == tmp_path / "baseline" / "s" / "s_00000004.txt"
    with pytest.raises(ValueError, match="anchor"):
        list(runs_of(sequence, FORMATS["vot-rgbd2022"], tmp_path, None))


def test_the_command(roots, tmp_path, monkeypatch, capsys):
    arguments = ["srft", "evaluate", "tiny_rgb", "--benchmark", "visevent", "--root", str(roots["visevent"])]
    monkeypatch.setattr("sys.argv", [*arguments, "--out", str(tmp_path), "--json", str(tmp_path / "s.json")])
    main()
    printed = capsys.readouterr().out
    assert "1 of" not in printed
    assert "SR" in printed
    manifest = json.loads((tmp_path / "visevent" / "tiny_rgb" / "manifest.json").read_text())
    assert manifest["last_tracked"]["frames"] == 33
    assert len(manifest["weights"]) == 64
    scores = json.loads((tmp_path / "s.json").read_text())
    assert (scores["benchmark"], scores["protocol"], list(scores["trackers"])) == ("VisEvent", "kit", ["tiny_rgb"])
    main()
    assert "0 frames to track" in capsys.readouterr().out
    two = ["--out", str(tmp_path), "--json", str(tmp_path / "s.json"), "--name", "one", "other"]
    monkeypatch.setattr("sys.argv", ["srft", "evaluate", "tiny_rgb", *arguments[2:], *two])
    main()
    capsys.readouterr()
    found = json.loads((tmp_path / "s.json").read_text())["trackers"]
    assert found["one"] == found["other"] == scores["trackers"]["tiny_rgb"]
    monkeypatch.setattr("sys.argv", ["srft", "evaluate", "tiny_rgb", *arguments[2:], "--name", "same", "same"])
    with pytest.raises(SystemExit, match="two trackers are named same"):
        main()
    monkeypatch.setattr("sys.argv", ["srft", "evaluate", "tiny_rgb", "--benchmark", "visevent"])
    with pytest.raises(SystemExit, match="--root"):
        main()


def test_what_cannot_be_scored_is_said_before_it_is_tracked(roots, tmp_path, monkeypatch):
    arguments = ["srft", "evaluate", "tiny_rgb", "--benchmark", "lasher", "--root", str(roots["lasher"]), "--out", str(tmp_path / "out")]
    (tmp_path / "empty").mkdir()
    for place, message in (("nothing.zip", "no such folder or zip"), ("empty", "no groundtruth of .*give annotations with --groundtruth")):
        monkeypatch.setattr("sys.argv", [*arguments, "--groundtruth", str(tmp_path / place)])
        with pytest.raises(SystemExit, match=message):
            main()
    assert not list((tmp_path / "out").rglob("*.txt"))


@pytest.fixture(scope="module")
def two_streams(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "two.safetensors"
    save_tracker(network, path, preset="tiny", about={})
    return str(path)


def test_two_streams_on_a_benchmark_of_rgb_leave_the_auxiliary_one_out(two_streams, tmp_path, monkeypatch):
    video = davis_cars.load()[0]
    folder = tmp_path / "got10k" / "val" / "car"
    folder.mkdir(parents=True)
    for i in range(3):
        cv2.imwrite(str(folder / f"{i + 1:08d}.jpg"), video.frames[i][..., 2::-1])
    np.savetxt(folder / "groundtruth.txt", video.boxes[:3], delimiter=",")
    (folder / "absence.label").write_text("0\n0\n0\n")
    arguments = ["srft", "evaluate", two_streams, "--benchmark", "got10k", "--root", str(tmp_path / "got10k"), "--split", "all"]
    for name, options in (("plain", []), ("only", ["--rgb-only"])):
        monkeypatch.setattr("sys.argv", [*arguments, "--out", str(tmp_path), "--name", name, *options])
        main()
    plain, only = ((tmp_path / "got10k" / name / "car.txt").read_text() for name in ("plain", "only"))
    assert plain == only


def test_a_workspace_runs_the_tracker_as_it_was_evaluated(roots, two_streams, tmp_path, monkeypatch):
    arguments = ["srft", "evaluate", two_streams, "--benchmark", "depthtrack", "--root", str(roots["depthtrack"]), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*arguments, "--rgb-only", "--precision", "bf16"])
    main()
    registry = configparser.ConfigParser()
    registry.read(tmp_path / "depthtrack" / "trackers.ini")
    assert registry["two"]["command"] == f'srft trax "{two_streams}" --aux none --precision bf16'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--root", "/data"], "--root /data has no effect without --benchmark"),
        (["--split", "val", "--sequences", "a", "b", "--out", "r", "--batch", "4"], "--split val --sequences a b --out r --batch 4 have"),
        (["--list-name", "218", "--protocol", "excluded", "--no-resume"], "--list-name 218 --protocol excluded --no-resume have no effect"),
        (["--groundtruth", "/g", "--workers", "2", "--precision", "bf16"], "--groundtruth /g --workers 2 --precision bf16 have no effect"),
        (["--benchmark", "lasher", "--root", "/d", "--pictures", "p"], "--pictures p has no effect with --benchmark lasher"),
        (["--benchmark", "lasher", "--root", "/d", "--workers", "2", "--device", "cpu"], "--device cpu has no effect with --workers 2"),
        (["--benchmark", "lasher", "--root", "/d", "--workers", "0"], "--workers is 0; expected at least 1"),
        (["--benchmark", "lasher", "--root", "/d", "--batch", "0"], "--batch is 0; expected at least 1"),
        (["--benchmark", "own", "--root", "/d", "--json", "s.json"], "--json s.json has no effect with --benchmark own"),
        (["--benchmark", "lashr", "--root", "/d", "--json", "s.json"], "no benchmark 'lashr'; expected one of fe108"),
        (
            ["--benchmark", "lasot", "--root", "/d", "--protocol", "excluded", "--groundtruth", "g"],
            "excluded --groundtruth g have no effect",
        ),
        (["--benchmark", "depthtrack", "--root", "/d", "--protocol", "excluded"], "DepthTrack is scored by its kit's protocol only"),
    ],
)
def test_options_that_would_do_nothing_are_refused(arguments, message, monkeypatch):
    monkeypatch.setattr("sys.argv", ["srft", "evaluate", "tiny_rgb", *arguments])
    with pytest.raises(SystemExit, match=message):
        main()
