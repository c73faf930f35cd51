"""A procedural world of moving textured targets, seen by an RGB camera and, in the target domain, by an event camera too.

Source domain: well lit, sharp RGB. Target domain: low light, motion blur or over-exposure spoil the frames, while the events
(log-intensity changes of the undegraded scene) keep the motion. Each split draws its own objects and backgrounds, so nothing
seen in one appears in another. The same arguments give the same bytes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np

from srft.config import ConfigError, DataConfig
from srft.data.events import polarity_image, simulate_events
from srft.data.sequence import Domain, Sequence
from srft.files import aside

Split = Literal["source-train", "source-test", "target-train", "target-val", "target-test"]
WIDTH, HEIGHT = 160, 120
FRAME_INTERVAL_US = 33_333
SUBFRAMES = 4
CONDITIONS = ("low light", "motion blur", "over-exposure")
_SPRITE = 64
WORLD_VERSION = 1
"""Part of cached files' names; to be raised whenever the same seed would give other bytes."""


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


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(list(key))


def _noise(rng: np.random.Generator, height: int, width: int, cells: tuple[int, ...]) -> np.ndarray:
    # Multi-octave value noise [height, width] in 0..1; cells: grid cells along the longer side, coarse to fine.
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
    return (_noise(rng, size, size, (5, 11)) > 0.5).astype(np.float32)


