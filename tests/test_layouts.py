"""Key maps of published checkpoints, from hard-coded lists of their keys; no memory for weights."""

import pytest
import timm
import torch

from srft.model.architecture import PRESETS
from srft.model.layouts import Piece, Sizes, fit_positions, fitting_preset, map_keys, sizes_of, two_stream_sources
from tests.test_architecture import BLOCK, POSITIONS, embed_and_norm, head_keys, of_blocks, shapes, weightless

CLASSIFIER = {"backbone.cls_token": (1, 1, 768), "backbone.pos_embed": (1, 197, 768)}
OSTRACK = {**CLASSIFIER, **POSITIONS, **embed_and_norm(""), **of_blocks("backbone.blocks", 12), **head_keys()}
DROPTRACK = {
    **OSTRACK,
    **{"backbone.pos_embed_z": (1, 144, 768), "backbone.pos_embed_x": (1, 576, 768)},
    **{"backbone.temporal_pos_embed_z": (1, 1, 768), "backbone.temporal_pos_embed_x": (1, 1, 768)},
}
SRTRACK = {
    **{"backbone.cls_token": (1, 1, 768)},
    **POSITIONS,
    **embed_and_norm("_rgb"),
    **embed_and_norm("_event"),
    **of_blocks("backbone.blocks_rgb", 12),
    **of_blocks("backbone.blocks_event", 12),
    **of_blocks("backbone.blocks_cross", 4),
    **head_keys(),
}
PUBLISHED = {"OSTrack": (OSTRACK, "base", 1, 2), "DropTrack": (DROPTRACK, "base_384", 1, 2), "SRTrack": (SRTRACK, "base", 2, 1)}
"""Keys, preset, streams, keys without a part in the tracker."""


def weights(keys):
    return {name: torch.empty(shape, device="meta") for name, shape in keys.items()}


