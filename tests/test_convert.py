"""The command that converts checkpoints."""

import json

import pytest
import torch
from safetensors import safe_open

from srft.commands.convert import Convert, run
from srft.files import sha256
from srft.model.pretrained import load_tracker
from srft.model.tracker import MultiModalTracker


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    network = MultiModalTracker.from_preset("tiny", 1)
    path = tmp_path / "OSTrack_ep0300.pth.tar"
    torch.save({"net": {**network.state_dict(), "backbone.cls_token": torch.zeros(1, 1, 96)}, "settings": pytest.approx}, path)
    return path


def test_a_checkpoint_becomes_a_file_of_ours_and_a_report(checkpoint, tmp_path, capsys):
    out, report = tmp_path / "two.safetensors", tmp_path / "report.json"
    run(Convert(checkpoint=str(checkpoint), out=out, preset="tiny", streams=2, json=report))
    tracker, expected = load_tracker(out), load_tracker(checkpoint, streams=2)
    torch.testing.assert_close(tracker.state_dict(), expected.state_dict(), rtol=0, atol=0)
    with safe_open(out, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
    assert about == {"converted_from": checkpoint.name, "layout": "OSTrack", "sha256": sha256(checkpoint)}
    written = json.loads(report.read_text())
    assert set(written["mapped"]) == set(tracker.state_dict())
    assert list(written["ignored"]) == ["backbone.cls_token"]
    printed = capsys.readouterr().out
    assert "OSTrack, 2 streams, preset tiny" in printed
    assert "ignored (class token: no tracker uses it): backbone.cls_token" in printed
    assert "pickled objects left out: _pytest." in printed


def test_elimination_is_kept(checkpoint, tmp_path):
    run(Convert(checkpoint=str(checkpoint), out=tmp_path / "ce.safetensors", eliminate=True))
    assert load_tracker(tmp_path / "ce.safetensors").arch.eliminate_in == (1, 2, 3)


def test_nothing_is_written_if_the_checkpoint_is_another(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="expected preset base"):
        run(Convert(checkpoint=str(checkpoint), out=tmp_path / "w.safetensors", preset="base", json=tmp_path / "report.json"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint.name]
