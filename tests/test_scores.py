"""Scores of several trackers, what is said about missing results, tables, published peers, and the command."""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from srft import cli
from srft.evaluation import metrics, tables
from srft.evaluation.groundtruth import Truth
from srft.evaluation.protocols import BENCHMARKS, find_protocol
from srft.evaluation.published import peers, read_published
from srft.evaluation.results import Result
from srft.evaluation.scores import score
from tests.reference import vot_workspace

EXCERPT = Path(__file__).parent / "assets" / "visevent"
RECORDED = json.loads((Path(__file__).parent / "assets" / "vot_toolkit.json").read_text())


def truth(name: str, frames: int = 10, absent: int = 0, attributes: tuple[str, ...] = ()) -> Truth:
    boxes = np.column_stack([np.arange(frames) + 5.0, np.full(frames, 9.0), np.full((frames, 2), 20.0)])
    flags = np.arange(frames) < absent
    boxes[flags] = 0
    return Truth(name=name, boxes=boxes[None], absent=flags, attributes=attributes)


def result(boxes: np.ndarray) -> Result:
    return Result(runs={0: boxes})


TRUTHS = {name: truth(name, attributes=a) for name, a in {"car": ("CM",), "bus": ("CM", "ROT"), "man": ()}.items()}
PERFECT = {name: result(t.boxes[0]) for name, t in TRUTHS.items()}


def test_trackers_side_by_side_and_json():
    """Targets that walk at the top left: whatever is lost is lost far away. The first row is the groundtruth's."""
    lost = {name: result(t.boxes[0] + 500) for name, t in TRUTHS.items()}
    scores = score(find_protocol("LasHeR"), TRUTHS, {"good": PERFECT, "bad": lost})
    report = json.loads(json.dumps(scores.to_json()))
    assert (report["benchmark"], report["protocol"]) == ("LasHeR", "kit")
    assert report["trackers"]["good"] == pytest.approx({"success_auc": 20 / 21, "precision_20": 1, "normalized_precision_20": 1})
    assert report["trackers"]["bad"]["success_auc"] == pytest.approx(20 / 21 / 10)
    assert report["sequences"]["car"]["bad"]["precision_20"] == pytest.approx(0.1)
    assert report["counts"] == {"scored": 3, "official": 245}
    assert "3 of 245 sequences are scored" in report["notes"][-1]
    assert scores.attribute_counts == {"CM": 2}
    assert report["attributes"]["CM"]["good"]["precision_20"] == 1
    assert tables.aligned(tables.main_rows(scores)).splitlines()[2].split() == ["good", "100.0", "100.0", "95.2"]
    assert "CM" in tables.aligned(tables.attribute_rows(scores))
    assert tables.aligned(tables.sequence_rows(scores)).splitlines()[2].split() == ["car", "95.2", "9.5"]
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(scores))))
    assert len(rows) == 2 * (1 + 3 + len(scores.attribute_counts))
    assert float(rows[0]["success_auc"]) == scores.trackers["good"].measures["success_auc"]
    latex = tables.latex_text(scores, attributes=True)
    assert r"good & \textbf{100.0} & \textbf{100.0} & \textbf{95.2} \\" in latex
    assert latex.count(r"\bottomrule") == 2


def test_missing_sequences_are_listed_or_left_out_for_all():
    found = {"whole": PERFECT, "part": {"bus": PERFECT["bus"]}}
    with pytest.raises(ValueError, match=r"part has no results of 2 of 3 sequences: car, man; .*--allow-missing"):
        score(find_protocol("FE108"), TRUTHS, found)
    scores = score(find_protocol("FE108"), TRUTHS, found, allow_missing=True)
    assert scores.sequences == ("bus",)
    assert "left out for every tracker: car, man" in scores.notes[0]
    with pytest.raises(ValueError, match="nothing to score"):
        score(find_protocol("FE108"), TRUTHS, {"none": {}}, allow_missing=True)


