"""Centre head: score, offset and size maps over the search region, and the box at the best score."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


def _branch_layers(channels: list[int]) -> list[nn.Sequential]:
    return [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)) for a, b in pairwise(channels)]


class CenterHead(nn.Module):
    """Three convolutional branches (OSTrack's CenterPredictor layout and key names)."""

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        widths = [dim, channels, channels // 2, channels // 4, channels // 8]
        for name, outputs in (("ctr", 1), ("offset", 2), ("size", 2)):
            for i, layer in enumerate(_branch_layers(widths), 1):
                setattr(self, f"conv{i}_{name}", layer)
            setattr(self, f"conv5_{name}", nn.Conv2d(widths[-1], outputs, 1))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.constant_(self.get_parameter("conv5_ctr.bias"), -3.0)  # few cells are the centre: start from a low score

    def _branch(self, name: str, x: Tensor) -> Tensor:
        for i in range(1, 6):
            x = self.get_submodule(f"conv{i}_{name}")(x)
        # Maps are float32 at least: bfloat16 has neither a score below 1 at the clamp nor an offset to a tenth of a cell.
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict the maps.

        Args:
            features: search tokens as an image ``[B, C, S, S]``.

        Returns:
            Score ``[B, 1, S, S]`` in (0, 1), size ``[B, 2, S, S]`` (w, h as fractions of the search region) and offset
            ``[B, 2, S, S]`` (x, y in cells).
        """
        score = self._branch("ctr", features).sigmoid().clamp(1e-4, 1 - 1e-4)
        size = self._branch("size", features).sigmoid().clamp(1e-4, 1 - 1e-4)
        return score, size, self._branch("offset", features)


def decode(score: Tensor, size: Tensor, offset: Tensor) -> Tensor:
    """Boxes at the cells of highest score.

    Args:
        score: ``[B, 1, S, S]``, windowed or not.
        size: ``[B, 2, S, S]`` fractions of the search region.
        offset: ``[B, 2, S, S]`` cells.

    Returns:
        Boxes ``[B, 4]`` cxcywh as fractions of the search region.
    """
    cells = score.shape[-1]
    best = score.flatten(1).argmax(1, keepdim=True)
    pick = lambda maps: maps.flatten(2).gather(2, best[:, None].expand(-1, 2, -1)).squeeze(2)
    cell = torch.cat([best % cells, best // cells], 1).to(offset.dtype)
    return torch.cat([(cell + pick(offset)) / cells, pick(size)], 1)
