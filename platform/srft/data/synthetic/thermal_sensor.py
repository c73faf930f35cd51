"""How warm things of a scene are, and what an uncooled long-wave camera beside the RGB camera shows of it.

Everything here is drawn from a generator of its own, so the RGB frames are those of the other modalities.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from srft.data.synthetic.scene import HEIGHT, SUBFRAMES, WIDTH, Body, Scene
from srft.data.synthetic.textures import SPRITE, noise

__all__ = ["SITUATIONS", "ThermalScene", "measure_temperature", "warm_up"]

SITUATIONS = {"": 0.7, "thermal cross-over": 0.3}
"""What makes thermal frames useless, and how often: target and background have the same temperature, always or for a while."""
FRAME_S = 1 / 30
LAG_S = 0.010
"""Time constant of a microbolometer: what moves leaves a trail."""


@dataclass(frozen=True, kw_only=True)
class Radiator:
    """A body's own radiation, as the temperature a camera reads: ``air + steady + gain * heat[t]``."""

    body: Body
    layers: np.ndarray
    """``[64, 64, 3]`` float32: alpha, steady kelvin above the air, gain (emissivity times how the body's warmth is spread over it)."""
    heat: np.ndarray
    """``[S]`` kelvin above the surroundings."""


@dataclass(frozen=True, kw_only=True)
class ThermalScene:
    """Apparent temperatures of all that a scene shows."""

    air: float
    """Kelvin."""
    backdrop: np.ndarray
    """``[180, 240]`` float32 kelvin above the air."""
    radiators: tuple[Radiator, ...]
    """In drawing order."""
    situation: str
    """One of :data:`SITUATIONS`."""


def warm_up(rng: np.random.Generator, scene: Scene) -> ThermalScene:
    """Give everything in a scene a temperature and an emissivity.

    What has emissivity e shows ``e`` of its own temperature and ``1 - e`` of the colder sky that it mirrors.

    Args:
        rng: source of both; apart from the scene's own.
        scene: what is where in the frame.

    Returns:
        The temperatures. Most targets are 3 to 15 K warmer than the surroundings, some as much colder; in a ``thermal cross-over``
        the difference passes through nothing, or is nothing throughout.
    """
    situation = str(rng.choice(list(SITUATIONS), p=list(SITUATIONS.values())))
    air, sky = rng.uniform(275, 303), rng.uniform(3, 20)
    backdrop = _backdrop(rng, scene, sky)
    heat = np.full(len(scene), rng.uniform(3, 15) * (1 if rng.random() < 0.85 else -1))
    crossing = situation == "thermal cross-over"
    if crossing:
        progress = np.linspace(0, 1, len(scene))
        apart = np.clip((rng.uniform(0.2, 0.8) - progress) / rng.uniform(0.3, 0.6), -1, 1)
        heat = heat * apart**3 if rng.random() < 0.5 else 0.03 * heat  # slow where nothing differs
    heats = [heat * rng.uniform(0.7, 1.3) if rng.random() < 0.4 else np.full(len(scene), rng.uniform(-3, 15)) for _ in scene.others]
    heats += [heat, *(np.full(len(scene), rng.normal(0, 1.5)) for _ in scene.bars)]
    bodies = [*scene.others, scene.target, *scene.bars]
    radiators = [
        Radiator(body=b, layers=_surface(rng, b, sky, plain=crossing and b is scene.target), heat=h)
        for b, h in zip(bodies, heats, strict=True)
    ]
    return ThermalScene(air=air, backdrop=backdrop, radiators=tuple(radiators), situation=situation)


def _surface(rng: np.random.Generator, body: Body, sky: float, *, plain: bool) -> np.ndarray:
    # Painted or organic, emissivity near 0.95; half of the bodies have a part of bare metal that mirrors the sky.
    emissivity = np.full((SPRITE, SPRITE), 0.95 if plain else rng.uniform(0.88, 0.98), np.float32)
    metal = noise(rng, SPRITE, SPRITE, (3, 6)) > rng.uniform(0.55, 0.8)
    if rng.random() < 0.5 and not plain:
        emissivity[metal] = rng.uniform(0.3, 0.7)
    spread = 0.5 + noise(rng, SPRITE, SPRITE, (2, 4))
    steady = (emissivity - 1) * sky
    return np.stack([body.sprite[..., 3], steady, emissivity * spread], 2).astype(np.float32)


def _backdrop(rng: np.random.Generator, scene: Scene, sky: float) -> np.ndarray:
    pieces = scene.background.pieces
    height, width = pieces.shape
    unrest = noise(rng, height, width, (3, 7, 19))
    kelvin = -0.05 * sky + rng.uniform(0.5, 3.0) * (unrest - unrest.mean())
    for number in range(1, int(pieces.max()) + 1):
        kelvin[pieces == number] += rng.normal(0, 1.5)
    return kelvin.astype(np.float32)


def measure_temperature(rng: np.random.Generator, scene: Scene, thermal: ThermalScene) -> np.ndarray:
    """What the camera counts.

    Optics blur by about a pixel, pixels follow with a lag of 10 ms, columns differ by a constant, and every reading is noisy.

    Args:
        rng: blur and noise.
        scene: what is where in the frame.
        thermal: how warm it is.

    Returns:
        ``[T, 120, 160]`` uint16 centikelvin, one frame per :data:`SUBFRAMES` moments.
    """
    blur, noise_k = rng.uniform(0.8, 1.6), rng.uniform(0.04, 0.1)
    columns = rng.normal(0, 0.03, WIDTH)
    stay = np.exp(-FRAME_S / SUBFRAMES / LAG_S)
    out = np.empty((len(scene) // SUBFRAMES, HEIGHT, WIDTH), np.uint16)
    reading = temperatures(scene, thermal, 0)
    for moment in range(len(scene)):
        reading = stay * reading + (1 - stay) * temperatures(scene, thermal, moment)
        if (moment + 1) % SUBFRAMES == 0:
            sharp = cv2.GaussianBlur(reading, (0, 0), blur)
            counts = 100 * (sharp + columns + noise_k * rng.standard_normal(sharp.shape))
            out[moment // SUBFRAMES] = np.clip(np.rint(counts), 0, 65_535)
    return out


def temperatures(scene: Scene, thermal: ThermalScene, moment: int) -> np.ndarray:
    """The apparent temperature of every pixel before the optics.

    Args:
        scene: what is where in the frame.
        thermal: how warm it is.
        moment: of the scene.

    Returns:
        ``[120, 160]`` float32 kelvin.
    """
    seen = scene.backdrop(thermal.backdrop, moment)
    for radiator in thermal.radiators:
        placed = radiator.body.warp(radiator.layers, moment)
        if placed is not None:
            area, (alpha, steady, gain) = placed[0], np.moveaxis(placed[1], 2, 0)
            own = steady + gain * radiator.heat[moment]
            area.of(seen)[alpha > 0.5] = own[alpha > 0.5]
    return seen + np.float32(thermal.air)
