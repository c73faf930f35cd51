"""Exported trackers in ONNX Runtime and as programs of torch.export."""

import dataclasses
import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from srft import cli
from srft.data import davis_cars
from srft.data.crops import crop
from srft.model import export as exporting
from srft.model.architecture import PRESETS
from srft.model.export import export
from srft.model.normalization import normalize
from srft.model.pretrained import load_tracker
from srft.model.tracker import MultiModalTracker, TrackerOutput


@pytest.fixture(scope="module")
def two_streams(tmp_path_factory):
    """The shipped tracker in two streams as a file that takes bytes, written by the command."""
    path, arguments = tmp_path_factory.mktemp("onnx") / "new" / "tiny.onnx", sys.argv
    sys.argv = ["srft", "export", "tiny_rgb", str(path), "--streams", "2", "--uint8"]
    try:
        cli.main()
    finally:
        sys.argv = arguments
    return path


def run(path, template, search):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return TrackerOutput(*session.run(list(TrackerOutput._fields), {"template": template, "search": search}))


@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_runtime_gives_the_boxes_of_torch_on_real_crops(two_streams, batch):
    car, network = davis_cars.load()[0], load_tracker("tiny_rgb", streams=2)
    template = np.stack([crop(car.frames[0], car.boxes[0], 2.0, 64)[0]] * batch)
    search = np.stack([crop(car.frames[t], car.boxes[t], 4.0, 128)[0] for t in range(1, batch + 1)])
    with torch.inference_mode():
        expected = network(*(normalize(torch.from_numpy(crops)) for crops in (template, search)))
    got = run(two_streams, template, search)
    np.testing.assert_allclose(got.boxes, expected.boxes, atol=1e-4)
    np.testing.assert_allclose(got.score_map, expected.score_map, atol=1e-4)
    np.testing.assert_allclose(got.size_map, expected.size_map, atol=1e-4)
    np.testing.assert_allclose(got.offset_map, expected.offset_map, atol=1e-3)
    if batch > 1:
        assert np.abs(np.diff(got.boxes, axis=0)).max() > 1e-3


def test_the_file_says_what_it_is(two_streams):
    model = onnx.load(two_streams)
    onnx.checker.check_model(model)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["preset"] == "tiny"
    assert about["streams"] == "2"
    assert about["input"] == "uint8 [B, H, W, 6]"
    assert json.loads(about["mean"]) == [0.485, 0.456, 0.406] * 2
    assert json.loads(about["std"]) == [0.229, 0.224, 0.225] * 2
    assert [json.loads(about[name]) for name in ("template_px", "search_px", "template_factor", "search_factor")] == [64, 128, 2.0, 4.0]
    shapes = {
        value.name: [d.dim_value or "batch" for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "template": ["batch", 64, 64, 6],
        "search": ["batch", 128, 128, 6],
        "score_map": ["batch", 1, 8, 8],
        "size_map": ["batch", 2, 8, 8],
        "offset_map": ["batch", 2, 8, 8],
        "boxes": ["batch", 4],
    }


def test_candidate_elimination_and_embeddings_are_exported_too(tmp_path):
    """Checked by the export itself, on one and three crops."""
    torch.manual_seed(0)
    short = dataclasses.replace(PRESETS["tiny"], depth=2, fusion_after=(1,), eliminate_in=(0, 1), frame_identity=True)
    network = MultiModalTracker(short, 1)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.randn_like(value) * 0.05)
    differences = export(network, tmp_path / "a.onnx", check=True)
    assert set(differences) == set(TrackerOutput._fields)
    assert differences["boxes"] <= 1e-4
    about = {entry.key: entry.value for entry in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert about["input"].startswith("float32 [B, 3, H, W]")
    assert about["channels"] == "RGB"


def test_a_program_runs_without_the_class_of_the_network(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["srft", "export", "tiny_rgb", str(tmp_path / "tiny.pt2"), "--check"])
    cli.main()
    assert "boxes       differs from the network by" in capsys.readouterr().out
    extra = {"about.json": ""}
    program = torch.export.load(tmp_path / "tiny.pt2", extra_files=extra).module()
    assert json.loads(extra["about.json"])["preset"] == "tiny"
    template, search = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 128, 128)
    with torch.inference_mode():
        torch.testing.assert_close(program(template, search)[3], load_tracker("tiny_rgb")(template, search).boxes, rtol=0, atol=1e-5)


def test_other_answers_than_the_networks_are_refused(monkeypatch, tmp_path):
    network = load_tracker("tiny_rgb")
    for wrong in (lambda value: 1.001 * value, lambda value: value[:1], lambda value: value * np.nan):
        run = lambda *crops, wrong=wrong: [wrong(value.numpy()) for value in network(*crops)]
        with torch.no_grad(), pytest.raises(ValueError, match=r"its answers differ from the network's by .* the file is not kept"):
            exporting._differences(network, run, tmp_path / "tiny.onnx", uint8=False)


def test_what_cannot_be_exported_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"tiny\.engine: expected a name ending in \.onnx or \.pt2"):
        export(load_tracker("tiny_rgb"), tmp_path / "tiny.engine")
    find = exporting.importlib.util.find_spec
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(ValueError, match=r"onnxscript not installed: run uv sync --extra export"):
        export(load_tracker("tiny_rgb"), tmp_path / "tiny.onnx")


def test_sizes_of_a_checkpoint_directory_are_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["srft", "export", str(tmp_path), "tiny.pt2", "--streams", "1"])
    with pytest.raises(SystemExit, match="--streams and --preset have no effect"):
        cli.main()
