"""The RGB camera, which low light, motion blur or over-exposure spoil in the target domain, and the event camera beside it."""

from __future__ import annotations

import numpy as np

from srft.data.events import simulate_events
from srft.data.synthetic.scene import HEIGHT, SUBFRAMES, WIDTH

MOMENT_US = 8_333
FRAME_INTERVAL_US = SUBFRAMES * MOMENT_US


def expose(rng: np.random.Generator, light: np.ndarray, condition: str) -> np.ndarray:
    """RGB frames: exposure, gain, noise, clipping, gamma.

    Args:
        rng: gain and noise.
        light: ``[T, M, 120, 160, 3]`` linear light at M moments of each frame interval; ``motion blur`` averages them.
        condition: what spoils the frames; empty for nothing.

    Returns:
        ``[T, 120, 160, 3]`` uint8.
    """
    exposed = light.mean(1) if condition == "motion blur" else light[:, -1]
    gain, noise = 1.0, 0.004
    if condition == "low light":
        gain, noise = float(np.exp(rng.uniform(np.log(0.02), np.log(0.12)))), 0.004
    elif condition == "over-exposure":
        gain = float(rng.uniform(4, 12))
    signal = exposed * gain
    signal = signal + rng.standard_normal(signal.shape, np.float32) * np.sqrt(noise * noise + 0.0004 * signal)
    return (np.clip(signal, 0, 1) ** (1 / 2.2) * 255 + 0.5).astype(np.uint8)


def see_events(rng: np.random.Generator, light: np.ndarray, condition: str) -> tuple[np.ndarray, np.ndarray]:
    """Events of a grey event pixel, which answers to the scene's own light, not to the RGB camera's exposure.

    Args:
        rng: threshold, mismatch and background activity; low light has more of it.
        light: ``[T, M, 120, 160, 3]`` linear light.
        condition: of the sequence.

    Returns:
        Events ``[N]`` of ``EVENT_DTYPE`` and ``[T + 1]`` cuts: frame t shows events ``cuts[t]`` to ``cuts[t + 1]``.
    """
    grey = light.reshape(-1, HEIGHT, WIDTH, 3) @ np.array([0.299, 0.587, 0.114], np.float32)
    times = np.arange(len(grey), dtype=np.int64) * MOMENT_US
    noise_rate = 4.0 if condition == "low light" else 1.0
    events = simulate_events(grey, times, threshold=float(rng.uniform(0.18, 0.3)), noise_rate=noise_rate, rng=rng)
    return events, np.searchsorted(events["t"], np.concatenate([[0], frame_ends(len(light))]))


def frame_ends(count: int) -> np.ndarray:
    """When the windows of the first frames end: just after the moment that each frame shows; each begins where the last one ended.

    Args:
        count: frames.

    Returns:
        ``[count]`` int64 microseconds.
    """
    return (SUBFRAMES * np.arange(1, count + 1, dtype=np.int64) - 1) * MOMENT_US + 1
