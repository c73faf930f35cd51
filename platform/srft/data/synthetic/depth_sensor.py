"""Where things of a scene lie in depth, and what a stereo depth camera measures of it: noise, holes, millimetres.

Distances agree with what hides what in the RGB frames: occluders before the target, the target before distractors, all before
the wall and its furniture. Everything here is drawn from a generator of its own, so the RGB frames are those of the other modalities.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from srft.data.synthetic.scene import HEIGHT, WIDTH, Body, Scene
from srft.data.synthetic.textures import SPRITE, noise

__all__ = ["SITUATIONS", "DepthScene", "measure_depth", "place_in_depth"]

SITUATIONS = {"": 0.6, "same depth": 0.15, "absorbing target": 0.15, "out of range": 0.1}
"""What makes depth useless, and how often: the target touches a wall; it returns no light; it is too far away."""
FOCAL_PX = 140.0
BASELINE_M = 0.075
RANGE_M = (0.4, 8.0)
SUNLIT_RANGE_M = 4.0
"""Sunlight (half of the over-exposed sequences) outshines the pattern that the camera projects."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A body's front."""

    body: Body
    layers: np.ndarray
    """``[64, 64, 3]`` float32: alpha, relief towards the camera in metres, chance that a pixel returns nothing."""
    distance: np.ndarray
    """``[S]`` metres of its rim."""


@dataclass(frozen=True, kw_only=True)
class DepthScene:
    """Distances of all that a scene shows."""

    backdrop: np.ndarray
    """``[180, 240, 2]`` float32: metres, and the chance that a pixel returns nothing."""
    surfaces: tuple[Surface, ...]
    """In drawing order: far before near."""
    situation: str
    """One of :data:`SITUATIONS`."""


def place_in_depth(rng: np.random.Generator, scene: Scene) -> DepthScene:
    """Give everything in a scene a distance and a surface.

    Args:
        rng: source of both; apart from the scene's own.
        scene: what is where in the frame.

    Returns:
        The distances. The target's follows its size in the frame, as a thing of constant size would, unless it touches the wall.
    """
    situation = str(rng.choice(list(SITUATIONS), p=list(SITUATIONS.values())))
    touching = situation == "same depth"
    near, size = rng.uniform(1.2, 3.2), scene.target.size
    target = near * np.median(size) / size
    if touching:
        target = np.full(len(scene), near)
    elif situation == "out of range":
        target = rng.uniform(7.6, 9.0) * size.max() / size
    gaps = [rng.uniform(0.0002, 0.001) if touching else rng.choice([rng.uniform(0.02, 0.08), rng.uniform(0.2, 0.8)]) for _ in scene.others]
    absorbing = [rng.uniform(0.7, 1.0) if rng.random() < 0.15 else rng.uniform(0, 0.05) for _ in (*scene.others, *scene.bars)]
    loss = rng.uniform(0.85, 1.0) if situation == "absorbing target" else rng.uniform(0, 0.05)

    bodies = [*scene.others, scene.target, *scene.bars]
    distances = [target * (1 + gap) for gap in sorted(gaps, reverse=True)] + [target]
    distances += [np.full(len(scene), target.min() * rng.uniform(0.55, 0.8)) for _ in scene.bars]
    losses = [*absorbing[: len(scene.others)], loss, *absorbing[len(scene.others) :]]
    surfaces = tuple(
        Surface(body=b, layers=_front(rng, b, d, gone, flat=touching), distance=d)
        for b, d, gone in zip(bodies, distances, losses, strict=True)
    )
    behind = max(float(d.max()) for d in distances) * (1.0015 if touching else 1.05)
    return DepthScene(backdrop=_backdrop(rng, scene, behind, flat=touching), surfaces=surfaces, situation=situation)