def test_rows_that_lack_are_an_error_or_failures():
    boxes = TRUTHS["car"].boxes[0]
    one = {"car": TRUTHS["car"]}
    with pytest.raises(ValueError, match=r"short, sequence car: 6 rows; expected 10"):
        score(find_protocol("VisEvent"), one, {"short": {"car": result(boxes[:6])}})
    scores = score(find_protocol("VisEvent"), one, {"short": {"car": result(boxes[:6])}}, allow_missing=True)
    assert scores.trackers["short"].measures["precision_20"] == pytest.approx(0.6)
    assert "6 rows for 10 frames; the missing ones count as failures" in scores.notes[0]
    longer = score(find_protocol("VisEvent"), one, {"long": {"car": result(np.concatenate([boxes, boxes]))}})
    assert longer.trackers["long"].measures["precision_20"] == 1
    assert "cut" in longer.notes[0]


def test_results_that_begin_after_a_leading_absence_are_moved():
    """Runners that start at the first visible frame write fewer rows; COESOT has 20 such sequences."""
    late = truth("late", frames=10, absent=3)
    scores = score(find_protocol("COESOT"), {"late": late}, {"x": {"late": result(late.boxes[0, 3:])}})
    assert scores.trackers["x"].measures["precision_20"] == pytest.approx(0.7)
    assert "the first 3 of them absent; rows begin after these" in scores.notes[0]


def test_annotations_of_the_visevent_kit_begin_with_the_target():
    """Its data set's folders may begin earlier: results score the same by either, with rows of the frames before or without."""
    late = truth("late", frames=10, absent=3)
    kit = replace(late, boxes=late.boxes[:, 3:], absent=late.absent[3:])
    found = late.boxes[0, 3:] + np.array([1.0, 2, 0, 0])
    protocol = find_protocol("VisEvent")
    whole = np.concatenate([np.zeros((3, 4)), found])
    by_kit, *by_folder = [
        score(protocol, {"late": t}, {"x": {"late": result(rows)}}).trackers["x"].measures
        for t, rows in ((kit, found), (late, found), (late, whole))
    ]
    assert by_folder == [by_kit, by_kit]
    assert by_kit["precision_20"] == 1


def test_the_frame_that_shows_the_target_is_excluded_after_a_leading_absence_too():
    late = truth("late", frames=10, absent=3)
    found = late.boxes[0].copy()
    found[4:] += 500
    scores = score(find_protocol("COESOT", "excluded"), {"late": late}, {"x": {"late": result(found)}})
    own = metrics.measure([(found[3:], late.boxes[0, 3:], late.absent[3:])])
    assert scores.trackers["x"].measures["success_auc"] == own.success_auc == 0


def test_an_attribute_of_sequences_without_a_counted_frame_is_left_out():
    truths = {"car": TRUTHS["car"], "still": truth("still", frames=1, attributes=("ROT",))}
    found = {name: result(t.boxes[0]) for name, t in truths.items()}
    scores = score(find_protocol("VisEvent", "excluded"), truths, {"x": found})
    assert scores.attribute_counts == {"CM": 1}
    assert "attribute,CM" in tables.csv_text(scores)
    assert "ROT" not in tables.latex_text(scores, attributes=True)


def test_more_sequences_than_the_official_list_has_are_of_another_split():
    truths = {str(i): truth(str(i)) for i in range(33)}
    scores = score(find_protocol("FE108"), truths, {"x": {name: result(t.boxes[0]) for name, t in truths.items()}})
    assert "33 sequences are scored, the official test list has 32: not comparable" in scores.notes[-1]
    assert find_protocol("COESOT").whole(528)  # one is annotated and not listed
    assert not find_protocol("COESOT").whole(827)


def test_breakout_capability_needs_a_reference_of_every_sequence():
    coesot = find_protocol("COESOT")
    scores = score(coesot, TRUTHS, {"x": PERFECT}, boc_references={"car": 0.5, "bus": 0.25, "man": 1.0})
    assert scores.trackers["x"].extra["boc"] == pytest.approx(20 / 21 * 1.25 / 3)
    assert scores.to_json()["extra"] == {"x": scores.trackers["x"].extra}
    with pytest.raises(ValueError, match="no value for bus, man"):
        score(coesot, TRUTHS, {"x": PERFECT}, boc_references={"car": 0.5})


