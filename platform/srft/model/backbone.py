"""Vision-transformer backbones over [template ; search] tokens: one stream for RGB, two fused streams for RGB plus another modality.

Shapes: B batch, N tokens (template N_z first, then search N_x), C channels of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of a tracker."""

    dim: int
    """Channels of a token [C]."""
    depth: int
    """Transformer blocks per stream."""
    heads: int
    patch: int
    """Side of a patch in pixels."""
    search_px: int
    template_px: int
    search_factor: float
    """Side of the search region in target sizes (square root of the box area)."""
    template_factor: float
    fusion_after: tuple[int, ...]
    """Blocks after which the two streams are fused."""
    head_channels: int
    """Channels of the head's first convolution; halved three times."""

    @property
    def search_cells(self) -> int:
        """Side of the score map."""
        return self.search_px // self.patch

    @property
    def template_cells(self) -> int:
        """Side of the template's token grid."""
        return self.template_px // self.patch


PRESETS: dict[str, Architecture] = {
    "tiny": Architecture(
        dim=96,
        depth=4,
        heads=3,
        patch=16,
        search_px=128,
        template_px=64,
        search_factor=4.0,
        template_factor=2.0,
        fusion_after=(1, 3),
        head_channels=64,
    ),
    "small": Architecture(
        dim=384,
        depth=12,
        heads=6,
        patch=16,
        search_px=224,
        template_px=112,
        search_factor=4.0,
        template_factor=2.0,
        fusion_after=(2, 5, 8, 11),
        head_channels=256,
    ),
    "base": Architecture(
        dim=768,
        depth=12,
        heads=12,
        patch=16,
        search_px=256,
        template_px=128,
        search_factor=4.0,
        template_factor=2.0,
        fusion_after=(2, 5, 8, 11),
        head_channels=256,
    ),
    "base_384": Architecture(
        dim=768,
        depth=12,
        heads=12,
        patch=16,
        search_px=384,
        template_px=192,
        search_factor=5.0,
        template_factor=2.0,
        fusion_after=(2, 5, 8, 11),
        head_channels=256,
    ),
}


def _block(arch: Architecture) -> Block:
    norm: Any = partial(nn.LayerNorm, eps=1e-6)
    return Block(arch.dim, arch.heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=norm)


def _embed(arch: Architecture) -> PatchEmbed:
    return PatchEmbed(img_size=None, patch_size=arch.patch, in_chans=3, embed_dim=arch.dim)


class Backbone(nn.Module):
    """Single stream over RGB (OSTrack's layout: learned positions per part, no class token, joint attention)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.patch_embed = _embed(arch)
        self.pos_embed_z = nn.Parameter(torch.zeros(1, arch.template_cells**2, arch.dim))
        self.pos_embed_x = nn.Parameter(torch.zeros(1, arch.search_cells**2, arch.dim))
        self.blocks = nn.ModuleList(_block(arch) for _ in range(arch.depth))
        self.norm = nn.LayerNorm(arch.dim, eps=1e-6)
        for position in (self.pos_embed_z, self.pos_embed_x):
            nn.init.trunc_normal_(position, std=0.02)

    def forward(self, template: Tensor, search: Tensor) -> Tensor:
        """Encode a pair.

        Args:
            template: normalized RGB ``[B, 3, h, w]``.
            search: normalized RGB ``[B, 3, H, W]``.

        Returns:
            Search tokens ``[B, N_x, C]``.
        """
        tokens = torch.cat([self.patch_embed(template) + self.pos_embed_z, self.patch_embed(search) + self.pos_embed_x], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, self.pos_embed_z.shape[1] :]


class TwoStreamBackbone(nn.Module):
    """Two streams (RGB, auxiliary) with fusion blocks over the concatenated tokens of both (SRTrack's layout, arXiv 2508.17488)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.fusion_after = arch.fusion_after
        self.patch_embed_rgb = _embed(arch)
        self.patch_embed_aux = _embed(arch)
        self.pos_embed_z = nn.Parameter(torch.zeros(1, arch.template_cells**2, arch.dim))
        self.pos_embed_x = nn.Parameter(torch.zeros(1, arch.search_cells**2, arch.dim))
        self.blocks_rgb = nn.ModuleList(_block(arch) for _ in range(arch.depth))
        self.blocks_aux = nn.ModuleList(_block(arch) for _ in range(arch.depth))
        self.fusion = nn.ModuleList(_block(arch) for _ in arch.fusion_after)
        self.norm_rgb = nn.LayerNorm(arch.dim, eps=1e-6)
        self.norm_aux = nn.LayerNorm(arch.dim, eps=1e-6)

    def forward(self, template: Tensor, search: Tensor) -> Tensor:
        """Encode a pair.

        Args:
            template: normalized ``[B, 6, h, w]`` (RGB, then auxiliary), or ``[B, 3, h, w]``: RGB only, the auxiliary stream left out.
            search: normalized ``[B, 6, H, W]`` or ``[B, 3, H, W]``.

        Returns:
            Search tokens ``[B, N_x, C]``: the mean of both streams, or the RGB stream.
        """
        z = self.pos_embed_z.shape[1]
        rgb = self._tokens(self.patch_embed_rgb, template[:, :3], search[:, :3])
        aux = self._tokens(self.patch_embed_aux, template[:, 3:], search[:, 3:]) if template.shape[1] == 6 else None
        fusion = iter(self.fusion)
        for i, (block_rgb, block_aux) in enumerate(zip(self.blocks_rgb, self.blocks_aux, strict=True)):
            rgb = block_rgb(rgb)
            aux = block_aux(aux) if aux is not None else None
            if i in self.fusion_after:
                block = next(fusion)
                if aux is None:
                    rgb = block(rgb)
                else:
                    rgb, aux = block(torch.cat([rgb, aux], 1)).chunk(2, 1)
        if aux is None:
            return self.norm_rgb(rgb)[:, z:]
        return ((self.norm_rgb(rgb) + self.norm_aux(aux)) / 2)[:, z:]

    def _tokens(self, embed: PatchEmbed, template: Tensor, search: Tensor) -> Tensor:
        return torch.cat([embed(template) + self.pos_embed_z, embed(search) + self.pos_embed_x], 1)
