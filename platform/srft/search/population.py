"""Population based training: who goes on from whose checkpoint (Jaderberg et al. 2017)."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from srft.config import TrainConfig, to_flat
from srft.files import sha256, write_json
from srft.search.front import by_fronts
from srft.training import checkpoint, home

__all__ = ["SHARE", "exchanges", "fork"]

SHARE = 0.25
"""Of the population, at each end: the worst go on from the best."""


def exchanges(scores: Mapping[int, Sequence[float]], rng: np.random.Generator) -> dict[int, int]:
    """Truncation selection: each of the worst takes over a random one of the best.

    Args:
        scores: latest value of each measure by member, as many of each; not a number or -inf for one that failed. Of several measures the
            best members are those on the front, see :func:`by_fronts`.
        rng: source of randomness.

    Returns:
        Donor by member that gives up; every member that failed does, as long as one did not.
    """
    failed = {index for index, values in scores.items() if not all(value > -math.inf for value in values)}
    alive = [index for index in by_fronts(scores) if index not in failed]
    order = [*alive, *sorted(failed)]
    if not alive:
        return {}
    count = max(1, round(SHARE * len(order)))
    best = alive[:count]
    worst = [index for index in order[max(count, len(order) - count) :] if index not in best]
    given_up = sorted({*worst, *failed})
    return {index: best[int(rng.integers(len(best)))] for index in given_up}


def fork(source: Path, target: Path, config: TrainConfig) -> None:
    """Make a run directory whose newest checkpoint is another run's, so that training goes on from there.

    Large files are linked, not copied, where the file system can.

    Args:
        source: directory of the run to go on from.
        target: directory to make; what is there is replaced.
        config: the run that goes on.

    Raises:
        FileNotFoundError: the source has no valid checkpoint.
    """
    newest = checkpoint.latest(source)
    if newest is None:
        raise FileNotFoundError(f"{source}: no valid checkpoint to go on from")
    shutil.rmtree(target, ignore_errors=True)
    home.claim(target, config, resume=False)
    aside = target / f".{newest.name}.tmp"
    shutil.copytree(newest, aside, copy_function=_link)
    about = json.loads((aside / checkpoint.META).read_text()) | {"config": to_flat(config), "digest": config.digest(), "inherited": True}
    write_json(aside / checkpoint.META, about)
    manifest = json.loads((aside / checkpoint.MANIFEST).read_text())
    manifest[checkpoint.META] = {"bytes": (aside / checkpoint.META).stat().st_size, "sha256": sha256(aside / checkpoint.META)}
    write_json(aside / checkpoint.MANIFEST, manifest)
    os.replace(aside, target / newest.name)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