def vit(dim=96, depth=4, patch=16, grid=14, scale=True):
    """Keys of a plain backbone by timm's names."""
    block = {name: tuple(dim if n == 768 else n // 768 * dim for n in shape) for name, shape in BLOCK.items()}
    keys = {"cls_token": (1, 1, dim), "pos_embed": (1, 1 + grid**2, dim), "patch_embed.proj.weight": (dim, 3, patch, patch)}
    keys |= {"patch_embed.proj.bias": (dim,), "norm.weight": (dim,), "norm.bias": (dim,), "head.weight": (10, dim), "head.bias": (10,)}
    for i in range(depth):
        keys |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
        keys |= {f"blocks.{i}.ls{n}.gamma": (dim,) for n in (1, 2) if scale}
    return keys


@pytest.mark.parametrize("layout", PUBLISHED)
def test_published_keys_become_ours_and_each_is_accounted_for(layout):
    keys, preset, streams, ignored = PUBLISHED[layout]
    mapped = map_keys(weights(keys), "file")
    assert (mapped.layout, mapped.streams) == (layout, streams)
    found = {name: tuple(piece.value.shape) for name, piece in mapped.pieces.items()}
    assert found == shapes(weightless(preset, streams, frame_identity=layout == "DropTrack"))
    assert sorted([*mapped.ignored, *(key for piece in mapped.pieces.values() for key in piece.keys)]) == sorted(keys)
    assert len(mapped.ignored) == ignored
    assert mapped.ignored["backbone.cls_token"].startswith("class token")
    assert fitting_preset(sizes_of(mapped, "file"), None, "file") == preset
    assert not any(piece.change for piece in mapped.pieces.values())


def test_the_published_map_from_one_stream_to_two():
    sources = two_stream_sources((2, 5, 8, 11), shapes(weightless("base", 2)))
    for ours, theirs in {
        "backbone.patch_embed_rgb.proj.weight": "backbone.patch_embed.proj.weight",
        "backbone.patch_embed_aux.proj.weight": "backbone.patch_embed.proj.weight",
        "backbone.norm_rgb.bias": "backbone.norm.bias",
        "backbone.norm_aux.bias": "backbone.norm.bias",
        "backbone.blocks_rgb.10.attn.qkv.weight": "backbone.blocks.10.attn.qkv.weight",
        "backbone.blocks_aux.1.attn.qkv.weight": "backbone.blocks.1.attn.qkv.weight",
        "backbone.fusion.0.mlp.fc1.bias": "backbone.blocks.2.mlp.fc1.bias",
        "backbone.fusion.1.mlp.fc1.bias": "backbone.blocks.5.mlp.fc1.bias",
        "backbone.fusion.2.mlp.fc1.bias": "backbone.blocks.8.mlp.fc1.bias",
        "backbone.fusion.3.mlp.fc1.bias": "backbone.blocks.11.mlp.fc1.bias",
        "backbone.pos_embed_z": "backbone.pos_embed_z",
        "box_head.conv5_ctr.bias": "box_head.conv5_ctr.bias",
    }.items():
        assert sources[ours] == theirs
    assert set(sources.values()) == set(shapes(weightless("base", 1)))


def test_backbones_by_timms_and_hugging_faces_names_give_the_same():
    timms = {name: torch.randn(shape) for name, shape in vit().items()}
    theirs = {}
    for name, value in timms.items():
        head, _, rest = name.partition(".")
        if ".attn.qkv." in name:
            for which, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                theirs["encoder.layer." + rest.replace("attn.qkv", f"attention.attention.{which}")] = part
            continue
        for ours, hf in (
            (".attn.proj.", ".attention.output.dense."),
            *((f".ls{i}.gamma", f".layer_scale{i}.lambda1") for i in (1, 2)),
            *(("patch_embed.proj", "embeddings.patch_embeddings.projection"), ("cls_token", "embeddings.cls_token")),
            *(("pos_embed", "embeddings.position_embeddings"), ("blocks.", "encoder.layer.")),
        ):
            name = name.replace(ours, hf) if ours in name else name
        theirs["layernorm." + rest if head == "norm" else "classifier." + rest if head == "head" else name] = value
    for prefix in ("", "dinov2.", "backbone."):
        renamed = {name if name.startswith("classifier") else prefix + name: value for name, value in theirs.items()}
        ours, hf = map_keys(timms, "a"), map_keys(renamed, "b")
        assert ours.pieces.keys() == hf.pieces.keys()
        for name, piece in ours.pieces.items():
            assert torch.equal(piece.value, hf.pieces[name].value), name
        assert sorted([*hf.ignored, *hf.grid.keys, *{key for piece in hf.pieces.values() for key in piece.keys}]) == sorted(renamed)
        assert torch.equal(ours.grid.value, hf.grid.value)


def test_layer_scale_is_in_the_layers_before_it():
    """Converted blocks compute what timm's own with layer scale do."""
    torch.manual_seed(0)
    theirs = timm.models.VisionTransformer(embed_dim=96, depth=2, num_heads=3, init_values=0.5, num_classes=0).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) * (0.2 if p.dim() > 1 else 0.5))
    mapped = map_keys(theirs.state_dict(), "timm")
    tracker = weightless("tiny", 1)
    block = tracker.backbone.blocks[0]
    tokens = torch.randn(2, 7, 96)
    for i in range(2):
        prefix = f"backbone.blocks.{i}."
        own = {name.removeprefix(prefix): piece.value for name, piece in mapped.pieces.items() if name.startswith(prefix)}
        block.load_state_dict(own, assign=True)
        with torch.inference_mode():
            torch.testing.assert_close(block(tokens), theirs.blocks[i](tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dim", "patch", "presets"), [(768, 16, ["base", "base_384"]), (384, 14, ["small"]), (384, 16, [])])
def test_a_backbone_fits_the_sizes_of_its_width_and_patch(dim, patch, presets):
    found = sizes_of(map_keys(weights(vit(dim, 12, patch)), "file"), "file")
    assert (found.dim, found.depth, found.patch, found.template_tokens) == (dim, 12, patch, None)
    for name in PRESETS:
        if name in presets:
            assert fitting_preset(found, name, "file") == name
        else:
            with pytest.raises(ValueError, match=f"file is {dim} wide, 12 blocks, patch {patch}.*; expected preset {name}: "):
                fitting_preset(found, name, "file")
    if len(presets) == 2:
        with pytest.raises(ValueError, match=r"\(preset base or base_384\); say which with preset"):
            fitting_preset(found, None, "file")
    if not presets:
        with pytest.raises(ValueError, match="384 wide, 12 blocks, patch 16; expected one of tiny: 96 wide"):
            fitting_preset(found, None, "file")


def test_a_checkpoint_of_another_size_says_which_it_is():
    found = sizes_of(map_keys(weights(OSTRACK), "OSTrack_ep0300.pth.tar"), "x")
    with pytest.raises(
        ValueError,
        match=r"a.pth is 768 wide, 12 blocks, patch 16, 64 \+ 256 tokens, head of 256 \(preset base\); "
        r"expected preset base_384: 768 wide, 12 blocks, patch 16, 144 \+ 576 tokens, head of 256",
    ):
        fitting_preset(found, "base_384", "a.pth")
    with pytest.raises(ValueError, match="preset is 'huge'; expected one of tiny, small, base, base_384"):
        fitting_preset(found, "huge", "a.pth")
    assert Sizes.of(PRESETS["base"]) == found


def test_unknown_layouts_and_parts_of_trackers_are_named():
    with pytest.raises(ValueError, match=r"r.pth: keys such as fc.weight, layer1.0.conv1.weight are of no known layout; expected those of"):
        map_keys(weights({"layer1.0.conv1.weight": (8, 3, 3, 3), "fc.weight": (2, 2)}), "r.pth")
    headless = {name: shape for name, shape in OSTRACK.items() if not name.startswith("box_head")}
    with pytest.raises(ValueError, match=r"h.pth: OSTrack without box_head.conv1_ctr.0.weight; expected a whole one"):
        sizes_of(map_keys(weights(headless), "h.pth"), "h.pth")
    flat = vit() | {"pos_embed": (1, 200, 96)}
    with pytest.raises(ValueError, match=r"p.pth: position embeddings are \(1, 200, 96\)"):
        map_keys(weights(flat), "p.pth")


def test_positions_keep_rows_and_columns_apart_and_constants_constant():
    side, arch = 14, PRESETS["base"]
    row, column = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    grid = torch.stack([torch.full_like(row, 3.0), row, column], 2).reshape(1, side**2, 3)
    with_class_token = torch.cat([torch.full((1, 1, 3), 99.0), grid], 1)
    for value in (grid, with_class_token):
        fitted = fit_positions(Piece(value=value, keys=("pos_embed",)), arch)
        for name, cells in (("z", 8), ("x", 16)):
            piece = fitted[f"backbone.pos_embed_{name}"]
            assert piece.change == f"interpolated from 14 x 14 to {cells} x {cells}"
            image = piece.value.reshape(cells, cells, 3)
            torch.testing.assert_close(image[..., 0], torch.full((cells, cells), 3.0))
            assert (image[..., 1].diff(dim=0) > 0).all()
            torch.testing.assert_close(image[..., 1], image[..., 2].T)
            inside = (torch.arange(cells) + 0.5) * side / cells - 0.5  # cell centres keep their place
            torch.testing.assert_close(image[2:-2, 4, 1], inside[2:-2], rtol=0, atol=0.05)
    same = fit_positions(Piece(value=torch.randn(1, 64, 5), keys=()), arch)["backbone.pos_embed_z"].value
    assert same.shape == (1, 64, 5)
