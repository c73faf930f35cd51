"""The page of a report: whole, without anything from outside, with real results, pictures and failures in it."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from srft import cli
from srft.data.benchmarks import open_benchmark
from srft.data.native import write_native
from srft.data.synthetic import record
from srft.evaluation import report
from srft.evaluation.groundtruth import Truth, read_groundtruth
from srft.evaluation.plots import picture_strip
from srft.evaluation.protocols import find_protocol
from srft.evaluation.report import Loss, longest_loss, write_report
from srft.evaluation.results import Files, Result
from srft.evaluation.scores import score
from tests.test_scores import PERFECT, TRUTHS, result

EXCERPT = Path(__file__).parent / "assets" / "visevent"


class Page(HTMLParser):
    """Tags that are open at the end, texts of tables, images and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.rows: list[list[str]] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag != "meta":
            self.stack.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if "td" in self.stack or "th" in self.stack:
            self.rows[-1][-1] += data


def test_the_longest_loss_by_hand():
    boxes = np.tile([10.0, 10, 20, 20], (12, 1))
    absent = np.zeros(12, bool)
    absent[6] = True
    boxes[9] = 0
    found = boxes.copy()
    found[[2, 5, 6, 7, 8]] = [500, 500, 20, 20]
    truth = Truth(name="t", boxes=boxes[None], absent=absent)
    assert longest_loss(truth, Result(runs={0: found})) == Loss(first=5, last=8, frames=3)  # frame 6 shows no target
    assert longest_loss(truth, Result(runs={0: boxes})) is None
    assert longest_loss(truth, Result(runs={0: found[:4]})) == Loss(first=2, last=2, frames=1)
    found[:] = np.nan
    assert longest_loss(truth, Result(runs={0: found})) == Loss(first=1, last=11, frames=9)  # in frame 0 the tracker is shown its target


def test_a_result_that_begins_with_a_mark_or_after_a_leading_absence_is_no_loss():
    boxes = np.column_stack([30.0 * np.arange(10), np.full(10, 9.0), np.full((10, 2), 20.0)])
    marked = boxes.copy()
    marked[0] = np.nan  # vot-toolkit's 1
    assert longest_loss(Truth(name="t", boxes=boxes[None], absent=np.zeros(10, bool)), Result(runs={0: marked})) is None
    late = Truth(name="t", boxes=boxes[None], absent=np.arange(10) < 3)
    assert longest_loss(late, Result(runs={0: boxes[3:]})) is None
    lost = boxes[3:].copy()
    lost[2:4] += 500
    assert longest_loss(late, Result(runs={0: lost})) == Loss(first=5, last=6, frames=2)


def test_the_command_on_real_results_is_one_whole_page(tmp_path, monkeypatch, capsys):
    out = tmp_path / "report.html"
    arguments = ["report", "--benchmark", "VisEvent", "--groundtruth", str(EXCERPT / "annos"), "--allow-missing"]
    monkeypatch.setattr("sys.argv", ["srft", *arguments, "--results", str(EXCERPT / "CEUTrack_tracking_result"), "--out", str(out)])
    cli.main()
    assert str(out) in capsys.readouterr().out
    text = out.read_text()
    page = Page(text)
    assert not page.stack
    assert not re.search(r"(src|href)=.?https?:|@import|<link", text)
    assert page.images
    assert all(image["alt"] and image["src"].startswith("data:image/png;base64,") for image in page.images)
    names = [path.stem for path in (EXCERPT / "CEUTrack_tracking_result").glob("*.txt")]
    assert {row[0] for row in page.rows} >= set(names)
    assert any(row[:2] == ["CEUTrack_tracking_result", "results"] for row in page.rows)
    assert any(row[:2] == ["scored with", "srft"] for row in page.rows)


def test_attributes_peers_markup_and_ties(tmp_path):
    attributes = {"car": ("CM", "TO", "DEF"), "bus": ("CM", "TO"), "man": ()}
    truths = {n: Truth(name=n, boxes=t.boxes, absent=t.absent, attributes=attributes[n]) for n, t in TRUTHS.items()}
    lost = {name: result(t.boxes[0] + 500) for name, t in TRUTHS.items()}
    scores = score(find_protocol("LasHeR"), truths, {"<b>ours</b>": PERFECT, "bad": lost})
    write_report(tmp_path / "page.html", scores, truths, {"<b>ours</b>": PERFECT, "bad": lost}, provenance={"bad": {"weights": "a<b"}})
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    assert not page.stack
    assert "<b>ours</b>" not in text  # shown as written
    assert ["<b>ours</b>", "100.0", "100.0", "95.2"] in page.rows
    assert ["CM", "2", "95.2", "9.5"] in page.rows
    assert sum("attributes" in image["alt"] for image in page.images) == 1
    assert ["bad", "weights", "a<b"] in page.rows
    assert "never lost its target" in text
    assert "Among published" not in text  # 3 of 245 sequences


