import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from srft.model import pretrained
from srft.model.architecture import PRESETS
from srft.model.pretrained import load_tracker, save_tracker, to_two_streams, two_stream_sources, weights_path
from srft.model.tracker import MultiModalTracker


def tiny(streams: int = 1) -> MultiModalTracker:
    torch.manual_seed(0)
    return MultiModalTracker.from_preset("tiny", streams)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "some.safetensors"
    save_tracker(tiny(), path, preset="tiny", about={"step": 3})
    return path


def rewritten(saved, tmp_path, change, metadata=None):
    """The saved file with its tensors changed."""
    weights = load_file(saved)
    change(weights)
    save_file(weights, tmp_path / "changed.safetensors", metadata={"preset": "tiny", "streams": "1"} if metadata is None else metadata)
    return tmp_path / "changed.safetensors"


@pytest.mark.parametrize("streams", [1, 2])
def test_what_is_saved_is_loaded(tmp_path, streams):
    tracker = tiny(streams)
    tracker.train()(torch.randn(2, 3, 64, 64), torch.randn(2, 3, 128, 128))  # moves the normalization statistics
    path = tmp_path / "below" / "w.safetensors"
    save_tracker(tracker, path, preset="tiny", about={"step": 3})
    again = load_tracker(path)
    assert again.streams == streams
    assert not again.training
    torch.testing.assert_close(again.state_dict(), tracker.state_dict(), rtol=0, atol=0)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["about"]) == {"step": 3}
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


def test_a_failed_save_keeps_the_old_file_and_leaves_no_other(tmp_path, saved, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_bytes(saved.read_bytes())

    def half(weights, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pretrained, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        save_tracker(tiny(), path, preset="tiny", about={})
    assert path.read_bytes() == saved.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_a_tracker_of_another_size_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="not of preset 'small'"):
        save_tracker(tiny(), tmp_path / "w.safetensors", preset="small", about={})
    assert list(tmp_path.iterdir()) == []


def test_missing_unexpected_and_reshaped_tensors_are_named(saved, tmp_path):
    with pytest.raises(ValueError, match=r"missing \['backbone.norm.bias'\]"):
        load_tracker(rewritten(saved, tmp_path, lambda w: w.pop("backbone.norm.bias")))
    with pytest.raises(ValueError, match=r"unexpected \['backbone.extra'\]"):
        load_tracker(rewritten(saved, tmp_path, lambda w: w.update({"backbone.extra": torch.zeros(1)})))
    with pytest.raises(ValueError, match=r"another shape \['backbone.norm.bias \(5,\)'\]"):
        load_tracker(rewritten(saved, tmp_path, lambda w: w.update({"backbone.norm.bias": torch.zeros(5)})))


def test_foreign_and_damaged_files_are_named(saved, tmp_path):
    for metadata in ({}, {"preset": "huge", "streams": "1"}, {"preset": "tiny"}):
        with pytest.raises(ValueError, match=r"changed\.safetensors: its metadata says preset"):
            load_tracker(rewritten(saved, tmp_path, lambda w: None, metadata))
    for content in (b"", b"no weights at all", saved.read_bytes()[:-1000]):
        (tmp_path / "cut.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"cut\.safetensors: not a complete safetensors file"):
            load_tracker(tmp_path / "cut.safetensors")


def test_an_unknown_name_lists_what_is_shipped(tmp_path):
    for name in ("tiny_rbg", tmp_path / "absent.safetensors"):
        with pytest.raises(FileNotFoundError, match=r"shipped name \(.*tiny_rgb"):
            load_tracker(name)
    assert weights_path("tiny_rgb").is_file()


def test_two_streams_are_not_made_one(tmp_path):
    save_tracker(tiny(2), tmp_path / "two.safetensors", preset="tiny", about={})
    with pytest.raises(ValueError, match=r"two.safetensors holds 2 streams; streams=1"):
        load_tracker(tmp_path / "two.safetensors", streams=1)


def test_every_two_stream_weight_has_a_source_of_its_shape(saved):
    one, two = tiny().state_dict(), tiny(2).state_dict()
    sources = two_stream_sources(PRESETS["tiny"].fusion_after, two)
    assert set(sources) == set(two)
    assert set(sources.values()) == set(one)
    assert {name: tuple(one[source].shape) for name, source in sources.items()} == {name: tuple(t.shape) for name, t in two.items()}
    assert sources["backbone.blocks_aux.2.mlp.fc1.weight"] == "backbone.blocks.2.mlp.fc1.weight"
    assert sources["backbone.fusion.0.attn.qkv.bias"] == "backbone.blocks.1.attn.qkv.bias"
    assert sources["backbone.fusion.1.attn.qkv.bias"] == "backbone.blocks.3.attn.qkv.bias"
    assert sources["backbone.patch_embed_aux.proj.weight"] == "backbone.patch_embed.proj.weight"
    assert sources["box_head.conv1_ctr.1.running_var"] == "box_head.conv1_ctr.1.running_var"


def test_two_streams_are_copies_that_do_not_share_memory(saved):
    single, double = load_tracker(saved), load_tracker(saved, streams=2)
    assert not double.training
    one, two = single.state_dict(), double.state_dict()
    for name, source in two_stream_sources(PRESETS["tiny"].fusion_after, two).items():
        assert torch.equal(two[name], one[source]), name
    assert len({tensor.data_ptr() for tensor in two.values()}) == len(two)
    torch.testing.assert_close(to_two_streams(single).state_dict(), two, rtol=0, atol=0)