def test_overlaps_of_op_are_extra_measures_of_fe108():
    extra = score(find_protocol("FE108"), TRUTHS, {"x": PERFECT}).trackers["x"].extra
    assert extra == {"op_50": 1, "op_75": 1}


def test_published_figures():
    figures = read_published()
    keys = [(f.tracker, f.benchmark, f.sequences, f.measure) for f in figures]
    assert len(set(keys)) == len(keys) > 200
    for figure in figures:
        protocol = BENCHMARKS[figure.benchmark]
        assert figure.measure in (*protocol.measures, *protocol.extra)
        assert figure.source
        assert 0 < figure.percent < 100
    table = {(f.tracker, f.benchmark, f.measure): f for f in figures}
    for (tracker, benchmark, measure), f in table.items():
        if measure == "f_score" and (tracker, benchmark, "precision") in table:
            sides = [table[tracker, benchmark, m].percent for m in ("precision", "recall")]
            assert bool(f.error) != (min(sides) - 0.11 <= f.percent <= max(sides) + 0.11), tracker  # figures may be cut instead of rounded
    assert table["ViPT", "DepthTrack", "f_score"].percent == 59.4
    assert table["SRTrack", "VisEvent", "precision_20"].sequences == 218


def test_peers_are_of_the_same_protocol_and_all_sequences():
    protocol = find_protocol("VisEvent")
    found = peers(protocol, 320)
    assert found["ViPT"]["success_auc"].percent == 59.2
    assert "SRTrack" not in found  # published on 218 sequences
    assert peers(protocol, 319) == peers(protocol, 500) == {}  # part of the test list; another split
    assert peers(protocol.variant("excluded"), 320) == {}
    scores = score(find_protocol("DepthTrack"), *depth_track())
    text = tables.peers_table(scores, peers(find_protocol("DepthTrack"), 50)).splitlines()
    assert text[2].split()[:2] == [">", "x"]
    assert any("OneTracker" in line and "60.9?" in line for line in text)


def depth_track():
    t = Truth(name="a", boxes=np.full((1, 4, 4), 20.0), absent=np.zeros(4, bool), size=(100, 100))
    return {"a": t}, {"x": {"a": Result(runs={0: t.boxes[0]}, confidences=np.ones(4))}}


def srft(monkeypatch, capsys, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["srft", "score", *map(str, arguments)])
    cli.main()
    return capsys.readouterr().out


def test_the_command_writes_all_its_files(monkeypatch, capsys, tmp_path):
    place = ("--groundtruth", EXCERPT / "annos", "--results", EXCERPT / "CEUTrack_tracking_result")
    files = [f"--{kind}={tmp_path / kind}" for kind in ("json", "csv", "latex", "plot")]
    out = srft(monkeypatch, capsys, "--benchmark", "visevent", *place, "--attributes", "--per-sequence", *files)
    assert "VisEvent, protocol kit" in out
    assert "SR by attribute" in out
    assert "note: 3 of 320 sequences" in out
    report = json.loads((tmp_path / "json").read_text())
    assert report["trackers"]["CEUTrack_tracking_result"]["success_auc"] == pytest.approx(0.4563131120113462)
    assert sorted(p.name for p in (tmp_path / "plot").iterdir()) == ["normalized_precision.png", "precision.png", "success.png"]
    assert (tmp_path / "csv").read_text().startswith("benchmark,protocol,scope")
    assert r"\toprule" in (tmp_path / "latex").read_text()


@pytest.mark.parametrize(("kind", "dataset"), [("multistart", "VOT-RGBD2022"), ("longterm", "DepthTrack")])
def test_the_command_scores_a_workspace_of_the_toolkit(kind, dataset, monkeypatch, capsys, tmp_path):
    folder = vot_workspace.write(tmp_path, kind)
    places = [folder / "results" / tracker for tracker in vot_workspace.TRACKERS]
    out = tmp_path / "scores.json"
    srft(
        monkeypatch, capsys, "--benchmark", dataset, "--groundtruth", folder / "sequences", "--results", *places,
        "--json", out, "--plot", tmp_path / "plots",
    )  # fmt: skip
    report = json.loads(out.read_text())
    for tracker in vot_workspace.TRACKERS:
        assert report["trackers"][tracker] == pytest.approx(RECORDED[kind][tracker], abs=1e-9)
    assert len(list((tmp_path / "plots").iterdir())) == 1


