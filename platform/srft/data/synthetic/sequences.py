"""Sequences of the procedural world: rendered, and kept in a cache."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from srft.config import Modality
from srft.data.depth import depth_image
from srft.data.events import polarity_image
from srft.data.sequence import Sequence
from srft.data.synthetic.cameras import expose, see_events
from srft.data.synthetic.depth_sensor import measure_depth, place_in_depth
from srft.data.synthetic.scene import HEIGHT, POOLS, SUBFRAMES, WIDTH, Split, build
from srft.data.synthetic.textures import keyed
from srft.data.synthetic.thermal_sensor import measure_temperature, warm_up
from srft.data.thermal import thermal_image
from srft.files import aside

__all__ = ["WORLD_VERSION", "Capture", "record", "render_sequence", "sequences"]

WORLD_VERSION = 1
"""Part of cached files' names; to be raised whenever the same seed would give other bytes."""


@dataclass(frozen=True, kw_only=True)
class Capture:
    """What the cameras gave, before the auxiliary modality is made an image."""

    name: str
    modality: Modality
    rgb: np.ndarray
    """``[T, 120, 160, 3]`` uint8; of the same bytes in every modality."""
    raw: np.ndarray | None
    """``rgbe``: events ``[N]`` of ``EVENT_DTYPE``. ``rgbd``: ``[T, 120, 160]`` uint16 millimetres, 0 for holes. ``rgbt``: the same,
    centikelvin. ``rgb``: None."""
    cuts: np.ndarray
    """``[T + 1]``: the events of frame t are ``raw[cuts[t]:cuts[t + 1]]``; empty without events."""
    boxes: np.ndarray
    """``[T, 4]`` ltwh, clipped to the frame."""
    absent: np.ndarray
    """``[T]`` bool, True where under 20 % of the target is visible."""
    attributes: tuple[str, ...]
    """What spoils the RGB frames, then what spoils the auxiliary ones, if anything does."""

    def sequence(self) -> Sequence:
        """The sequence as a tracker sees it.

        Returns:
            Frames ``[120, 160, 6]``: RGB, then polarity image, JET colour map (RGB order) or thermal image; ``[120, 160, 3]`` for ``rgb``.
        """
        frames = self.rgb
        if self.raw is not None:
            if self.modality == "rgbe":
                aux = [polarity_image(self.raw[a:b], HEIGHT, WIDTH) for a, b in pairwise(self.cuts)]
            else:
                aux = [(depth_image if self.modality == "rgbd" else thermal_image)(frame) for frame in self.raw]
            frames = np.concatenate([frames, np.stack(aux)], 3)
        return Sequence(name=self.name, frames=frames, boxes=self.boxes, absent=self.absent, attributes=self.attributes)


def record(split: Split, index: int, *, seed: int, length: int, modality: Modality = "rgbe") -> Capture:
    """Let the cameras record one sequence.

    Args:
        split: which objects, backgrounds and domain.
        index: number of the sequence in its split.
        seed: seed of the world.
        length: frames.
        modality: which camera stands beside the RGB camera in the target domain; the source domain is RGB only.

    Returns:
        The recording. Scene, RGB frames, boxes and absent flags do not depend on the modality.
    """
    target_domain = split.startswith("target")
    sid = list(POOLS).index(split)
    rng = keyed(seed, sid, index)
    scene = build(rng, split, seed=seed, length=length)
    moments = SUBFRAMES if target_domain else 1
    light = np.empty((length, moments, HEIGHT, WIDTH, 3), np.float32)
    boxes, absent = np.zeros((length, 4)), np.zeros(length, bool)
    for t in range(length):
        for m in range(moments):
            light[t, m], boxes[t], absent[t] = scene.render((t + 1) * SUBFRAMES - moments + m)
    for t in range(1, length):
        if absent[t] and (boxes[t, 2:] <= 0).any():
            boxes[t] = boxes[t - 1]
    if absent[0]:  # a tracker must be shown its target once
        return replace(record(split, index + (1 << 12), seed=seed, length=length, modality=modality), name=f"{split}-{index:04d}")

    rgb = expose(rng, light, scene.condition)
    attributes = (scene.condition,) if target_domain else ()
    raw, cuts = None, np.empty(0, np.int64)
    if not target_domain:
        modality = "rgb"
    elif modality == "rgbe":
        raw, cuts = see_events(rng, light, scene.condition)
    elif modality == "rgbd":
        apart = keyed(seed, sid, index, 1 << 22)
        depth = place_in_depth(apart, scene)
        raw = measure_depth(apart, scene, depth, range(SUBFRAMES - 1, len(scene), SUBFRAMES))
        attributes += (depth.situation,) if depth.situation else ()
    elif modality == "rgbt":
        apart = keyed(seed, sid, index, 1 << 23)
        thermal = warm_up(apart, scene)
        raw = measure_temperature(apart, scene, thermal)
        attributes += (thermal.situation,) if thermal.situation else ()
    return Capture(
        name=f"{split}-{index:04d}",
        modality=modality,
        rgb=rgb,
        raw=raw,
        cuts=cuts,
        boxes=boxes,
        absent=absent,
        attributes=attributes,
    )


def render_sequence(split: Split, index: int, *, seed: int, length: int, modality: Modality = "rgbe") -> Sequence:
    """Render one sequence.

    Args:
        split: which objects, backgrounds and domain.
        index: number of the sequence in its split.
        seed: seed of the world.
        length: frames.
        modality: see :func:`record`.

    Returns:
        A sequence of frames ``[120, 160, 3]`` (source, or modality ``rgb``) or ``[120, 160, 6]`` (target: RGB, then the auxiliary
        image); boxes cover the whole silhouette, clipped to the frame; absent where under 20 % is visible.
    """
    return record(split, index, seed=seed, length=length, modality=modality).sequence()


def sequences(
    split: Split,
    count: int,
    *,
    seed: int,
    length: int,
    modality: Modality = "rgbe",
    cache: Path | None = None,
    on_sequence: Callable[[], object] | None = None,
    first: int = 0,
) -> list[Sequence]:
    """Render, or read from the cache, sequences of a split.

    Args:
        split: which objects, backgrounds and domain.
        count: how many sequences.
        seed: seed of the world.
        length: frames per sequence.
        modality: see :func:`record`.
        cache: folder for one ``.npz`` per sequence; None renders anew. A damaged file in it is a ValueError.
        on_sequence: called after each sequence.
        first: index of the first.

    Returns:
        The sequences, in order.
    """
    out = []
    sensor = f"-{modality}" if split.startswith("target") and modality != "rgbe" else ""
    for index in range(first, first + count):
        path = cache / f"{split}{sensor}-v{WORLD_VERSION}-w{seed}-l{length}-{index:04d}.npz" if cache else None
        if path and path.exists():
            out.append(_read(path, f"{split}-{index:04d}"))
        else:
            out.append(render_sequence(split, index, seed=seed, length=length, modality=modality))
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