def test_pictures_come_from_the_data_set(tmp_path):
    captures = [record("target-test", i, seed=7, length=12, modality="rgbe") for i in range(2)]
    write_native("visevent", tmp_path / "data", captures, split="test")
    sequences = {s.name: s for s in open_benchmark("visevent", tmp_path / "data", split="test", partial=True)}
    truths = {n: Truth(name=n, boxes=s.boxes[None], absent=s.absent) for n, s in sequences.items()}
    boxes = {n: s.boxes.copy() for n, s in sequences.items()}
    last = list(boxes)[-1]
    boxes[last][6:] += 900
    results = {"mine": {n: Result(runs={0: b}) for n, b in boxes.items()}}
    scores = score(find_protocol("VisEvent"), truths, results)
    write_report(tmp_path / "page.html", scores, truths, results, sequences=sequences, title="Mine & yours", pictures=2)
    page = Page((tmp_path / "page.html").read_text())
    named = [image["alt"] for image in page.images if last in image["alt"]]
    assert f"{last}, where mine loses the target (frame 6)" in named
    assert len(page.images) == 3 + 3  # curves, each sequence, one failure
    assert last in {row[0] for row in page.rows}


def test_pictures_of_a_sequence_that_begins_without_its_target(tmp_path, monkeypatch):
    write_native("visevent", tmp_path, [record("target-test", 0, seed=7, length=8, modality="rgbe")], split="test")
    (flags,) = tmp_path.rglob("absent_label.txt")
    flags.write_text("0\n" * 2 + "1\n" * 6)
    (sequence,) = open_benchmark("visevent", tmp_path, split="test", partial=True)
    protocol = find_protocol("VisEvent")
    folder = read_groundtruth(Files(tmp_path), protocol)
    kit = {n: replace(t, boxes=t.boxes[:, 2:], absent=t.absent[2:]) for n, t in folder.items()}  # begins with the target
    found = sequence.boxes.copy()
    for truths in (folder, kit):
        results = {"mine": {sequence.name: Result(runs={0: found})}}
        scores = score(protocol, truths, results)
        write_report(tmp_path / "page.html", scores, truths, results, sequences={sequence.name: sequence})
        page = Page((tmp_path / "page.html").read_text())
        assert [image["alt"] for image in page.images if image["alt"] == sequence.name]
        assert "mine never lost its target" in (tmp_path / "page.html").read_text()
    found[4:] += 900
    shown = []
    monkeypatch.setattr(report, "picture_strip", lambda *args, frames, **_: shown.append(frames) or picture_strip(*args, frames=frames))
    for truths in (folder, kit):
        write_report(tmp_path / "page.html", scores, truths, results, sequences={sequence.name: sequence}, pictures=1)
    assert shown == [6, [0, 1, 3, 4, 5], 6, [0, 1, 2, 3, 4, 5]]


def test_other_measurements_and_a_run_that_gets_the_page(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("x", artifact_location=(tmp_path / "artifacts").as_uri())).info.run_id
    arguments = ["report", "--benchmark", "VisEvent", "--groundtruth", str(EXCERPT / "annos"), "--allow-missing", "--run", run]
    arguments += ["--results", str(EXCERPT / "CEUTrack_tracking_result"), "--out", str(tmp_path / "page.html")]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("sys.argv", ["srft", *arguments])
    with pytest.raises(SystemExit, match="--run without --tracking-uri"):
        cli.main()
    monkeypatch.setattr("sys.argv", ["srft", *arguments, "--tracking-uri", uri])
    cli.main()
    assert [file.path for file in client.list_artifacts(run, "reports")] == ["reports/page.html"]
    assert "test/VisEvent/success_auc" in client.get_run(run).data.metrics
    monkeypatch.setattr("sys.argv", ["srft", *arguments[:-5], "no-such-run", *arguments[-4:], "--tracking-uri", uri])
    with pytest.raises(SystemExit, match="run no-such-run in MLflow store"):
        cli.main()
