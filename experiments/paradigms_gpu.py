"""The cells of the proof study where there is one GPU and neither Ray nor MLflow: many processes share it.

The cells are those of paradigms.py, and so are their files; finished ones are never repeated, and no cell starts once the time is over:

    python experiments/paradigms_gpu.py --sizes 64 192 --seeds 5 --processes 16 --minutes 8 --out outputs/paradigms
    python experiments/paradigms_gpu.py --preset small --pretrained outputs/pretrain/small_rgb.safetensors --precision bf16 \
        --rate-scale 0.1 --steps 240 --batch 16 --seeds 3 --methods fft "penalty, given back" --out outputs/paradigms_small
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from leaderboard import say
from paradigms import Session, run_cell, unfinished, untuned
from paradigms_cells import Cell
from paradigms_measures import parts
from srft.config import DataConfig, TrainConfig
from srft.data.synthetic import Split, sequences
from srft.training.prior import SOURCE_SEQUENCES, source_prior, wants_diagonal, wants_prior
from srft.training.worker import Worker

Rendering = tuple[DataConfig, Split, int, int]
"""Data settings, split, world, index of the sequence."""


@dataclass(frozen=True, kw_only=True)
class OnOneGPU(Session):
    """One session of the study on a machine with one GPU."""

    processes: int = os.cpu_count() or 1
    """That share the GPU; one for each core."""
    minutes: float = 0.0
    """No cell starts after so long; 0: no limit."""


def renderings(cells: list[Cell], session: Session) -> list[Rendering]:
    """Every sequence that cells need, once.

    Args:
        cells: to run.
        session: the settings.

    Returns:
        What to render.
    """
    found: dict[tuple[str, Split, int, int], Rendering] = {}

    def need(data: DataConfig, split: Split, world: int, count: int, first: int = 0) -> None:
        for index in range(first, first + count):
            found.setdefault((data.modality, split, world, index), (data, split, world, index))

    for data in dict.fromkeys(cell.config.data for cell in cells):
        need(data, "target-train", data.train_world, data.train_sequences)
        need(data, "source-train", data.world_seed, SOURCE_SEQUENCES)
        need(data, "source-test", data.world_seed, data.source_sequences)
        for part in parts(data, session.test_pairs).values():
            need(data, part.split, data.world_seed, part.count, part.first)
    return list(found.values())


def render(wanted: Rendering, cache: Path) -> None:
    """Put one sequence into the cache.

    Args:
        wanted: which.
        cache: folder of rendered sequences.
    """
    data, split, world, index = wanted
    sequences(split, 1, seed=world, length=data.length, modality=data.modality, cache=cache, first=index)


def run_alone(config: TrainConfig, cache: Path, out: Path, pairs: int, until: float) -> float | None:
    """Run one cell in this process, unless it is too late.

    Args:
        config: the cell.
        cache: folder of sequences and priors.
        out: folder of finished cells.
        pairs: target pairs of the test.
        until: time after which none starts.

    Returns:
        Seconds it took; None if it was too late.
    """
    started = time.time()
    if started > until:
        return None
    exact = config.optim.precision == "fp32"  # As on a CPU.
    torch.backends.cudnn.allow_tf32 = not exact
    torch.set_float32_matmul_precision("highest" if exact else "high")
    directory = Path(tempfile.mkdtemp(prefix="cell-"))
    try:
        run_cell(config, cache=cache, out=out, pairs=pairs, directory=directory, worker=Worker(), on_epoch=lambda _: None, resume=False)
    finally:
        shutil.rmtree(directory)
    return time.time() - started


def main(given: OnOneGPU) -> None:
    """Run the cells that are missing.

    Args:
        given: the settings.
    """
    started = time.time()
    until = started + 60 * given.minutes if given.minutes else float("inf")
    os.environ["OMP_NUM_THREADS"] = "1"
    session, missing = unfinished(given)
    finished, cache = session.out / "cells", session.out / "cache"
    priors = {(wants_diagonal(c.config), c.config.srft.estimator, c.config.srft.fisher): c.config for c in missing if wants_prior(c.config)}
    with ProcessPoolExecutor(given.processes, multiprocessing.get_context("spawn")) as pool:
        wanted = renderings(missing, session)
        made = [pool.submit(source_prior, config, cache) for config in priors.values()]
        for future in as_completed([*made, *(pool.submit(render, one, cache) for one in wanted)]):
            future.result()
        say(f"{len(wanted)} sequences and {len(priors)} priors after {time.time() - started:.0f} s")
        others = [pool.submit(untuned, session, modality, finished, cache) for modality in session.modality]
        running = {pool.submit(run_alone, c.config, cache, finished, session.test_pairs, until): c for c in missing}
        for n, future in enumerate(as_completed(running)):
            cell = running[future]
            if error := future.exception():
                say(f"{cell.config.name}: {type(error).__name__}: {error}")
            elif (seconds := future.result()) is not None:
                say(f"{n + 1}/{len(missing)} {cell.config.name}: {seconds:.1f} s")
        for future in others:
            future.result()


if __name__ == "__main__":
    main(tyro.cli(OnOneGPU, description=__doc__))