@pytest.mark.parametrize("options", [["--boc-reference", "r.csv"], ["--size", "640", "360"]])
def test_options_that_would_do_nothing_are_refused(options, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["srft", "score", "--benchmark", "LasHeR", "--groundtruth", "g", "--results", "r", *options])
    with pytest.raises(SystemExit, match=f"{' '.join(options)} has no effect on LasHeR"):
        cli.main()


def test_scores_of_no_tracker_are_refused():
    with pytest.raises(ValueError, match="results of no tracker"):
        score(find_protocol("LasHeR"), TRUTHS, {})


def test_the_command_says_in_one_line_what_is_wrong(monkeypatch, capsys, tmp_path):
    place = ("--benchmark", "VisEvent", "--groundtruth", EXCERPT / "annos", "--results")
    results = EXCERPT / "CEUTrack_tracking_result"
    with pytest.raises(SystemExit, match="another tracker named CEUTrack_tracking_result"):
        srft(monkeypatch, capsys, *place, results, results)
    for path in results.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    bad = tmp_path / "00471_UAV_outdoor6.txt"
    bad.write_text(bad.read_text().replace("\t", "\tx", 9))
    with pytest.raises(SystemExit, match=rf"error: {tmp_path.name}, sequence 00471_UAV_outdoor6, line 1: "):
        srft(monkeypatch, capsys, *place, tmp_path)
    reference = tmp_path / "reference.csv"
    reference.write_text("sequence,success\ncar,half\n")
    with pytest.raises(SystemExit, match=r"reference\.csv, line 2: 'car,half'; expected sequence,success"):
        srft(monkeypatch, capsys, *place, results, "--benchmark", "COESOT", "--boc-reference", reference)


def test_a_run_that_lacks_and_a_video_without_anchors_are_named():
    t = Truth(name="a", boxes=np.full((1, 4, 4), 20.0), absent=np.zeros(4, bool), size=(99, 99), anchors=np.array([1, 0, 0, -1]))
    vot = find_protocol("VOT-RGBD2022")
    runs = {0: t.boxes[0], 3: t.boxes[0]}
    assert score(vot, {"a": t}, {"x": {"a": Result(runs=runs)}}).trackers["x"].measures["robustness"] == 1
    with pytest.raises(ValueError, match="x, sequence a: no run from frame 3; expected 4 rows"):
        score(vot, {"a": t}, {"x": {"a": Result(runs={0: t.boxes[0]})}})
    with pytest.raises(ValueError, match="x, sequence a: 2 rows in the run from frame 3; expected 4 rows"):
        score(vot, {"a": t}, {"x": {"a": Result(runs={**runs, 3: t.boxes[0][:2]})}})
    with pytest.raises(ValueError, match=r"groundtruth of car: no anchor\.value"):
        score(vot, {"car": TRUTHS["car"]}, {"x": PERFECT})


def test_a_sequence_that_lacks_a_run_is_left_out_where_missing_ones_may_be():
    boxes = np.full((4, 4), 20.0)
    truths = {n: Truth(name=n, boxes=boxes[None], absent=np.zeros(4, bool), size=(99, 99), anchors=np.array([1, 0, 0, -1])) for n in "ab"}
    whole = {name: Result(runs={0: boxes, 3: boxes}) for name in truths}
    part = {**whole, "b": Result(runs={0: boxes})}
    scores = score(find_protocol("VOT-RGBD2022"), truths, {"whole": whole, "part": part}, allow_missing=True)
    assert scores.sequences == ("a",)
    assert "part lacks runs of 1 of 2 sequences, which are left out for every tracker: b" in scores.notes
    part["b"] = Result(runs={0: boxes, 3: boxes[:2]})
    with pytest.raises(ValueError, match="2 rows in the run from frame 3; expected 4 rows"):
        score(find_protocol("VOT-RGBD2022"), truths, {"part": part}, allow_missing=True)
