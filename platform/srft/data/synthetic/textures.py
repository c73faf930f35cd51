"""What objects and backgrounds of the procedural world look like: silhouettes, patterns and colours, as linear light."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

SPRITE = 64
"""Side of a sprite in pixels."""


class Background(NamedTuple):
    """A wall with furniture, larger than the frame so that the camera can move over it."""

    image: np.ndarray
    """``[180, 240, 3]`` float32 linear RGB."""
    pieces: np.ndarray
    """``[180, 240]`` uint8: 0 the wall, then the number of the piece of furniture that lies on top."""


def keyed(*key: int) -> np.random.Generator:
    """A generator of its own for every key: what one part draws never moves what another part draws.

    Args:
        key: numbers of at least 0, such as seed, split and index.

    Returns:
        The generator.
    """
    return np.random.default_rng(list(key))


def noise(rng: np.random.Generator, height: int, width: int, cells: tuple[int, ...]) -> np.ndarray:
    """Multi-octave value noise.

    Args:
        rng: source of the grid.
        height: rows.
        width: columns.
        cells: grid cells along the longer side, coarse to fine.

    Returns:
        ``[height, width]`` float32, 0 to 1.
    """
    total = np.zeros((height, width), np.float32)
    weight = 0.0
    for octave, n in enumerate(cells):
        gh, gw = max(2, round(n * height / max(height, width)) + 1), max(2, round(n * width / max(height, width)) + 1)
        total += 0.6**octave * cv2.resize(rng.random((gh, gw), np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        weight += 0.6**octave
    return np.clip(total / weight, 0, 1)


def _color(rng: np.random.Generator, low: float = 0.03, high: float = 0.85) -> np.ndarray:
    # A reflectance [3]: log-uniform brightness, moderate saturation.
    grey = np.exp(rng.uniform(np.log(low), np.log(high)))
    return np.clip(grey * np.exp(rng.normal(0, 0.45, 3)), 0.01, 1).astype(np.float32)


def _pattern(rng: np.random.Generator, size: int) -> np.ndarray:
    # One of stripes, checks, spots or noise, [size, size] in 0..1.
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.12, 0.5)
    u, v = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    kind = rng.integers(4)
    if kind == 0:
        return (np.sin(2 * np.pi * u / period) > rng.uniform(-0.5, 0.5)).astype(np.float32)
    if kind == 1:
        return ((np.sin(2 * np.pi * u / period) * np.sin(2 * np.pi * v / period)) > 0).astype(np.float32)
    if kind == 2:
        return (np.hypot((u / period) % 1 - 0.5, (v / period) % 1 - 0.5) < rng.uniform(0.2, 0.4)).astype(np.float32)
    return (noise(rng, size, size, (5, 11)) > 0.5).astype(np.float32)


def _silhouette(rng: np.random.Generator) -> np.ndarray:
    # Alpha [64, 64] of one of five families: ellipse, box, blob, vehicle, person.
    mask = np.zeros((SPRITE * 2, SPRITE * 2), np.uint8)
    c = SPRITE
    kind = rng.integers(5)
    if kind == 0:
        cv2.ellipse(mask, (c, c), (60, int(rng.uniform(30, 60))), 0, 0, 360, 255, -1)
    elif kind == 1:
        h = int(rng.uniform(25, 58))
        cv2.rectangle(mask, (6, c - h), (121, c + h), 255, -1)
    elif kind == 2:
        phi = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        radius = 44 + sum(rng.normal(0, 9 / k) * np.cos(k * phi + rng.uniform(0, 6.28)) for k in range(1, 6))
        radius = np.clip(radius, 18, 60)
        cv2.fillPoly(mask, [np.stack([c + radius * np.cos(phi), c + radius * np.sin(phi)], 1).astype(np.int32)], 255)
    elif kind == 3:
        cv2.rectangle(mask, (4, 60), (123, 96), 255, -1)
        at = lambda low, high: int(rng.uniform(low, high))
        roof = [[at(14, 40), 60], [at(30, 50), 32], [at(75, 95), 32], [at(90, 115), 60]]
        cv2.fillPoly(mask, [np.array(roof, np.int32)], 255)
        for x in (30, 98):
            cv2.circle(mask, (x, 96), 13, 255, -1)
    else:
        cv2.circle(mask, (c, 20), 15, 255, -1)
        cv2.rectangle(mask, (c - 24, 36), (c + 24, 84), 255, -1)
        for dx in (-13, 13):
            cv2.rectangle(mask, (c + dx - 10, 84), (c + dx + 10, 122), 255, -1)
    return cv2.resize(mask, (SPRITE, SPRITE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def sprite(rng: np.random.Generator, background_level: float) -> np.ndarray:
    """An object.

    Args:
        rng: what it looks like.
        background_level: mean light of the background, which the object's own differs from.

    Returns:
        ``[64, 64, 4]`` float32 linear RGBA.
    """
    first, second = _color(rng), _color(rng)
    if abs(np.log(first.mean() / background_level)) < 0.4:
        first = np.clip(first * (2.2 if background_level < 0.3 else 0.4), 0.01, 1)
    blend = (_pattern(rng, SPRITE) * rng.uniform(0.3, 1.0) + 0.25 * (noise(rng, SPRITE, SPRITE, (4, 9)) - 0.5))[..., None]
    rgb = np.clip(first * (1 - blend) + second * blend, 0.01, 1)
    if rng.random() < 0.6:
        half = _pattern(rng, SPRITE)[..., None] * (np.linspace(-1, 1, SPRITE)[:, None, None] > rng.uniform(-0.6, 0.6))
        rgb = rgb * (1 - half) + _color(rng) * half
    return np.concatenate([rgb, _silhouette(rng)[..., None]], 2).astype(np.float32)


def background(rng: np.random.Generator) -> Background:
    """Noise between two colours, with furniture.

    Args:
        rng: what it looks like.

    Returns:
        The image and which piece lies where.
    """
    h, w = 180, 240
    pieces = np.zeros((h, w), np.uint8)
    blend = noise(rng, h, w, (3, 7, 17, 41))[..., None]
    image = (_color(rng) * (1 - blend) + _color(rng) * blend).astype(np.float32)
    for number in range(1, rng.integers(4, 14) + 1):
        color = [float(v) for v in _color(rng)]
        p, q = rng.integers(0, (w, h), 2), rng.integers(10, 70, 2)
        kind = rng.integers(3)
        layer = image.copy()
        start, end = tuple(map(int, p)), tuple(map(int, p + q))
        angle = float(rng.uniform(0, 180)) if kind == 1 else 0.0
        far, thick = (tuple(map(int, rng.integers(0, (w, h), 2))), int(rng.integers(1, 6))) if kind == 2 else (start, 1)
        for canvas, value in ((layer, color), (pieces, number)):
            if kind == 0:
                cv2.rectangle(canvas, start, end, value, -1)
            elif kind == 1:
                cv2.ellipse(canvas, start, tuple(map(int, q // 2)), angle, 0, 360, value, -1)
            else:
                cv2.line(canvas, start, far, value, thick)
        image += rng.uniform(0.3, 0.9) * (layer - image)
    fine = noise(rng, h, w, (60, 120))[..., None]
    return Background(np.clip(image * (0.75 + 0.5 * fine), 0.005, 1), pieces)


def look_alike(rng: np.random.Generator, original: np.ndarray) -> np.ndarray:
    """The same object in another tint and, half of the time, another outline.

    Args:
        rng: tint and outline.
        original: ``[64, 64, 4]``, see :func:`sprite`.

    Returns:
        The other object, ``[64, 64, 4]``.
    """
    other = original.copy()
    other[..., :3] = np.clip(other[..., :3] * np.exp(rng.normal(0, 0.5, 3)), 0.01, 1)
    if rng.random() < 0.5:
        other[..., 3] = _silhouette(rng)
    return other


def bar(rng: np.random.Generator) -> np.ndarray:
    """An occluder: a textured post, a third as wide as high.

    Args:
        rng: what it looks like.

    Returns:
        ``[64, 64, 4]`` float32 linear RGBA.
    """
    post = sprite(rng, 0.2)
    post[..., 3] = 0
    post[:, 22:42, 3] = 1
    return post
