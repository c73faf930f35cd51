"""The tracker online: show it the target once, then follow it frame by frame, alone or many videos in one forward pass."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from srft.data.crops import crop, region_side
from srft.data.frames import Frame, Parts, split_frame
from srft.model.head import decode
from srft.model.normalization import normalize
from srft.model.tracker import MultiModalTracker

Precision = Literal["fp32", "bf16"]
"""Of the network's matrix products. Box arithmetic is float64 and maps are float32 in both."""

_MARGIN = 10  # a box keeps at least this many pixels inside the frame, as published


class Tracked(NamedTuple):
    """Where the target is and how sure the tracker is."""

    box: np.ndarray
    """``[4]`` float64 ltwh in frame pixels."""
    score: float
    """Highest windowed score, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A tracker's answers over one sequence."""

    name: str
    boxes: np.ndarray
    """``[T, 4]`` float64 ltwh pixels; the first is the given groundtruth."""
    scores: np.ndarray
    """``[T]`` float64; the first is 1."""


def hann_window(cells: int) -> Tensor:
    """Outer product of two Hann windows without their zero ends.

    Args:
        cells: side S of the score map.

    Returns:
        ``[S, S]`` float32 in (0, 1].
    """
    k = torch.arange(1, cells + 1, dtype=torch.float32)
    window = 0.5 * (1 - torch.cos(2 * torch.pi * k / (cells + 1)))
    return window[:, None] * window[None, :]


@dataclass(kw_only=True)
class _Target:
    template: Tensor
    box: np.ndarray
    size: tuple[int, int]
    frames: int = 0


