"""Key layouts of checkpoints, as pure maps from their keys to ours. Every key is accounted for: mapped, or ignored with a reason.

Known: OSTrack and DropTrack (one stream), SRTrack (two), ours, and plain ViT backbones as MAE, DINOv2, timm and Hugging Face write them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, cat
from torch.nn.functional import interpolate

from srft.model.architecture import PRESETS, Architecture
from srft.model.report import some

_TRACKER_IGNORED = (
    (r"backbone\.cls_token", "class token: no tracker uses it"),
    (r"backbone\.pos_embed", "positions of the image classifier: pos_embed_z and pos_embed_x take their place"),
)
_SRTRACK = (
    (r"^backbone\.patch_embed_event\.", "backbone.patch_embed_aux."),
    (r"^backbone\.blocks_event\.", "backbone.blocks_aux."),
    (r"^backbone\.blocks_cross\.", "backbone.fusion."),
    (r"^backbone\.norm_event\.", "backbone.norm_aux."),
)
_VIT_IGNORED = (
    (r"cls_token|mask_token|reg_token|register_tokens", "special token: the tracker has patches only"),
    (r"(head|head_dist|fc_norm|pooler)\..*", "classifier"),
    (r"decoder.*", "decoder: of pre-training, or of the package's own task"),
)
_HUGGING_FACE = (
    (r"^(backbone|dinov2|vit)\.(?=embeddings|encoder|layernorm|pooler)", ""),
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(?<=\d)\.output\.dense\.", ".mlp.fc2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
)
_QKV = ("query", "key", "value")
_OF_A_TRACKER = {"backbone.pos_embed_z": 1, "backbone.pos_embed_x": 1, "box_head.conv1_ctr.0.weight": 0}


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """A weight of ours."""

    value: Tensor
    keys: tuple[str, ...]
    """What it is made of."""
    change: str = ""
    """How, if it is not a copy."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mapped:
    """A file's weights by our names."""

    layout: str
    streams: int
    pieces: Mapping[str, Piece]
    ignored: Mapping[str, str]
    grid: Piece | None = None
    """Positions ``[1, 1 + g * g, C]`` or ``[1, g * g, C]`` of a backbone without a tracker's, still to be fitted to it."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What shapes say about a tracker."""

    dim: int
    depth: int
    patch: int
    template_tokens: int | None
    """None for a backbone alone, which is fitted to any number."""
    search_tokens: int | None
    head_channels: int | None

    @classmethod
    def of(cls, arch: Architecture) -> Sizes:
        """Sizes of an architecture.

        Args:
            arch: the architecture.

        Returns:
            Its sizes.
        """
        return cls(
            dim=arch.dim,
            depth=arch.depth,
            patch=arch.patch,
            template_tokens=arch.template_cells**2,
            search_tokens=arch.search_cells**2,
            head_channels=arch.head_channels,
        )

    def fits(self, other: Sizes) -> bool:
        """Whether what both know agrees.

        Args:
            other: sizes to compare with.

        Returns:
            True if no known size differs.
        """
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return all(a == b for a, b in pairs if a is not None and b is not None)

    def __str__(self) -> str:
        tokens = "" if self.template_tokens is None else f", {self.template_tokens} + {self.search_tokens} tokens"
        head = "" if self.head_channels is None else f", head of {self.head_channels}"
        return f"{self.dim} wide, {self.depth} blocks, patch {self.patch}{tokens}{head}"


def map_keys(weights: Mapping[str, Tensor], source: str) -> Mapped:
    """Recognize a layout by its keys and bring the weights under our names.

    Args:
        weights: of a file.
        source: the file, for error messages.

    Returns:
        Weights by our names in as many streams as the file has.

    Raises:
        ValueError: the layout is none of the known ones.
    """
    first = {".".join(name.split(".")[:2]) for name in weights}
    if "backbone.blocks_event" in first:
        return _renamed(weights, "SRTrack", 2, _SRTRACK)
    if "backbone.blocks_aux" in first:
        return _renamed(weights, "srft", 2, ())
    if "backbone.blocks" in first and "backbone.pos_embed_x" in first:
        return _renamed(weights, "DropTrack" if "backbone.temporal_pos_embed_z" in weights else "OSTrack", 1, ())
    if any(re.search(r"(^|\.)encoder\.layer\.0\.", name) for name in weights):
        names = {key: _substituted(key, _HUGGING_FACE) for key in weights}
        return _vit(weights, names, "ViT backbone (Hugging Face names)", source)
    if "blocks.0" in first and "patch_embed.proj" in first:
        return _vit(weights, {key: key for key in weights}, "ViT backbone (timm names)", source)
    raise ValueError(
        f"{source}: keys such as {some(sorted(weights))} are of no known layout; expected those of OSTrack, DropTrack, SRTrack, srft, or "
        "of a ViT backbone (MAE, DINOv2, timm, Hugging Face)"
    )


