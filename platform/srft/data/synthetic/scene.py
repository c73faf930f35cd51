"""What moves where: bodies, occluders, camera and light of one sequence, and where the target is annotated. No sensor yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np

from srft.data.synthetic.textures import SPRITE, Background, background, bar, keyed, look_alike, sprite

Split = Literal["source-train", "source-test", "target-train", "target-val", "target-test"]
WIDTH, HEIGHT = 160, 120
SUBFRAMES = 4
"""Moments per frame interval; the last one is the frame's."""
CONDITIONS = ("low light", "motion blur", "over-exposure")


class Pools(NamedTuple):
    """How many different objects and backgrounds a split draws from."""

    objects: int
    backgrounds: int


POOLS: dict[str, Pools] = {
    "source-train": Pools(objects=4096, backgrounds=1024),
    "source-test": Pools(objects=64, backgrounds=32),
    "target-train": Pools(objects=8, backgrounds=4),
    "target-val": Pools(objects=12, backgrounds=6),
    "target-test": Pools(objects=24, backgrounds=12),
}


class Area(NamedTuple):
    """A body's surroundings in the frame, clipped to it: columns left to right - 1, rows top to bottom - 1."""

    left: int
    top: int
    right: int
    bottom: int

    def of(self, canvas: np.ndarray) -> np.ndarray:
        """The part of a canvas.

        Args:
            canvas: ``[120, 160, ...]``.

        Returns:
            A view.
        """
        return canvas[self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True, kw_only=True)