def _front(rng: np.random.Generator, body: Body, distance: np.ndarray, loss: float, *, flat: bool) -> np.ndarray:
    # A bulge whose height is a third of the body's width in metres, and patches that return nothing.
    alpha = body.sprite[..., 3]
    rim = cv2.distanceTransform((alpha > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
    width_m = float(np.median(body.size)) * float(np.median(distance)) / FOCAL_PX
    bulge = 0 * rim if flat else 0.3 * width_m * np.sqrt(rim / max(float(rim.max()), 1e-6))
    patches = noise(rng, SPRITE, SPRITE, (3, 7))
    return np.stack([alpha, bulge, np.clip(loss * (0.7 + 0.6 * patches), 0, 1)], 2).astype(np.float32)


def _backdrop(rng: np.random.Generator, scene: Scene, behind: float, *, flat: bool) -> np.ndarray:
    # A leaning wall that becomes a floor below; furniture stands before it or hangs on it; nothing is nearer than `behind`.
    pieces = scene.background.pieces
    h, w = pieces.shape
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    wall = behind if flat else min(behind * rng.uniform(1.15, 2.2), max(0.85 * RANGE_M[1], 1.1 * behind))
    lean, horizon = rng.uniform(-0.1, 0.1), rng.uniform(0.45, 0.9) * h
    plane = wall * (1 + (0 if flat else lean) * (x / w - 0.5))
    floor = np.clip((y - horizon) / (h - horizon), 0, 1)
    metres = plane if flat else plane + floor * (behind - plane)
    loss = np.full((h, w), 0.01, np.float32)
    for number in range(1, int(pieces.max()) + 1):
        here, nearer, gone = pieces == number, rng.uniform(0, 0.35), rng.uniform(0.6, 1.0)
        if rng.random() < 0.5 and not flat:
            metres[here] *= 1 - nearer
        if rng.random() < 0.15:
            loss[here] = gone
    return np.stack([np.maximum(metres, behind), loss], 2).astype(np.float32)


def measure_depth(rng: np.random.Generator, scene: Scene, depth: DepthScene, moments: range) -> np.ndarray:
    """What the camera measures.

    The noise grows with the square of the distance as that of the Kinect, sigma = 1.2 mm + 1.9 mm (z - 0.4 m)^2 (Nguyen, Izadi,
    Lovell 2012). A pixel is a hole, 0, where the projector's light does not reach because something near stands between (a shadow
    as wide as the disparities differ), where a surface absorbs it, out of range, and now and then anywhere.

    Args:
        rng: noise and holes.
        scene: what is where in the frame.
        depth: how far away it is.
        moments: of the frames.

    Returns:
        ``[T, 120, 160]`` uint16 millimetres.
    """
    sunlit = scene.condition == "over-exposure" and rng.random() < 0.5
    farthest = SUNLIT_RANGE_M if sunlit else RANGE_M[1]
    out = np.zeros((len(moments), HEIGHT, WIDTH), np.uint16)
    for t, moment in enumerate(moments):
        true, loss = distances(scene, depth, moment)
        lit = np.arange(WIDTH) + FOCAL_PX * BASELINE_M / true
        shadow = lit < np.maximum.accumulate(lit, 1) - 0.5
        sigma = (0.0012 + 0.0019 * (true - 0.4) ** 2) * (3 if sunlit else 1)
        measured = true + sigma * rng.standard_normal(true.shape)
        fading = np.clip((true / farthest - 0.85) / 0.15, 0, 1)
        hole = shadow | (rng.random(true.shape) < np.maximum(loss, fading) + 0.003) | (true < RANGE_M[0])
        out[t] = np.where(hole, 0, np.clip(np.rint(1000 * measured), 1, 65_535))
    return out


def distances(scene: Scene, depth: DepthScene, moment: int) -> tuple[np.ndarray, np.ndarray]:
    """The true distance of every pixel.

    Args:
        scene: what is where in the frame.
        depth: how far away it is.
        moment: of the scene.

    Returns:
        ``[120, 160]`` metres, and the chance that the pixel returns nothing.
    """
    seen = scene.backdrop(depth.backdrop, moment, cv2.INTER_NEAREST)
    for surface in depth.surfaces:
        placed = surface.body.warp(surface.layers, moment)
        if placed is not None:
            area, (alpha, relief, loss) = placed[0], np.moveaxis(placed[1], 2, 0)
            front = np.stack([surface.distance[moment] - relief, loss], 2)
            area.of(seen)[alpha > 0.5] = front[alpha > 0.5]
    return seen[..., 0], seen[..., 1]