def sizes_of(mapped: Mapped, source: str) -> Sizes:
    """What the shapes say.

    Args:
        mapped: weights by our names.
        source: the file, for error messages.

    Returns:
        Sizes; those of positions and head are None for a backbone alone.

    Raises:
        ValueError: what sizes are read from is missing.
    """
    stream = "" if mapped.streams == 1 else "_rgb"
    embedding = f"backbone.patch_embed{stream}.proj.weight"
    blocks = [int(m[1]) for name in mapped.pieces if (m := re.match(rf"backbone\.blocks{stream}\.(\d+)\.", name))]
    wanted = [embedding] if mapped.grid is not None else [embedding, *_OF_A_TRACKER]
    missing = [name for name in wanted if name not in mapped.pieces]
    if missing or not blocks:
        raise ValueError(f"{source}: {mapped.layout} without {', '.join(missing) or 'blocks'}; expected a whole one")
    dim, _, patch = mapped.pieces[embedding].value.shape[:3]
    counted = [None, None, None] if mapped.grid is not None else [mapped.pieces[n].value.shape[d] for n, d in _OF_A_TRACKER.items()]
    template, search, head = counted
    return Sizes(dim=dim, depth=max(blocks) + 1, patch=patch, template_tokens=template, search_tokens=search, head_channels=head)


def fitting_preset(found: Sizes, wanted: str | None, source: str) -> str:
    """The preset that a file is of.

    Args:
        found: what its shapes say.
        wanted: the preset that it has to be of; None for the only one that fits.
        source: the file and its layout, for error messages.

    Returns:
        A key of ``PRESETS``.

    Raises:
        ValueError: the wanted one is unknown or does not fit, or of all presets not exactly one does.
    """
    if wanted is not None and wanted not in PRESETS:
        raise ValueError(f"preset is {wanted!r}; expected one of {', '.join(PRESETS)}")
    fitting = [name for name, arch in PRESETS.items() if found.fits(Sizes.of(arch))]
    is_of = f"{source} is {found}" + (f" (preset {' or '.join(fitting)})" if fitting else "")
    if wanted in fitting:
        return wanted
    if wanted is not None:
        raise ValueError(f"{is_of}; expected preset {wanted}: {Sizes.of(PRESETS[wanted])}")
    if len(fitting) > 1:
        raise ValueError(f"{is_of}; say which with preset")
    if not fitting:
        known = "; ".join(f"{name}: {Sizes.of(arch)}" for name, arch in PRESETS.items())
        raise ValueError(f"{is_of}; expected one of {known}")
    return fitting[0]


