"""The tracker as a network: normalized template and search region in, maps and boxes out."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn

from srft.model.architecture import PRESETS, Architecture, eliminating
from srft.model.backbone import Backbone, TwoStreamBackbone
from srft.model.head import CenterHead, decode


class TrackerOutput(NamedTuple):
    """What the network says about a batch of search regions, each S x S cells."""

    score_map: Tensor
    """``[B, 1, S, S]`` in (0, 1)."""
    size_map: Tensor
    """``[B, 2, S, S]`` width and height, fractions of the search region."""
    offset_map: Tensor
    """``[B, 2, S, S]`` x and y, cells."""
    boxes: Tensor
    """``[B, 4]`` cxcywh at the highest score, fractions of the search region."""


class MultiModalTracker(nn.Module):
    """Backbone and centre head, with one stream (RGB) or two (RGB and an auxiliary modality)."""

    def __init__(self, arch: Architecture, streams: int) -> None:
        super().__init__()
        if streams not in (1, 2):
            raise ValueError(f"streams is {streams}; expected 1 (RGB) or 2 (RGB and an auxiliary modality)")
        self.arch, self.streams = arch, streams
        self.backbone = Backbone(arch) if streams == 1 else TwoStreamBackbone(arch)
        self.box_head = CenterHead(arch.dim, arch.head_channels)

    @classmethod
    def from_preset(cls, preset: str, streams: int, *, frame_identity: bool = False, eliminate: bool = False) -> MultiModalTracker:
        """An untrained tracker of a named size.

        Args:
            preset: a key of ``PRESETS``.
            streams: 1 or 2.
            frame_identity: with DropTrack's embeddings of template and search frame.
            eliminate: with OSTrack's candidate elimination, for one stream.

        Returns:
            The tracker, in training mode.

        Raises:
            ValueError: no such preset.
        """
        if preset not in PRESETS:
            raise ValueError(f"preset is {preset!r}; expected one of {', '.join(PRESETS)}")
        arch = replace(PRESETS[preset], frame_identity=frame_identity)
        return cls(eliminating(arch) if eliminate else arch, streams)

    def set_training(self, *, drop_path: float = 0.0, grad_checkpointing: bool = False) -> None:
        """Settings of training that change neither weights nor what the tracker computes in eval mode.

        Args:
            drop_path: stochastic depth of the last block, rising linearly from 0; an invalid one is a ValueError.
            grad_checkpointing: recompute every block in the backward pass instead of keeping what is inside it.
        """
        self.backbone.set_drop_path(drop_path)
        self.backbone.grad_checkpointing = grad_checkpointing

    def forward(self, template: Tensor, search: Tensor) -> TrackerOutput:
        """Locate the template's target in the search region.

        Args:
            template: normalized ``[B, C, h, w]``, C = 3, or 6 for two streams (RGB, then auxiliary).
            search: normalized ``[B, C, H, W]``. Two streams given C = 3 leave the auxiliary stream out.

        Returns:
            Maps and boxes. Inputs of other sizes, numbers or types than the tracker takes are a ValueError that says which.
        """
        self._check_inputs(template, search)
        tokens = self.backbone(template, search)
        cells = self.arch.search_cells
        score, size, offset = self.box_head(tokens.transpose(1, 2).unflatten(2, (cells, cells)))
        return TrackerOutput(score, size, offset, decode(score, size, offset))

    def _check_inputs(self, template: Tensor, search: Tensor) -> None:
        for name, image, side in (("template", template, self.arch.template_px), ("search region", search, self.arch.search_px)):
            if image.dim() != 4 or image.shape[2:] != (side, side):
                raise ValueError(f"{name} has shape {tuple(image.shape)}; expected [B, C, {side}, {side}]")
            if not image.is_floating_point():
                raise ValueError(f"{name} is {image.dtype}; expected floating point, see srft.model.tracker.normalize")
        channels = template.shape[1], search.shape[1]
        if channels != (3, 3) and not (channels == (6, 6) and self.streams == 2):
            raise ValueError(
                f"template and search region have {channels[0]} and {channels[1]} channels; a tracker of {self.streams} stream(s) takes "
                f"3 (RGB) {'or 6 (RGB, then the auxiliary modality), the same for both' if self.streams == 2 else 'for both'}"
            )
        if template.shape[0] != search.shape[0]:
            raise ValueError(f"{template.shape[0]} templates come with {search.shape[0]} search regions; expected as many")