def _silhouette(rng: np.random.Generator) -> np.ndarray:
    # Alpha [64, 64] of one of five families: ellipse, box, blob, vehicle, person.
    mask = np.zeros((_SPRITE * 2, _SPRITE * 2), np.uint8)
    c = _SPRITE
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
    return cv2.resize(mask, (_SPRITE, _SPRITE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _sprite(rng: np.random.Generator, background_level: float) -> np.ndarray:
    # Linear RGBA sprite [64, 64, 4]; its mean differs from the background's.
    first, second = _color(rng), _color(rng)
    if abs(np.log(first.mean() / background_level)) < 0.4:
        first = np.clip(first * (2.2 if background_level < 0.3 else 0.4), 0.01, 1)
    blend = (_pattern(rng, _SPRITE) * rng.uniform(0.3, 1.0) + 0.25 * (_noise(rng, _SPRITE, _SPRITE, (4, 9)) - 0.5))[..., None]
    rgb = np.clip(first * (1 - blend) + second * blend, 0.01, 1)
    if rng.random() < 0.6:
        half = _pattern(rng, _SPRITE)[..., None] * (np.linspace(-1, 1, _SPRITE)[:, None, None] > rng.uniform(-0.6, 0.6))
        rgb = rgb * (1 - half) + _color(rng) * half
    return np.concatenate([rgb, _silhouette(rng)[..., None]], 2).astype(np.float32)


def _background(rng: np.random.Generator) -> np.ndarray:
    # Linear RGB background [180, 240, 3]: noise between two colours, with furniture.
    h, w = 180, 240
    blend = _noise(rng, h, w, (3, 7, 17, 41))[..., None]
    image = (_color(rng) * (1 - blend) + _color(rng) * blend).astype(np.float32)
    for _ in range(rng.integers(4, 14)):
        color = [float(v) for v in _color(rng)]
        p, q = rng.integers(0, (w, h), 2), rng.integers(10, 70, 2)
        kind = rng.integers(3)
        layer = image.copy()
        if kind == 0:
            cv2.rectangle(layer, tuple(map(int, p)), tuple(map(int, p + q)), color, -1)
        elif kind == 1:
            cv2.ellipse(layer, tuple(map(int, p)), tuple(map(int, q // 2)), float(rng.uniform(0, 180)), 0, 360, color, -1)
        else:
            cv2.line(layer, tuple(map(int, p)), tuple(map(int, rng.integers(0, (w, h), 2))), color, int(rng.integers(1, 6)))
        image += rng.uniform(0.3, 0.9) * (layer - image)
    fine = _noise(rng, h, w, (60, 120))[..., None]
    return np.clip(image * (0.75 + 0.5 * fine), 0.005, 1)


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


@dataclass(frozen=True, kw_only=True)
class _Body:
    """A sprite and how it moves: centre in pixels, size in pixels (longer side), aspect and angle, one row per sub-frame."""

    sprite: np.ndarray
    center: np.ndarray
    size: np.ndarray
    aspect: np.ndarray
    angle: np.ndarray

    def draw(self, canvas: np.ndarray, i: int) -> tuple[int, int, np.ndarray] | None:
        # Blend onto the canvas [H, W, 3] in place; returns left, top and the alpha patch drawn, None when outside.
        k = self.size[i] / _SPRITE
        cos, sin = np.cos(self.angle[i]), np.sin(self.angle[i])
        linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([k, k * self.aspect[i]])
        reach = int(np.ceil(np.abs(linear).sum(1).max() * _SPRITE / 2)) + 1
        cx, cy = self.center[i]
        left, top = int(np.floor(cx)) - reach, int(np.floor(cy)) - reach
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + 2 * reach, WIDTH), min(top + 2 * reach, HEIGHT)
        if x0 >= x1 or y0 >= y1:
            return None
        shift = np.array([cx - x0, cy - y0]) - linear @ np.array([_SPRITE / 2 - 0.5, _SPRITE / 2 - 0.5])
        patch = cv2.warpAffine(self.sprite, np.hstack([linear, shift[:, None]]), (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
        alpha = patch[..., 3:]
        region = canvas[y0:y1, x0:x1]
        region += alpha * (patch[..., :3] - region)
        return x0, y0, alpha[..., 0]

    def extent(self, i: int) -> tuple[float, float, float, float]:
        # Left, top, right, bottom of the silhouette, outside parts of the frame included.
        k = self.size[i] / _SPRITE
        cos, sin = np.cos(self.angle[i]), np.sin(self.angle[i])
        ys, xs = np.nonzero(self.sprite[..., 3] > 0.5)
        points = np.stack([xs, ys]) + 0.5 - _SPRITE / 2
        corners = np.array([[cos, -sin], [sin, cos]]) @ np.diag([k, k * self.aspect[i]]) @ points
        (x0, y0), (x1, y1) = corners.min(1) - k / 2, corners.max(1) + k / 2
        cx, cy = self.center[i] + 0.5
        return cx + x0, cy + y0, cx + x1, cy + y1


def _body(rng: np.random.Generator, sprite: np.ndarray, steps: int, speed: float, size: float) -> _Body:
    wobble = _path(rng, steps, (-0.35, -0.25), (0.35, 0.25), 0.025)
    turn = _path(rng, steps, (-0.6, 0), (0.6, 1), 0.04)[:, 0] * (rng.random() < 0.7)
    return _Body(
        sprite=sprite,
        center=_path(rng, steps, (8, 8), (WIDTH - 8, HEIGHT - 8), speed),
        size=size * np.exp(wobble[:, 0]),
        aspect=np.exp(wobble[:, 1]) * rng.uniform(0.75, 1.3),
        angle=turn,
    )


def _look_alike(rng: np.random.Generator, sprite: np.ndarray) -> np.ndarray:
    # The same object in another tint and, half of the time, another outline.
    other = sprite.copy()
    other[..., :3] = np.clip(other[..., :3] * np.exp(rng.normal(0, 0.5, 3)), 0.01, 1)
    if rng.random() < 0.5:
        other[..., 3] = _silhouette(rng)
    return other


def render_sequence(split: Split, index: int, *, seed: int, length: int) -> Sequence:
    """Render one sequence.

    Args:
        split: which objects, backgrounds and domain.
        index: number of the sequence in its split.
        seed: seed of the world.
        length: frames.

    Returns:
        A sequence of frames ``[120, 160, 3]`` (source) or ``[120, 160, 6]`` (target: RGB, then the polarity image of the events
        since the previous frame); boxes cover the whole silhouette, clipped to the frame; absent where under 20 % is visible.
    """
    target_domain = split.startswith("target")
    sub = SUBFRAMES if target_domain else 1
    steps = length * SUBFRAMES
    sid, pools = list(POOLS).index(split), POOLS[split]
    rng = _rng(seed, sid, index)
    background = _background(_rng(seed, sid, 1 << 20, int(rng.integers(pools.backgrounds))))
    level = float(background.mean())
    objects = rng.permutation(pools.objects)[:3] if pools.objects >= 3 else rng.integers(pools.objects, size=3)
    sprite = _sprite(_rng(seed, sid, 1 << 21, int(objects[0])), level)
    size = rng.uniform(18, 40)
    speed = rng.uniform(1.0, 4.5) if target_domain else rng.uniform(0.6, 3.5)
    target = _body(rng, sprite, steps, speed, size)
    others = [_body(rng, _look_alike(rng, sprite), steps, speed, size * rng.uniform(0.8, 1.25)) for _ in range(rng.integers(0, 2))]
    others += [_body(rng, _sprite(_rng(seed, sid, 1 << 21, int(o)), level), steps, speed, rng.uniform(15, 40)) for o in objects[1:]]
    bars = [_body(rng, _bar(rng), steps, 0.0, rng.uniform(45, 90)) for _ in range(rng.integers(0, 2))]
    camera = _path(rng, steps, (-14, -12), (14, 12), rng.uniform(0, 1.2))
    condition = CONDITIONS[int(rng.integers(len(CONDITIONS)))] if target_domain else ""
    light = rng.uniform(0.8, 1.4) * (1 + 0.15 * _path(rng, steps, (-1, -1), (1, 1), 0.05)[:, 0])

    scene = np.empty((length * sub, HEIGHT, WIDTH, 3), np.float32)
    boxes, absent = np.zeros((length, 4)), np.zeros(length, bool)
    for i in range(length * sub):
        step = i if target_domain else (i + 1) * SUBFRAMES - 1
        shift = np.array([[1, 0, -40 + camera[step, 0]], [0, 1, -30 + camera[step, 1]]], np.float32)
        canvas = cv2.warpAffine(background, shift, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)
        for other in others:
            other.draw(canvas, step)
        drawn = target.draw(canvas, step)
        cover = np.zeros((HEIGHT, WIDTH), np.float32)
        for bar in bars:
            patch = bar.draw(canvas, step)
            if patch is not None:
                x, y, alpha = patch
                region = cover[y : y + alpha.shape[0], x : x + alpha.shape[1]]
                np.maximum(region, alpha, out=region)
        np.multiply(canvas, light[step], out=scene[i])
        if (i + 1) % sub == 0:
            boxes[i // sub], absent[i // sub] = _annotate(target, step, drawn, cover)
    for t in range(1, length):
        if absent[t] and (boxes[t, 2:] <= 0).any():
            boxes[t] = boxes[t - 1]
    if absent[0]:  # a tracker must be shown its target once
        return replace(render_sequence(split, index + (1 << 12), seed=seed, length=length), name=f"{split}-{index:04d}")

    frames = _expose(rng, scene, condition, sub)
    if target_domain:
        # A grey event pixel answers to luminance; the scene's own light, not the camera's exposure.
        grey = scene @ np.array([0.299, 0.587, 0.114], np.float32)
        times = np.arange(len(grey), dtype=np.int64) * (FRAME_INTERVAL_US // SUBFRAMES)
        noise_rate = 4.0 if condition == "low light" else 1.0
        events = simulate_events(grey, times, threshold=float(rng.uniform(0.18, 0.3)), noise_rate=noise_rate, rng=rng)
        ends = times[sub - 1 :: sub] + 1
        cuts = np.searchsorted(events["t"], np.concatenate([[0], ends]))
        aux = np.stack([polarity_image(events[a:b], HEIGHT, WIDTH) for a, b in pairwise(cuts)])
        frames = np.concatenate([frames, aux], 3)
    return Sequence(name=f"{split}-{index:04d}", frames=frames, boxes=boxes, absent=absent, attributes=(condition,) if condition else ())


def _bar(rng: np.random.Generator) -> np.ndarray:
    # An occluder: a textured post, a third as wide as high.
    bar = _sprite(rng, 0.2)
    bar[..., 3] = 0
    bar[:, 22:42, 3] = 1
    return bar


def _annotate(target: _Body, step: int, drawn: tuple[int, int, np.ndarray] | None, cover: np.ndarray) -> tuple[np.ndarray, bool]:
    x0, y0, x1, y1 = target.extent(step)
    k = target.size[step] / _SPRITE
    whole = target.sprite[..., 3].sum() * k * k * target.aspect[step]
    left, top, right, bottom = max(x0, 0.0), max(y0, 0.0), min(x1, float(WIDTH)), min(y1, float(HEIGHT))
    box = np.array([left, top, right - left, bottom - top])
    if drawn is None:
        return np.zeros(4), True
    x, y, alpha = drawn
    seen = (alpha * (1 - cover[y : y + alpha.shape[0], x : x + alpha.shape[1]])).sum()
    return box, bool(seen < 0.2 * whole or (box[2:] < 3).any())


def _expose(rng: np.random.Generator, scene: np.ndarray, condition: str, sub: int) -> np.ndarray:
    # Frames [T, H, W, 3] uint8 from linear sub-frames [T * sub, H, W, 3]: exposure, gain, noise, clipping, gamma.
    by_frame = scene.reshape(-1, sub, HEIGHT, WIDTH, 3)
    exposed = by_frame.mean(1) if condition == "motion blur" else by_frame[:, -1]
    gain, noise = 1.0, 0.004
    if condition == "low light":
        gain, noise = float(np.exp(rng.uniform(np.log(0.02), np.log(0.12)))), 0.004
    elif condition == "over-exposure":
        gain = float(rng.uniform(4, 12))
    signal = exposed * gain
    signal = signal + rng.standard_normal(signal.shape, np.float32) * np.sqrt(noise * noise + 0.0004 * signal)
    return (np.clip(signal, 0, 1) ** (1 / 2.2) * 255 + 0.5).astype(np.uint8)


def sequences(
    split: Split,
    count: int,
    *,
    seed: int,
    length: int,
    cache: Path | None = None,
    on_sequence: Callable[[], object] | None = None,
) -> list[Sequence]:
    """Render, or read from the cache, the first sequences of a split.

    Args:
        split: which objects, backgrounds and domain.
        count: how many sequences.
        seed: seed of the world.
        length: frames per sequence.
        cache: folder for one ``.npz`` per sequence; None renders anew. A damaged file in it is a ValueError.
        on_sequence: called after each sequence.

    Returns:
        The sequences, in order.
    """
    out = []
    for index in range(count):
        path = cache / f"{split}-v{WORLD_VERSION}-w{seed}-l{length}-{index:04d}.npz" if cache else None
        if path and path.exists():
            out.append(_read(path, f"{split}-{index:04d}"))
        else:
            out.append(render_sequence(split, index, seed=seed, length=length))
            if path:
                _write(path, out[-1])
        if on_sequence:
            on_sequence()
    return out


def _read(path: Path, name: str) -> Sequence:
    try:
        with np.load(path) as z:
            arrays = {key: z[key] for key in ("frames", "boxes", "absent")}
            return Sequence(name=name, **arrays, attributes=tuple(map(str, z["attributes"])))
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path}: not a readable sequence ({error}); delete the file and it is rendered again") from None


def _write(path: Path, s: Sequence) -> None:
    with aside(path) as temporary, temporary.open("wb") as file:
        np.savez(file, frames=np.asarray(s.frames), boxes=s.boxes, absent=s.absent, attributes=np.array(s.attributes, str))


def load_domain(data: DataConfig, cache: Path | None = None) -> Domain:
    """The synthetic sequences a run trains and validates on, less training sequences that no pair can be drawn from.

    Args:
        data: the run's data settings.
        cache: see :func:`sequences`.

    Returns:
        Training, validation and source sequences; for the modality ``rgb`` the target domain without its events.

    Raises:
        ConfigError: the synthetic world does not have the modality.
    """
    if data.modality not in ("rgb", "rgbe"):
        raise ConfigError(f"data.modality is {data.modality!r}; the synthetic world has 'rgbe' (events) and 'rgb'")

    def render(split: Split, count: int) -> tuple[Sequence, ...]:
        made = sequences(split, count, seed=data.world_seed, length=data.length, cache=cache)
        return tuple(replace(s, frames=np.asarray(s.frames)[..., :3]) if data.modality == "rgb" else s for s in made)

    return Domain(
        train=tuple(s for s in render("target-train", data.train_sequences) if s.shortest_gap <= data.max_gap),
        val=render("target-val", data.val_sequences),
        source=render("source-test", data.source_sequences),
    )
