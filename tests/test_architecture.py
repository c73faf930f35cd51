"""Sizes of the named trackers against the published ones, and their keys, without memory for weights."""

import pytest
import torch

from srft.method.adapters import add_lora
from srft.method.paradigms import select_trainable
from srft.model.architecture import PRESETS, Architecture, eliminating, preset_of
from srft.model.tracker import MultiModalTracker

BLOCK = {
    "norm1.weight": (768,), "norm1.bias": (768,), "attn.qkv.weight": (2304, 768), "attn.qkv.bias": (2304,),
    "attn.proj.weight": (768, 768), "attn.proj.bias": (768,), "norm2.weight": (768,), "norm2.bias": (768,),
    "mlp.fc1.weight": (3072, 768), "mlp.fc1.bias": (3072,), "mlp.fc2.weight": (768, 3072), "mlp.fc2.bias": (768,),
}  # fmt: skip
HEAD_CONVOLUTIONS = {"conv1": (256, 768, 3, 3), "conv2": (128, 256, 3, 3), "conv3": (64, 128, 3, 3), "conv4": (32, 64, 3, 3)}
POSITIONS = {"backbone.pos_embed_z": (1, 64, 768), "backbone.pos_embed_x": (1, 256, 768)}


def head_keys():
    keys = {}
    for branch, outputs in (("ctr", 1), ("offset", 2), ("size", 2)):
        for name, shape in HEAD_CONVOLUTIONS.items():
            keys |= {f"box_head.{name}_{branch}.0.weight": shape, f"box_head.{name}_{branch}.0.bias": shape[:1]}
            keys |= {f"box_head.{name}_{branch}.1.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")}
            keys[f"box_head.{name}_{branch}.1.num_batches_tracked"] = ()
        keys |= {f"box_head.conv5_{branch}.weight": (outputs, 32, 1, 1), f"box_head.conv5_{branch}.bias": (outputs,)}
    return keys


def of_blocks(prefix, count):
    return {f"{prefix}.{i}.{name}": shape for i in range(count) for name, shape in BLOCK.items()}


def embed_and_norm(suffix):
    return {
        f"backbone.patch_embed{suffix}.proj.weight": (768, 3, 16, 16),
        f"backbone.patch_embed{suffix}.proj.bias": (768,),
        f"backbone.norm{suffix}.weight": (768,),
        f"backbone.norm{suffix}.bias": (768,),
    }


def weightless(preset, streams, **options):
    with torch.device("meta"):
        return MultiModalTracker.from_preset(preset, streams, **options)


def shapes(network):
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def count(parameters):
    return sum(p.numel() for p in parameters)


def test_keys_and_shapes_of_one_stream_are_those_of_published_checkpoints():
    assert shapes(weightless("base", 1)) == {**POSITIONS, **embed_and_norm(""), **of_blocks("backbone.blocks", 12), **head_keys()}


def test_keys_and_shapes_of_two_streams_are_published_but_for_four_words():
    expected = {**POSITIONS, **embed_and_norm("_rgb"), **embed_and_norm("_aux"), **head_keys()}
    expected |= of_blocks("backbone.blocks_rgb", 12) | of_blocks("backbone.blocks_aux", 12) | of_blocks("backbone.fusion", 4)
    assert shapes(weightless("base", 2)) == expected


def test_frame_identity_adds_two_keys_and_elimination_none():
    plain = shapes(weightless("base_384", 1))
    both = {f"backbone.temporal_pos_embed_{part}": (1, 1, 768) for part in "zx"}
    assert shapes(weightless("base_384", 1, frame_identity=True)) == plain | both
    assert plain["backbone.pos_embed_z"], plain["backbone.pos_embed_x"] == ((1, 144, 768), (1, 576, 768))
    assert shapes(weightless("base_384", 1, eliminate=True)) == plain


def test_parameters_are_as_many_as_published():
    """The published network also holds a class token of 768, which it never uses: 206,365,317 and 206,672,517 in all."""
    network = weightless("base", 2)
    parameters = dict(network.named_parameters())
    names = select_trainable(network, "full", freeze_head=True)
    assert count(parameters[name] for name in names) == 199_644_672
    assert count(network.box_head.parameters()) == 6_474_117
    assert count(network.parameters()) + 768 == 206_365_317
    assert count(weightless("base_384", 2).parameters()) + 768 == 206_672_517
    block = network.backbone.blocks_rgb[0]
    parts = {"attn.qkv": 1_771_776, "attn.proj": 590_592, "mlp.fc1": 2_362_368, "mlp.fc2": 2_360_064}
    assert {name: count(block.get_submodule(name).parameters()) for name in parts} == parts
    assert count(block.parameters()) == 7_087_872
    assert count(weightless("base", 1).parameters()) == 12 * 7_087_872 + 590_592 + 1_536 + 245_760 + 6_474_117
    add_lora(network)
    lora = dict(network.named_parameters())
    assert count(lora[name] for name in select_trainable(network, "lora", freeze_head=True)) == 1_376_256


def test_embeddings_of_frames_stay_as_pre_trained():
    network = weightless("base_384", 2, frame_identity=True)
    names = select_trainable(network, "full", freeze_head=True)
    assert count(network.get_parameter(name) for name in names) == 199_644_672


def test_cells_and_tokens():
    cells = {name: (arch.template_cells, arch.search_cells) for name, arch in PRESETS.items()}
    assert cells == {"tiny": (4, 8), "small": (8, 16), "base": (8, 16), "base_384": (12, 24)}
    assert (PRESETS["small"].dim, PRESETS["small"].depth, PRESETS["small"].heads, PRESETS["small"].patch) == (384, 12, 6, 14)


@pytest.mark.parametrize(
    ("preset", "tokens"), [("base", [256, 180, 126, 89]), ("base_384", [576, 404, 283, 199]), ("tiny", [64, 45, 32, 23])]
)
def test_elimination_keeps_seven_tenths_rounded_up(preset, tokens):
    arch = eliminating(PRESETS[preset])
    assert [arch.kept_tokens(n) for n in tokens[:3]] == tokens[1:]
    if preset != "tiny":
        assert arch.eliminate_in == (3, 6, 9)
    assert arch.template_centre == {"base": 3 * 8 + 3, "base_384": 5 * 12 + 5, "tiny": 4 + 1}[preset]


def test_options_do_not_change_the_name_of_a_size():
    for name, arch in PRESETS.items():
        assert preset_of(eliminating(arch, keep=0.5)) == name
    assert preset_of(Architecture(**{**vars(PRESETS["tiny"]), "depth": 5})) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fusion_after": (3, 1)}, r"fusion_after is \(3, 1\); expected rising block numbers from 0 to 3"),
        ({"eliminate_in": (4,)}, r"eliminate_in is \(4,\)"),
        ({"keep": 0.0}, "keep is 0.0"),
        ({"heads": 5}, "dim 96 must be a multiple of heads 5"),
        ({"search_px": 130}, "search_px 130"),
    ],
)
def test_sizes_that_do_not_fit_together_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Architecture(**{**vars(PRESETS["tiny"]), **change})


def test_two_streams_keep_all_candidates():
    with pytest.raises(ValueError, match="two streams keep all candidates"):
        weightless("base", 2, eliminate=True)