class BatchTracker:
    """Follows many targets, each in a video of its own, one forward pass for a frame of all of them; targets join and leave at any time.

    A frame is RGB, or RGB and an auxiliary image (:data:`srft.data.frames.Frame`). A part that is missing, in the first frame or any
    later one, is shown to a network of two streams as black, which is also what it sees outside a frame. A network of one stream, and
    every network with ``rgb_only``, looks at RGB alone.

    Example:
        >>> tracker = BatchTracker(load_tracker("tiny_rgb", streams=2), device="cuda", precision="bf16")    # doctest: +SKIP
        >>> tracker.join("left", frame, box)                                                                # doctest: +SKIP
        >>> tracker.join("right", other_frame, other_box)                                                   # doctest: +SKIP
        >>> tracker.track({"left": next_frame, "right": (None, next_events)})["right"].box                  # doctest: +SKIP
    """

    def __init__(
        self,
        network: MultiModalTracker,
        *,
        device: str | torch.device | None = None,
        precision: Precision = "fp32",
        rgb_only: bool = False,
    ) -> None:
        """Prepare a network for tracking.

        Args:
            network: put into eval mode and moved to the device; with ``bf16`` a copy of it is.
            device: where it runs; where its weights are when None.
            precision: ``bf16`` runs what autocast runs in bfloat16, from weights rounded once.
            rgb_only: leave the auxiliary stream of a two-stream network out, rather than showing it black.

        Raises:
            ValueError: the precision is unknown, or the device is not there.
        """
        if precision not in get_args(Precision):
            raise ValueError(f"precision is {precision!r}; expected one of {', '.join(get_args(Precision))}")
        self.device = next(network.parameters()).device if device is None else torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is {str(self.device)!r}, but torch finds no CUDA device here; use device='cpu'")
        self.precision = precision
        self._network = (_rounded(network) if precision == "bf16" else network).to(self.device).eval()
        self._arch = network.arch
        self._channels = 3 if rgb_only or network.streams == 1 else 6
        self._window = hann_window(self._arch.search_cells).to(self.device)
        self._targets: dict[Hashable, _Target] = {}
        self._templates: tuple[tuple[Hashable, ...], Tensor] = (), torch.empty(0)

    @property
    def targets(self) -> tuple[Hashable, ...]:
        """The names of the targets that are followed."""
        return tuple(self._targets)

    def join(self, name: Hashable, frame: Frame, box: np.ndarray) -> None:
        """Show a new target.

        Args:
            name: what :meth:`track` and :meth:`leave` will call it.
            frame: its first frame, see :data:`srft.data.frames.Frame`.
            box: ``[4]`` ltwh in pixels; it may reach out of the frame.

        Raises:
            ValueError: the frame is no such frame or shows the network nothing, the box has no area or is outside the frame, or the name
                is taken; the message names the target.
        """
        if name in self._targets:
            raise ValueError(f"target {name!r} is already followed; leave({name!r}) first to show it anew")
        self.show(name, frame, box)

    @torch.inference_mode()
    def show(self, name: Hashable, frame: Frame, box: np.ndarray) -> None:
        """Show a target, in place of the one that is followed by this name, if there is one.

        Args:
            name: what :meth:`track` and :meth:`leave` will call it.
            frame: its first frame.
            box: ``[4]`` ltwh in pixels.

        Raises:
            ValueError: frame or box are not as :meth:`join` wants them; what was followed is followed still.
        """
        where = f"target {name!r}, first frame"
        parts = split_frame(frame, where)
        if not parts.has_rgb and self._channels == 3:
            raise ValueError(f"{where}: the RGB frame is missing, and this tracker looks at nothing else")
        box = np.asarray(box, np.float64)
        if box.shape != (4,) or not np.isfinite(box).all() or min(box[2:]) <= 0:
            raise ValueError(
                f"{where}: box is {box.tolist()}; expected finite left, top, width, height in pixels with a positive width and height"
            )
        if box[0] >= parts.width or box[1] >= parts.height or box[0] + box[2] <= 0 or box[1] + box[3] <= 0:
            raise ValueError(f"{where}: box {box.tolist()} (ltwh pixels) is outside the {parts.width}x{parts.height} frame")
        patch, _ = self._cut(parts, box, self._arch.template_factor, self._arch.template_px)
        template = normalize(torch.from_numpy(patch[None]).to(self.device))[0]
        self._targets[name] = _Target(template=template, box=box.copy(), size=(parts.width, parts.height))
        self._templates = (), torch.empty(0)

    def leave(self, name: Hashable) -> None:
        """Follow a target no longer.

        Args:
            name: as it joined.

        Raises:
            ValueError: there is no such target.
        """
        if name not in self._targets:
            raise ValueError(f"no target {name!r} is followed; targets are {list(self._targets)}")
        del self._targets[name]
        self._templates = (), torch.empty(0)

    @torch.inference_mode()
    def track(self, frames: Mapping[Hashable, Frame]) -> dict[Hashable, Tracked]:
        """Find targets in their next frames.

        Args:
            frames: the next frame of each target by name, of the size of its first. A target that is left out stays where it is.

        Returns:
            Box and score by name.

        Raises:
            ValueError: a name is unknown, a frame has another size or is no frame, or the network's answer is not finite; the
                message names the target, and no target has moved.
        """
        cuts = [self._search(name, frame) for name, frame in frames.items()]
        if not cuts:
            return {}
        names, targets = tuple(frames), [self._targets[name] for name in frames]
        if self._templates[0] != names:
            self._templates = names, torch.stack([target.template for target in targets])
        search = normalize(torch.from_numpy(np.stack([patch for patch, _ in cuts])).to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            out = self._network(self._templates[1], search)
        windowed = out.score_map * self._window
        found = torch.cat([decode(windowed, out.size_map, out.offset_map), windowed.flatten(1).amax(1, keepdim=True)], 1)
        found = found.double().cpu().numpy()
        if not np.isfinite(found).all():
            raise ValueError(self._not_finite(names[int(np.argmin(np.isfinite(found).all(1)))]))
        boxes = np.stack([target.box for target in targets])
        side = self._arch.search_px / np.array([factor for _, factor in cuts])[:, None]
        size = found[:, 2:4] * side
        center = boxes[:, :2] + boxes[:, 2:] / 2 + (found[:, :2] - 0.5) * side
        limits = np.array([target.size for target in targets], np.float64)
        low = np.clip(center - size / 2, 0, limits - _MARGIN)
        high = np.clip(center + size / 2, _MARGIN, limits)
        boxes = np.concatenate([low, np.maximum(high - low, _MARGIN)], 1)
        for target, box in zip(targets, boxes, strict=True):
            target.box = box
            target.frames += 1
        return {name: Tracked(box.copy(), float(score)) for name, box, score in zip(names, boxes, found[:, 4], strict=True)}

    def _search(self, name: Hashable, frame: Frame) -> tuple[np.ndarray, float]:
        if name not in self._targets:
            raise ValueError(f"no target {name!r} was shown; join({name!r}, frame, box) first")
        target = self._targets[name]
        where = f"target {name!r}, frame {target.frames + 1} after the first"
        parts = split_frame(frame, where)
        if (parts.width, parts.height) != target.size:
            raise ValueError(
                f"{where}: it has {parts.width}x{parts.height} pixels, the first one {target.size[0]}x{target.size[1]}; "
                "expected frames of one size: resize them, or show the target anew"
            )
        return self._cut(parts, target.box, self._arch.search_factor, self._arch.search_px)

    def _cut(self, parts: Parts, box: np.ndarray, factor: float, px: int) -> tuple[np.ndarray, float]:
        cuts = [(channel, crop(image, box, factor, px)[0]) for channel, image in parts.images if channel < self._channels]
        if len(cuts) == 1 and cuts[0][1].shape[2] >= self._channels:
            patch = cuts[0][1][..., : self._channels]
        else:
            patch = np.zeros((px, px, self._channels), np.uint8)
            for channel, cut in cuts:
                patch[..., channel : channel + 3] = cut
        return patch, px / region_side(box, factor)

    def _not_finite(self, name: Hashable) -> str:
        bad = [key for key, value in self._network.state_dict().items() if value.is_floating_point() and not value.isfinite().all()]
        reason = f"these weights are not finite: {', '.join(bad[:5])}{f' and {len(bad) - 5} more' if len(bad) > 5 else ''}" if bad else ""
        return (
            f"target {name!r}, frame {self._targets[name].frames + 1} after the first: the network's score, size or offset map is NaN or "
            f"infinite; {reason or f'all weights are finite, so they are too large for {self.precision}'}. Track with other weights"
        )


def _rounded(network: MultiModalTracker) -> MultiModalTracker:
    # What autocast would round in every forward pass is rounded once: the same numbers, without reading float32 weights each time.
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.to(torch.bfloat16)
    return network


class OnlineTracker:
    """Follows one target: :meth:`initialize` with the first frame and box, then :meth:`track` each next frame.

    Example:
        >>> tracker = OnlineTracker(load_tracker("tiny_rgb", streams=2))    # doctest: +SKIP
        >>> tracker.initialize(frames[0], box)                              # doctest: +SKIP
        >>> box, score = tracker.track(frames[1])                           # doctest: +SKIP
        >>> box, score = tracker.track((None, event_image))                 # doctest: +SKIP
    """

    def __init__(
        self,
        network: MultiModalTracker,
        *,
        device: str | torch.device | None = None,
        precision: Precision = "fp32",
        rgb_only: bool = False,
    ) -> None:
        """Prepare a network for tracking; the arguments are those of :class:`BatchTracker`."""
        self._batch = BatchTracker(network, device=device, precision=precision, rgb_only=rgb_only)

    def initialize(self, frame: Frame, box: np.ndarray) -> None:
        """Show the target, in place of any that was followed.

        Args:
            frame: uint8 ``[H, W, 3]`` (RGB), ``[H, W, 6]`` (RGB, then auxiliary image) or a pair (RGB, auxiliary) with None for a
                missing one.
            box: ``[4]`` ltwh in pixels. A wrong frame or box is a ValueError; what was followed is followed still.
        """
        self._batch.show(_ONE, frame, box)

    def track(self, frame: Frame) -> Tracked:
        """Find the target in the next frame.

        Args:
            frame: as in :meth:`initialize` and of the same size; a part may be missing that was there before.

        Returns:
            Box and score.

        Raises:
            ValueError: no target was shown; a wrong frame is one, too.
        """
        if not self._batch.targets:
            raise ValueError("track(frame) was called before initialize(frame, box)")
        return self._batch.track({_ONE: frame})[_ONE]


_ONE = "the target"
