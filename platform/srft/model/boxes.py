"""Box formats and overlaps on tensors. Formats: ltwh (left, top, width, height), xyxy (corners), cxcywh (centre, size)."""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Corners of boxes.

    Args:
        boxes: ``[..., 4]`` cxcywh, any unit.

    Returns:
        ``[..., 4]`` xyxy, same unit.
    """
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], -1)


def ltwh_to_cxcywh(boxes: Tensor) -> Tensor:
    """Centres and sizes of boxes.

    Args:
        boxes: ``[..., 4]`` ltwh, any unit.

    Returns:
        ``[..., 4]`` cxcywh, same unit.
    """
    return torch.cat([boxes[..., :2] + boxes[..., 2:] / 2, boxes[..., 2:]], -1)


def generalized_iou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Generalized IoU and IoU of paired boxes (Rezatofighi et al., CVPR 2019).

    Args:
        first: boxes ``[B, 4]`` xyxy.
        second: boxes ``[B, 4]`` xyxy, same unit.

    Returns:
        GIoU ``[B]`` in (-1, 1] and IoU ``[B]`` in [0, 1]; boxes of negative size count as empty, two empty boxes overlap 0.
    """
    area_first = (first[:, 2:] - first[:, :2]).clamp(min=0).prod(1)
    area_second = (second[:, 2:] - second[:, :2]).clamp(min=0).prod(1)
    inner = (torch.minimum(first[:, 2:], second[:, 2:]) - torch.maximum(first[:, :2], second[:, :2])).clamp(min=0).prod(1)
    hull = (torch.maximum(first[:, 2:], second[:, 2:]) - torch.minimum(first[:, :2], second[:, :2])).clamp(min=0).prod(1)
    union = area_first + area_second - inner
    iou = inner / union.clamp(min=1e-9)
    return iou - (hull - union) / hull.clamp(min=1e-9), iou
