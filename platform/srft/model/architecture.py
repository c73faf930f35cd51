"""Sizes of trackers, and the named ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes and options of a tracker."""

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
    frame_identity: bool = False
    """Learned embeddings that tell template from search tokens, added to the positions (DropTrack)."""
    eliminate_in: tuple[int, ...] = ()
    """Blocks of the single stream in which search tokens are eliminated; it has no weights of its own."""
    keep: float = 0.7
    """Share of the search tokens that such a block keeps, rounded up."""

    def __post_init__(self) -> None:
        for name, blocks in (("fusion_after", self.fusion_after), ("eliminate_in", self.eliminate_in)):
            if list(blocks) != sorted(set(blocks)) or not all(0 <= block < self.depth for block in blocks):
                raise ValueError(f"{name} is {blocks}; expected rising block numbers from 0 to {self.depth - 1}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is {self.keep}; expected a share above 0, at most 1")
        if self.dim % self.heads or self.search_px % self.patch or self.template_px % self.patch or self.head_channels % 8:
            raise ValueError(
                f"dim {self.dim} must be a multiple of heads {self.heads}, search_px {self.search_px} and template_px {self.template_px} "
                f"of patch {self.patch}, head_channels {self.head_channels} of 8"
            )

    @property
    def search_cells(self) -> int:
        """Side of the score map."""
        return self.search_px // self.patch

    @property
    def template_cells(self) -> int:
        """Side of the template's token grid."""
        return self.template_px // self.patch

    @property
    def template_centre(self) -> int:
        """The template token whose attention eliminates search tokens: (3, 3) of an 8 x 8 grid."""
        middle = (self.template_cells - 1) // 2
        return middle * self.template_cells + middle

    def kept_tokens(self, tokens: int) -> int:
        """Search tokens left by a block that eliminates.

        Args:
            tokens: search tokens before.

        Returns:
            ``ceil(keep * tokens)``.
        """
        return math.ceil(self.keep * tokens)

    def plain(self) -> Architecture:
        """The same sizes without options.

        Returns:
            What a preset says.
        """
        return replace(self, frame_identity=False, eliminate_in=(), keep=0.7)


_BASE = Architecture(
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
)

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
    "small": replace(_BASE, dim=384, heads=6, patch=14, search_px=224, template_px=112),
    "base": _BASE,
    "base_384": replace(_BASE, search_px=384, template_px=192, search_factor=5.0),
}


def preset_of(arch: Architecture) -> str | None:
    """The name of a size.

    Args:
        arch: sizes, options aside.

    Returns:
        A key of ``PRESETS``, or None.
    """
    return next((name for name, preset in PRESETS.items() if preset == arch.plain()), None)


def eliminating(arch: Architecture, *, keep: float = 0.7) -> Architecture:
    """The same tracker with candidate elimination where the published one has it: a quarter, half and three quarters of the way.

    Args:
        arch: sizes.
        keep: share of the search tokens that each of the blocks keeps.

    Returns:
        The architecture; blocks 3, 6 and 9 of 12.
    """
    return replace(arch, eliminate_in=tuple(arch.depth * quarter // 4 for quarter in (1, 2, 3)), keep=keep)
