"""Pixels as networks want them. Apart from the networks, so that processes that make batches load none."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["MEAN", "STD", "normalize"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalize(crops: Tensor) -> Tensor:
    """Crops as the network wants them.

    Args:
        crops: ``[B, H, W, C]`` uint8, C = 3 or 6.

    Returns:
        ``[B, C, H, W]`` float32 with the ImageNet mean and deviation removed, the auxiliary channels like the RGB ones.
    """
    copies = crops.shape[-1] // 3
    mean = torch.tensor(MEAN * copies, device=crops.device)[:, None, None] * 255
    std = torch.tensor(STD * copies, device=crops.device)[:, None, None] * 255
    # Transposed as bytes, then in place: a quarter of the time.
    return crops.permute(0, 3, 1, 2).contiguous().float().sub_(mean).div_(std)
