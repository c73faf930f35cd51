"""A transformer block whose output can be asked for at some of its tokens only.

Shapes: B batch, N tokens (template N_z first, then search N_x), C channels of a token, H heads, D channels of a head.
"""

from __future__ import annotations

import torch
from timm.layers import Attention, DropPath, Mlp
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Block(nn.Module):
    """``x + attention(norm1(x))``, then ``+ mlp(norm2(.))``: timm's layers and key names, fused attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path: nn.Module = nn.Identity()

    def set_drop_path(self, rate: float) -> None:
        """Stochastic depth of both residual branches in training mode.

        Args:
            rate: share of samples that skip a branch.
        """
        self.drop_path = DropPath(rate).train(self.training) if rate else nn.Identity()

    def forward(self, tokens: Tensor, start: int = 0) -> Tensor:
        """The block's output.

        Args:
            tokens: ``[B, N, C]``.
            start: tokens before this one are attended to, but have no output.

        Returns:
            ``[B, N - start, C]``.
        """
        if start == 0:
            tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        else:
            query, key, value = self._heads(tokens)
            attended = scaled_dot_product_attention(query[:, :, start:], key, value)
            tokens = tokens[:, start:] + self.drop_path(self._project(attended))
        return self._feed(tokens)

    def eliminate(self, tokens: Tensor, template: int, centre: int, keep: int) -> tuple[Tensor, Tensor]:
        """The block's output with those search tokens only that the template's centre attends to most.

        They are chosen by the attention averaged over heads, after the attention and before the MLP (OSTrack). The attention itself
        stays fused: only the centre's row is computed a second time, and nothing is for tokens that leave.

        Args:
            tokens: ``[B, N, C]``.
            template: N_z.
            centre: the template token that chooses.
            keep: search tokens to keep, at most N_x.

        Returns:
            Tokens ``[B, N_z + keep, C]``, and which of the N_x search tokens these are, ``[B, keep]``, most attended first.
        """
        query, key, value = self._heads(tokens)
        with torch.no_grad():
            logits = (query[:, :, centre : centre + 1] * self.attn.scale) @ key.transpose(-2, -1)
            kept = logits.softmax(-1)[:, :, 0, template:].mean(1).topk(keep, dim=1).indices
        first = torch.arange(template, device=kept.device).expand(kept.shape[0], -1)
        rows = torch.cat([first, kept + template], 1)
        query = query.gather(2, rows[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3]))
        attended = scaled_dot_product_attention(query, key, value)
        tokens = tokens.gather(1, rows[:, :, None].expand(-1, -1, tokens.shape[2]))
        return self._feed(tokens + self.drop_path(self._project(attended))), kept

    def _heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Query, key and value, each [B, H, N, D].
        qkv = self.attn.qkv(self.norm1(tokens)).unflatten(2, (3, self.attn.num_heads, self.attn.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def _project(self, attended: Tensor) -> Tensor:
        return self.attn.proj(attended.transpose(1, 2).flatten(2))

    def _feed(self, tokens: Tensor) -> Tensor:
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))