class Body:
    """A sprite and how it moves: one row per moment."""

    sprite: np.ndarray
    """``[64, 64, 4]`` linear RGBA."""
    center: np.ndarray
    """``[S, 2]`` pixels."""
    size: np.ndarray
    """``[S]`` pixels, before the aspect."""
    aspect: np.ndarray
    """``[S]`` height by width."""
    angle: np.ndarray
    """``[S]`` radians."""

    def warp(self, layer: np.ndarray, i: int) -> tuple[Area, np.ndarray] | None:
        """Put a picture of the body where the body is.

        Args:
            layer: ``[64, 64, C]`` float32, C at most 4, on the grid of the sprite.
            i: moment.

        Returns:
            Where, and the layer there, ``[h, w, C]``; None when the body is outside the frame.
        """
        k = self.size[i] / SPRITE
        cos, sin = np.cos(self.angle[i]), np.sin(self.angle[i])
        linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([k, k * self.aspect[i]])
        reach = int(np.ceil(np.abs(linear).sum(1).max() * SPRITE / 2)) + 1
        cx, cy = self.center[i]
        left, top = int(np.floor(cx)) - reach, int(np.floor(cy)) - reach
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + 2 * reach, WIDTH), min(top + 2 * reach, HEIGHT)
        if x0 >= x1 or y0 >= y1:
            return None
        shift = np.array([cx - x0, cy - y0]) - linear @ np.array([SPRITE / 2 - 0.5, SPRITE / 2 - 0.5])
        patch = cv2.warpAffine(layer, np.hstack([linear, shift[:, None]]), (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
        return Area(x0, y0, x1, y1), patch

    def draw(self, canvas: np.ndarray, i: int) -> tuple[Area, np.ndarray] | None:
        """Blend the sprite onto a canvas.

        Args:
            canvas: ``[120, 160, 3]`` linear RGB, changed in place.
            i: moment.

        Returns:
            Where, and the alpha drawn, ``[h, w]``; None when the body is outside the frame.
        """
        placed = self.warp(self.sprite, i)
        if placed is None:
            return None
        area, patch = placed
        alpha = patch[..., 3:]
        region = area.of(canvas)
        region += alpha * (patch[..., :3] - region)
        return area, alpha[..., 0]

    def extent(self, i: int) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the silhouette, parts outside the frame included.

        Args:
            i: moment.

        Returns:
            Pixels.
        """
        k = self.size[i] / SPRITE
        cos, sin = np.cos(self.angle[i]), np.sin(self.angle[i])
        ys, xs = np.nonzero(self.sprite[..., 3] > 0.5)
        points = np.stack([xs, ys]) + 0.5 - SPRITE / 2
        corners = np.array([[cos, -sin], [sin, cos]]) @ np.diag([k, k * self.aspect[i]]) @ points
        (x0, y0), (x1, y1) = corners.min(1) - k / 2, corners.max(1) + k / 2
        cx, cy = self.center[i] + 0.5
        return cx + x0, cy + y0, cx + x1, cy + y1


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that one sequence shows, in drawing order: background, others, target, bars."""

    background: Background
    target: Body
    others: tuple[Body, ...]
    """Behind the target; a look-alike, if there is one, comes first."""
    bars: tuple[Body, ...]
    """Occluders, before everything."""
    camera: np.ndarray
    """``[S, 2]`` shift of the background, pixels."""
    light: np.ndarray
    """``[S]`` factor of the illumination."""
    condition: str
    """What spoils the RGB frames, one of :data:`CONDITIONS`; empty in the source domain."""

    def __len__(self) -> int:
        return len(self.light)

    def backdrop(self, layer: np.ndarray, i: int, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
        """The part of a background-sized picture that the camera sees.

        Args:
            layer: ``[180, 240]`` or ``[180, 240, C]``.
            i: moment.
            interpolation: OpenCV's.

        Returns:
            ``[120, 160]`` or ``[120, 160, C]``.
        """
        shift = np.array([[1, 0, -40 + self.camera[i, 0]], [0, 1, -30 + self.camera[i, 1]]], np.float32)
        return cv2.warpAffine(layer, shift, (WIDTH, HEIGHT), flags=interpolation)

    def render(self, i: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """The light that reaches a camera, and the annotation.

        Args:
            i: moment.

        Returns:
            ``[120, 160, 3]`` float32 linear light; the target's box ``[4]`` ltwh, clipped to the frame; whether under 20 % of it is seen.
        """
        canvas = self.backdrop(self.background.image, i)
        for other in self.others:
            other.draw(canvas, i)
        drawn = self.target.draw(canvas, i)
        cover = np.zeros((HEIGHT, WIDTH), np.float32)
        for post in self.bars:
            placed = post.draw(canvas, i)
            if placed is not None:
                area, alpha = placed
                np.maximum(area.of(cover), alpha, out=area.of(cover))
        return (canvas * self.light[i]).astype(np.float32), *_annotate(self.target, i, drawn, cover)


def build(rng: np.random.Generator, split: Split, *, seed: int, length: int) -> Scene:
    """Draw a scene.

    Args:
        rng: what the sequence shows and how it moves.
        split: which objects, backgrounds and domain.
        seed: seed of the world: what the split's objects look like.
        length: frames; the scene has :data:`SUBFRAMES` moments per frame.

    Returns:
        The scene.
    """
    target_domain = split.startswith("target")
    steps = length * SUBFRAMES
    sid, pools = list(POOLS).index(split), POOLS[split]
    wall = background(keyed(seed, sid, 1 << 20, int(rng.integers(pools.backgrounds))))
    level = float(wall.image.mean())
    objects = rng.permutation(pools.objects)[:3] if pools.objects >= 3 else rng.integers(pools.objects, size=3)
    first = sprite(keyed(seed, sid, 1 << 21, int(objects[0])), level)
    size = rng.uniform(18, 40)
    speed = rng.uniform(1.0, 4.5) if target_domain else rng.uniform(0.6, 3.5)
    target = _body(rng, first, steps, speed, size)
    others = [_body(rng, look_alike(rng, first), steps, speed, size * rng.uniform(0.8, 1.25)) for _ in range(rng.integers(0, 2))]
    others += [_body(rng, sprite(keyed(seed, sid, 1 << 21, int(o)), level), steps, speed, rng.uniform(15, 40)) for o in objects[1:]]
    bars = [_body(rng, bar(rng), steps, 0.0, rng.uniform(45, 90)) for _ in range(rng.integers(0, 2))]
    camera = _path(rng, steps, (-14, -12), (14, 12), rng.uniform(0, 1.2))
    condition = CONDITIONS[int(rng.integers(len(CONDITIONS)))] if target_domain else ""
    light = rng.uniform(0.8, 1.4) * (1 + 0.15 * _path(rng, steps, (-1, -1), (1, 1), 0.05)[:, 0])
    return Scene(background=wall, target=target, others=tuple(others), bars=tuple(bars), camera=camera, light=light, condition=condition)


def _path(rng: np.random.Generator, steps: int, low: tuple[float, float], high: tuple[float, float], speed: float) -> np.ndarray:
    # Smooth wandering positions [steps, 2] that turn back at the limits; speed in units per frame.
    lo, hi = np.array(low, float), np.array(high, float)
    position, velocity = rng.uniform(lo, hi), rng.normal(0, speed, 2)
    out = np.empty((steps, 2))
    kicks = rng.normal(0, speed * np.sqrt(1 - 0.97**2), (steps, 2))
    for i in range(steps):
        velocity = 0.97 * velocity + kicks[i]
        position = position + velocity / SUBFRAMES
        velocity = np.where((position < lo) & (velocity < 0) | (position > hi) & (velocity > 0), -velocity, velocity)
        out[i] = position
    return out


def _body(rng: np.random.Generator, picture: np.ndarray, steps: int, speed: float, size: float) -> Body:
    wobble = _path(rng, steps, (-0.35, -0.25), (0.35, 0.25), 0.025)
    turn = _path(rng, steps, (-0.6, 0), (0.6, 1), 0.04)[:, 0] * (rng.random() < 0.7)
    return Body(
        sprite=picture,
        center=_path(rng, steps, (8, 8), (WIDTH - 8, HEIGHT - 8), speed),
        size=size * np.exp(wobble[:, 0]),
        aspect=np.exp(wobble[:, 1]) * rng.uniform(0.75, 1.3),
        angle=turn,
    )


def _annotate(target: Body, step: int, drawn: tuple[Area, np.ndarray] | None, cover: np.ndarray) -> tuple[np.ndarray, bool]:
    x0, y0, x1, y1 = target.extent(step)
    k = target.size[step] / SPRITE
    whole = target.sprite[..., 3].sum() * k * k * target.aspect[step]
    left, top, right, bottom = max(x0, 0.0), max(y0, 0.0), min(x1, float(WIDTH)), min(y1, float(HEIGHT))
    box = np.array([left, top, right - left, bottom - top])
    if drawn is None:
        return np.zeros(4), True
    area, alpha = drawn
    seen = (alpha * (1 - area.of(cover))).sum()
    return box, bool(seen < 0.2 * whole or (box[2:] < 3).any())