def fit_positions(grid: Piece, arch: Architecture) -> dict[str, Piece]:
    """Positions of template and search region from those of a square image, by bicubic interpolation as OSTrack does it.

    Args:
        grid: positions of the image, a class token's first if there is one.
        arch: of the tracker.

    Returns:
        ``backbone.pos_embed_z`` and ``backbone.pos_embed_x``.
    """
    tokens = grid.value.shape[1]
    side = math.isqrt(tokens)
    image = grid.value[:, tokens - side**2 :].transpose(1, 2).unflatten(2, (side, side)).float()
    pieces = {}
    for name, cells in (("z", arch.template_cells), ("x", arch.search_cells)):
        fitted = interpolate(image, size=(cells, cells), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
        change = f"interpolated from {side} x {side} to {cells} x {cells}"
        pieces[f"backbone.pos_embed_{name}"] = Piece(value=fitted, keys=grid.keys, change=change)
    return pieces


def two_stream_sources(arch_fusion_after: tuple[int, ...], names: Iterable[str]) -> dict[str, str]:
    """Where each weight of a two-stream tracker comes from in the single-stream one.

    Embedding, blocks and final norm are copied to both streams; the block after which the streams are fused is also copied into
    the fusion block; positions and head keep their names (SRTrack's map).

    Args:
        arch_fusion_after: blocks after which the streams are fused.
        names: parameter and buffer names of the two-stream tracker.

    Returns:
        Two-stream name to single-stream name.
    """

    def source(name: str) -> str:
        name = re.sub(r"^backbone\.(patch_embed|norm)_(rgb|aux)\.", r"backbone.\1.", name)
        name = re.sub(r"^backbone\.blocks_(rgb|aux)\.", "backbone.blocks.", name)
        return re.sub(r"^backbone\.fusion\.(\d+)\.", lambda m: f"backbone.blocks.{arch_fusion_after[int(m[1])]}.", name)

    return {name: source(name) for name in names}


def _substituted(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _reason(name: str, rules: Iterable[tuple[str, str]]) -> str | None:
    return next((reason for pattern, reason in rules if re.fullmatch(pattern, name)), None)


def _renamed(weights: Mapping[str, Tensor], layout: str, streams: int, rules: Iterable[tuple[str, str]]) -> Mapped:
    pieces, ignored = {}, {}
    for key, value in weights.items():
        if reason := _reason(key, _TRACKER_IGNORED):
            ignored[key] = reason
        else:
            pieces[_substituted(key, rules)] = Piece(value=value, keys=(key,))
    return Mapped(layout=layout, streams=streams, pieces=pieces, ignored=ignored)


def _vit(weights: Mapping[str, Tensor], names: Mapping[str, str], layout: str, source: str) -> Mapped:
    # By timm's names; then query, key and value as one, and layer scale inside the layer before it, which is the same function.
    theirs, ignored, grid = {}, {}, None
    for key, value in weights.items():
        if reason := _reason(names[key], _VIT_IGNORED):
            ignored[key] = reason
        elif names[key] == "pos_embed":
            grid = Piece(value=value, keys=(key,))
        else:
            theirs[names[key]] = Piece(value=value, keys=(key,))
    if grid is None or (grid.value.shape[1] - math.isqrt(grid.value.shape[1]) ** 2) not in (0, 1):
        found = "none" if grid is None else tuple(grid.value.shape)
        raise ValueError(f"{source}: position embeddings are {found}; expected [1, g * g, C] or [1, 1 + g * g, C]")
    pieces: dict[str, Piece] = {}
    for name, piece in theirs.items():
        stem, _, part = name.rpartition(".")
        block, _, layer = stem.rpartition(".")
        if layer in _QKV:
            parts = [theirs.get(f"{block}.{which}.{part}") for which in _QKV]
            joined = [p for p in parts if p is not None]
            if layer == "query" and len(joined) == len(_QKV):
                keys = tuple(key for p in joined for key in p.keys)
                value = cat([p.value for p in joined])
                pieces[f"backbone.{block}.qkv.{part}"] = Piece(value=value, keys=keys, change="query, key and value as one")
            elif len(joined) < len(_QKV):
                pieces[f"backbone.{name}"] = piece
        elif not re.fullmatch(r"blocks\.\d+\.ls[12]\.gamma", name):
            pieces[f"backbone.{name}"] = piece
    for name, piece in theirs.items():
        if match := re.fullmatch(r"(blocks\.\d+)\.ls([12])\.gamma", name):
            layer = f"backbone.{match[1]}.{'attn.proj' if match[2] == '1' else 'mlp.fc2'}"
            for target in (f"{layer}.weight", f"{layer}.bias"):
                if target in pieces:
                    scaled = pieces[target].value * (piece.value[:, None] if target.endswith("weight") else piece.value)
                    pieces[target] = Piece(value=scaled, keys=(*pieces[target].keys, *piece.keys), change="layer scale multiplied in")
    return Mapped(layout=layout, streams=1, pieces=pieces, ignored=ignored, grid=grid)
