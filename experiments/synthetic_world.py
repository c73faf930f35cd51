"""Look at the procedural world: strips of frames for docs/pictures, and how far the target stands out in each modality.

    uv run experiments/synthetic_world.py      # docs/pictures/synthetic_*.png and experiments/results/synthetic_contrast.json
    uv run experiments/synthetic_world.py --sequences 10 --pictures /tmp/p --results /tmp/contrast.json

docs/synthetic.md shows the strips and explains the figures.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from srft.config import Modality
from srft.data.sequence import Sequence
from srft.data.synthetic import render_sequence
from srft.evaluation.plots import picture_strip
from srft.files import environment, git_commit, write_json

MODALITIES: tuple[Modality, ...] = ("rgbe", "rgbd", "rgbt")
SHOWN = {"rgbe": (2, 16), "rgbd": (2, 1, 10), "rgbt": (2, 3, 0)}
"""Test sequences in the pictures: what helps, then what does not."""
BINS = 16


@dataclass(frozen=True, kw_only=True)
class Look:
    """Draw and measure the procedural world."""

    pictures: Path = Path("docs/pictures")
    """Folder for the strips."""
    results: Path = Path("experiments/results/synthetic_contrast.json")
    """File for the figures."""
    sequences: int = 100
    """Test sequences that are measured per modality."""
    length: int = 16
    """Frames of each."""
    seed: int = 7
    """Of the world."""


def contrast(image: np.ndarray, box: np.ndarray) -> float:
    """How well colours tell a box from what surrounds it.

    Args:
        image: ``[H, W, 3]`` uint8.
        box: ltwh, pixels.

    Returns:
        Total variation distance between the histograms (16 levels) of the box and of the ring around it, twice as wide and high, the
        largest of the three channels: 0 nothing differs, 1 no level is shared.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = (round(float(v)) for v in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    inside = np.zeros((height, width), bool)
    inside[max(top, 0) : bottom, max(left, 0) : right] = True
    reach_x, reach_y = round(float(box[2]) / 2), round(float(box[3]) / 2)
    ring = np.zeros((height, width), bool)
    ring[max(top - reach_y, 0) : bottom + reach_y, max(left - reach_x, 0) : right + reach_x] = True
    ring &= ~inside
    if not inside.any() or not ring.any():
        return float("nan")
    share = lambda where, c: np.bincount(image[..., c][where] // (256 // BINS), minlength=BINS) / where.sum()
    return max(0.5 * float(np.abs(share(inside, c) - share(ring, c)).sum()) for c in range(3))


def measure(sequence: Sequence, rng: np.random.Generator) -> dict[str, float]:
    """Contrast of the target in both modalities, and of boxes of its size anywhere in the frame, as chance.

    Args:
        sequence: frames of six channels.
        rng: places of the other boxes.

    Returns:
        Means over the visible frames: ``rgb``, ``aux``, ``rgb_chance``, ``aux_chance``.
    """
    found = defaultdict(list)
    for i in map(int, np.flatnonzero(~sequence.absent)):
        frame, box = np.asarray(sequence.frames[i]), sequence.boxes[i]
        elsewhere = np.array([*(rng.random(2) * (np.array(frame.shape[1::-1]) - box[2:])), *box[2:]])
        for name, channels in (("rgb", frame[..., :3]), ("aux", frame[..., 3:])):
            found[name].append(contrast(channels, box))
            found[f"{name}_chance"].append(contrast(channels, elsewhere))
    return {name: float(np.nanmean(values)) for name, values in found.items()}


def table(look: Look) -> list[dict[str, Any]]:
    """Contrast by modality and challenge.

    Args:
        look: the settings.

    Returns:
        One row for each condition of the RGB frames where the auxiliary ones are usable, and for each thing that spoils these: means over
        the sequences, and their number.
    """
    rows = []
    for modality in MODALITIES:
        groups: dict[str, list[dict[str, float]]] = defaultdict(list)
        for index in range(look.sequences):
            sequence = render_sequence("target-test", index, seed=look.seed, length=look.length, modality=modality)
            figures = measure(sequence, np.random.default_rng([look.seed, index]))
            spoilt, *situation = sequence.attributes
            groups[situation[0] if situation else spoilt].append(figures)
        for name, found in sorted(groups.items()):
            means = {key: round(float(np.mean([f[key] for f in found])), 3) for key in found[0]}
            rows.append({"modality": modality, "challenge": name, "sequences": len(found), **means})
    return rows


def main(look: Look) -> None:
    """Measure, draw, print.

    Args:
        look: the settings.
    """
    rows = table(look)
    write_json(look.results, {"rows": rows, "seed": look.seed, "length": look.length, "commit": git_commit(), "environment": environment()})
    print("\n| modality | challenge | sequences | RGB | auxiliary | chance RGB | chance auxiliary |\n|---|---|---|---|---|---|---|")
    for r in rows:
        figures = " | ".join(f"{r[key]:.2f}" for key in ("rgb", "aux", "rgb_chance", "aux_chance"))
        print(f"| {r['modality']} | {r['challenge']} | {r['sequences']} | {figures} |")
    for modality in MODALITIES:
        for number, index in enumerate(SHOWN[modality]):
            sequence = render_sequence("target-test", index, seed=look.seed, length=24, modality=modality)
            path = look.pictures / f"synthetic_{modality}_{number}.png"
            picture_strip(sequence, {}, path, frames=4, height=80)
            print(f"{path}  {', '.join(sequence.attributes)}")


if __name__ == "__main__":
    main(tyro.cli(Look, description=__doc__))
