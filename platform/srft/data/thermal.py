"""Thermal frames as images that a network pre-trained on RGB can take."""

from __future__ import annotations

import numpy as np

__all__ = ["thermal_image"]


def thermal_image(
    image: np.ndarray,
    *,
    kelvin: tuple[float, float] | None = None,
    counts_per_kelvin: float = 100.0,
    percentiles: tuple[float, float] = (0.5, 99.5),
) -> np.ndarray:
    """Show a thermal frame as an image.

    8-bit frames, such as the JPGs of LasHeR and RGBT234, are taken as they are: one channel is repeated, three (in RGB order) are
    kept. 16-bit radiometric frames become grey, brighter is warmer: either a fixed range of temperature becomes 0 to 255, so that the
    same temperature has the same level in every frame, or two percentiles of the frame's own counts do, which shows all
    contrast but changes when something hot enters. Levels are rounded to the nearest; what lies outside saturates.

    Args:
        image: ``[H, W]``, ``[H, W, 1]`` or ``[H, W, 3]`` uint8, or ``[H, W]`` or ``[H, W, 1]`` uint16; it is not changed.
        kelvin: lowest and highest temperature shown, for 16-bit frames; None takes the percentiles instead.
        counts_per_kelvin: of the sensor: 100 for centikelvin, 1 for plain kelvin.
        percentiles: of the frame's counts that become 0 and 255.

    Returns:
        ``[H, W, 3]`` uint8, never a view of the input. A frame of one temperature is 0 everywhere with percentiles.

    Raises:
        ValueError: shape or type is another, or a range is not increasing.
    """
    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise ValueError(f"percentiles are {percentiles}; expected two increasing ones in 0 to 100")
    if kelvin is not None and not kelvin[0] < kelvin[1]:
        raise ValueError(f"temperatures are {kelvin} kelvin; expected two increasing ones")
    if not counts_per_kelvin > 0:
        raise ValueError(f"counts_per_kelvin is {counts_per_kelvin}; expected above 0, such as 100 for centikelvin")
    channels = {np.dtype(np.uint8): (1, 3), np.dtype(np.uint16): (1,)}.get(image.dtype, ())
    planes = image[..., None] if image.ndim == 2 else image
    if planes.ndim != 3 or planes.shape[2] not in channels or not planes.size:
        raise ValueError(
            f"thermal frame is {image.dtype} {list(image.shape)}; expected uint8 [H, W], [H, W, 1] or [H, W, 3], or uint16 [H, W] counts"
        )
    if image.dtype == np.uint8:
        return planes.copy() if planes.shape[2] == 3 else np.repeat(planes, 3, 2)
    counts = planes.astype(np.float32)
    if kelvin is None:
        bottom, top = map(float, np.percentile(planes, percentiles))
    else:
        bottom, top = kelvin[0] * counts_per_kelvin, kelvin[1] * counts_per_kelvin
    levels = np.rint((counts - bottom) * (255 / (top - bottom))) if top > bottom else np.zeros_like(counts)
    return np.repeat(np.clip(levels, 0, 255).astype(np.uint8), 3, 2)
