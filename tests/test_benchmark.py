"""From a benchmark's folder to result files and scores, with the shipped tracker."""

import json
import shutil

import numpy as np
import pytest

from srft.cli import main
from srft.data.benchmarks import open_benchmark
from srft.data.native import write_native
from srft.data.sequence import Sequence
from srft.evaluation.benchmark import plan, score_runs, track_runs
from srft.evaluation.result_files import FORMATS, runs_of
from srft.evaluation.results import Files, read_results
from srft.model.pretrained import load_tracker
from tests.test_native import recorded


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
    scores = score_runs(work)
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
        score_runs(work)
    pictures[4].write_bytes(whole)
    rest = plan("lasher", root, tmp_path / "mine", weights="w")
    assert [run.sequence.name for run in rest.todo] == [first.name]
    assert track_runs(network, rest) == []
    with pytest.raises(ValueError, match="holds results of weights w, precision fp32"):
        plan("lasher", root, tmp_path / "mine", weights="v", precision="bf16")
    with pytest.raises(ValueError, match="--sequences: nobody"):
        plan("lasher", root, tmp_path / "mine", weights="w", names=("nobody",))


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
    assert "success_auc" in printed
    scores = json.loads((tmp_path / "s.json").read_text())
    assert (scores["benchmark"], scores["protocol"], list(scores["trackers"])) == ("VisEvent", "kit", ["tiny_rgb"])
    main()
    assert "0 frames to track" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["srft", "evaluate", "tiny_rgb", "--benchmark", "visevent"])
    with pytest.raises(SystemExit, match="--root"):
        main()
