"""Vision-transformer backbones over [template ; search] tokens: one stream for RGB, two fused streams for RGB plus another modality.

Shapes: B batch, N tokens (template N_z first, then search N_x), C channels of a token, H heads, D channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from srft.model.architecture import Architecture
from srft.model.block import Block


class _Streams(nn.Module):
    """What backbones of one and of two streams share: positions, and the settings of training."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.grad_checkpointing = False
        self.pos_embed_z = nn.Parameter(torch.zeros(1, arch.template_cells**2, arch.dim))
        self.pos_embed_x = nn.Parameter(torch.zeros(1, arch.search_cells**2, arch.dim))
        for position in (self.pos_embed_z, self.pos_embed_x):
            nn.init.trunc_normal_(position, std=0.02)
        if arch.frame_identity:
            self.temporal_pos_embed_z = nn.Parameter(torch.zeros(1, 1, arch.dim))
            self.temporal_pos_embed_x = nn.Parameter(torch.zeros(1, 1, arch.dim))

    def _by_depth(self) -> list[tuple[int, Block]]:
        raise NotImplementedError

    def set_drop_path(self, rate: float) -> None:
        """Stochastic depth: the share of samples that skip a residual branch, rising linearly from 0 to the last block's.

        Args:
            rate: of the last block, 0 to below 1; only training mode drops.

        Raises:
            ValueError: the rate is out of range.
        """
        if not 0 <= rate < 1:
            raise ValueError(f"drop path rate is {rate}; expected 0 to below 1")
        rates = torch.linspace(0, rate, self.arch.depth).tolist()
        for i, block in self._by_depth():
            block.set_drop_path(rates[i])

    def _positions(self) -> tuple[Tensor, Tensor]:
        if not self.arch.frame_identity:
            return self.pos_embed_z, self.pos_embed_x
        return self.pos_embed_z + self.temporal_pos_embed_z, self.pos_embed_x + self.temporal_pos_embed_x

    def _tokens(self, embed: PatchEmbed, template: Tensor, search: Tensor) -> Tensor:
        z, x = self._positions()
        return torch.cat([embed(template) + z, embed(search) + x], 1)

    def _run(self, function: Any, *args: Any) -> Any:
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(function, *args, use_reentrant=False)
        return function(*args)


class Backbone(_Streams):
    """Single stream over RGB (OSTrack's layout: learned positions per part, no class token, joint attention).

    With candidate elimination, search tokens that the template's centre attends to least leave the stream after the attention of some
    blocks; their places in the output are zero (OSTrack, arXiv 2203.11991).
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch)
        self.patch_embed = _embed(arch)
        self.blocks = nn.ModuleList(Block(arch.dim, arch.heads) for _ in range(arch.depth))
        self.norm = nn.LayerNorm(arch.dim, eps=1e-6)

    def _by_depth(self) -> list[tuple[int, Any]]:
        return list(enumerate(self.blocks))

    def forward(self, template: Tensor, search: Tensor) -> Tensor:
        """Encode a pair.

        Args:
            template: normalized RGB ``[B, 3, h, w]``.
            search: normalized RGB ``[B, 3, H, W]``.

        Returns:
            Search tokens ``[B, N_x, C]``, zero where eliminated.
        """
        arch, z = self.arch, self.pos_embed_z.shape[1]
        tokens, places = self._tokens(self.patch_embed, template, search), None
        for i, block in enumerate(self.blocks):
            unread = z if i == arch.depth - 1 else 0  # nothing reads what the last block makes of the template
            if i in arch.eliminate_in:
                tokens, kept = self._run(block.eliminate, tokens, z, arch.template_centre, arch.kept_tokens(tokens.shape[1] - z))
                places = kept if places is None else places.gather(1, kept)
                tokens = tokens[:, unread:]
            else:
                tokens = self._run(block, tokens, unread)
        tokens = self.norm(tokens)
        if places is None:
            return tokens
        index = places[:, :, None].expand(-1, -1, tokens.shape[2])
        return tokens.new_zeros(tokens.shape[0], self.pos_embed_x.shape[1], tokens.shape[2]).scatter(1, index, tokens)


class TwoStreamBackbone(_Streams):
    """Two streams (RGB, auxiliary) with fusion blocks over the concatenated tokens of both (SRTrack's layout, arXiv 2508.17488)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch)
        if arch.eliminate_in:
            raise ValueError(f"eliminate_in is {arch.eliminate_in}; two streams keep all candidates, expected ()")
        self.patch_embed_rgb = _embed(arch)
        self.patch_embed_aux = _embed(arch)
        self.blocks_rgb = nn.ModuleList(Block(arch.dim, arch.heads) for _ in range(arch.depth))
        self.blocks_aux = nn.ModuleList(Block(arch.dim, arch.heads) for _ in range(arch.depth))
        self.fusion = nn.ModuleList(Block(arch.dim, arch.heads) for _ in arch.fusion_after)
        self.norm_rgb = nn.LayerNorm(arch.dim, eps=1e-6)
        self.norm_aux = nn.LayerNorm(arch.dim, eps=1e-6)

    def _by_depth(self) -> list[tuple[int, Any]]:
        streams = [*enumerate(self.blocks_rgb), *enumerate(self.blocks_aux)]
        return [*streams, *zip(self.arch.fusion_after, self.fusion, strict=True)]

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
            rgb = self._run(block_rgb, rgb)
            aux = self._run(block_aux, aux) if aux is not None else None
            if i in self.arch.fusion_after:
                block = next(fusion)
                if aux is None:
                    rgb = self._run(block, rgb)
                else:
                    rgb, aux = self._run(block, torch.cat([rgb, aux], 1)).chunk(2, 1)
        rgb = self.norm_rgb(rgb[:, z:])
        return rgb if aux is None else (rgb + self.norm_aux(aux[:, z:])) / 2


def _embed(arch: Architecture) -> PatchEmbed:
    return PatchEmbed(img_size=None, patch_size=arch.patch, in_chans=3, embed_dim=arch.dim)
