"""Tracking losses: focal on the score map, GIoU and L1 on the box (OSTrack's sum: 1, 2 and 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from srft.model.boxes import cxcywh_to_xyxy, generalized_iou
from srft.model.tracker import TrackerOutput

FOCAL_WEIGHT, GIOU_WEIGHT, L1_WEIGHT = 1.0, 2.0, 5.0


def _gaussian_radius(width: Tensor, height: Tensor, overlap: float = 0.7) -> Tensor:
    # CornerNet's radius (its published formula, denominators of two in all three cases), in cells, truncated to whole cells.
    total = width + height
    area = width * height
    c1 = area * (1 - overlap) / (1 + overlap)
    r1 = (total + (total**2 - 4 * c1).clamp(min=0).sqrt()) / 2
    r2 = (2 * total + (4 * total**2 - 16 * (1 - overlap) * area).clamp(min=0).sqrt()) / 2
    b3, c3 = -2 * overlap * total, (overlap - 1) * area
    r3 = (b3 + (b3**2 - 16 * overlap * c3).clamp(min=0).sqrt()) / 2
    return torch.minimum(torch.minimum(r1, r2), r3).clamp(min=0).floor()


def heat_map(boxes: Tensor, cells: int) -> Tensor:
    """Groundtruth score map: a Gaussian at the centre's cell.

    Args:
        boxes: ``[B, 4]`` cxcywh, fractions of the search region.
        cells: side S of the map.

    Returns:
        ``[B, S, S]`` in [0, 1], exactly 1 at the centre's cell; a centre on the far edge rounds off the map and leaves no 1.
    """
    center = (boxes[:, :2] * cells).round()
    radius = _gaussian_radius(boxes[:, 2] * cells, boxes[:, 3] * cells)
    sigma = (2 * radius + 1) / 6
    grid = torch.arange(cells, device=boxes.device, dtype=boxes.dtype)
    dx, dy = grid[None, :] - center[:, :1], grid[None, :] - center[:, 1:2]
    distance2 = dy[:, :, None] ** 2 + dx[:, None, :] ** 2
    inside = (dy.abs()[:, :, None] <= radius[:, None, None]) & (dx.abs()[:, None, :] <= radius[:, None, None])
    return torch.exp(-distance2 / (2 * sigma**2)[:, None, None]) * inside


def focal_loss(score_map: Tensor, target: Tensor) -> Tensor:
    """CornerNet's focal loss (alpha 2, beta 4), summed over the map and averaged over the samples.

    The published divisor is the number of exact ones, which is the number of samples unless a centre lies off the map. Samples make
    the mean over workers equal to the loss of the whole batch, whoever holds such a sample.

    Args:
        score_map: ``[B, 1, S, S]`` in (0, 1).
        target: ``[B, S, S]`` from :func:`heat_map`.

    Returns:
        A scalar.
    """
    score = score_map.squeeze(1).clamp(1e-12, 1 - 1e-6)
    positive = target == 1
    loss = torch.where(positive, score.log() * (1 - score) ** 2, (1 - score).log() * score**2 * (1 - target) ** 4)
    return -loss.sum() / len(target)


def tracking_loss(output: TrackerOutput, boxes: Tensor) -> dict[str, Tensor]:
    """The weighted sum and its parts.

    Args:
        output: of the network, batch B.
        boxes: groundtruth ``[B, 4]`` cxcywh, fractions of the search region.

    Returns:
        Scalars ``loss``, ``focal``, ``giou``, ``l1`` and, without gradient, ``iou`` (mean overlap of the predicted boxes).
    """
    predicted, truth = cxcywh_to_xyxy(output.boxes), cxcywh_to_xyxy(boxes).clamp(0, 1)
    giou, iou = generalized_iou(predicted, truth)
    parts = {
        "focal": focal_loss(output.score_map, heat_map(boxes, output.score_map.shape[-1])),
        "giou": (1 - giou).mean(),
        "l1": (predicted - truth).abs().mean(),
    }
    total = FOCAL_WEIGHT * parts["focal"] + GIOU_WEIGHT * parts["giou"] + L1_WEIGHT * parts["l1"]
    return {"loss": total, **parts, "iou": iou.detach().mean()}


def center_label_loss(output: TrackerOutput) -> Tensor:
    """Negative log-likelihood of a centre drawn (torch's random numbers) from the model's own normalized score map.

    The score map is the only part of the loss that is a likelihood; this is what the MC Fisher differentiates.

    Args:
        output: of the network, batch B.

    Returns:
        The mean over the batch, a scalar.
    """
    score = output.score_map.flatten(1)
    log_likelihood = (score / score.sum(1, keepdim=True)).log()
    label = torch.multinomial(log_likelihood.detach().exp(), 1)
    return -log_likelihood.gather(1, label).mean()
