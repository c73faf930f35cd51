"""The cells of the proof study: which methods, each with which settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from srft.config import BEFORE, Modality, TrainConfig, to_flat
from srft.settings import from_flat

__all__ = ["METHODS", "Cell", "cells_of", "identity"]

Point = Mapping[str, Any]
RATE = 6e-4
"""Of the methods that hold weights back, where a method's list does not vary it."""
HALF = 0.55
"""What damping leaves of the learning rate on average, at full strength: such methods have rates of RATE / HALF too."""


def _rates(paradigm: str, *rates: float) -> dict[str, Point]:
    return {f"lr {rate:g}": {"paradigm": paradigm, "optim.lr": rate} for rate in rates}


def _held(kind: str, decoupled: bool, *strengths: float) -> dict[str, Point]:
    common = {"paradigm": "full", "optim.lr": RATE, "baseline.kind": kind, "baseline.decoupled": decoupled}
    return {f"strength {strength:g}": {**common, "baseline.strength": strength} for strength in strengths}


def _srft(rate: float = RATE, **settings: Any) -> Point:
    return {"paradigm": "srft", "optim.lr": rate, "srft.schedule": "constant", **{f"srft.{key}": value for key, value in settings.items()}}


def _damped(rate: float, damped: str) -> Point:
    return _srft(rate, prior_strength=0.0, damping_strength=1.0, rank=16, damped=damped, damped_rate="kept", schedule="power")


METHODS: dict[str, dict[str, Point]] = {
    "fft": _rates("full", 3e-4, 6e-4, 1.5e-4, 1e-3),
    "penalty": {
        f"{strength:g}, K={k}": _srft(prior_strength=strength, rank=k, mode="penalty")
        for strength, k in ((100.0, 16), (1000.0, 16), (10.0, 16), (100.0, 1), (100.0, 4), (100.0, 64), (1000.0, 64))
    },
    "proximal dense": {
        f"{strength:g}, K=16": _srft(prior_strength=strength, rank=16, mode="proximal", diagonal=True) for strength in (1e4, 1e3, 1e5)
    },
    "lora": _rates("lora", 2e-3, 1e-3, 4e-3),
    "ewc decoupled": _held("ewc", True, 1000.0, 100.0, 10_000.0),
    "l2-sp decoupled": _held("l2_sp", True, 100.0, 30.0, 300.0),
    "damping": {
        f"lr {rate:.2g}": _srft(rate, prior_strength=0.0, damping_strength=1.0, rank=16, schedule="power")
        for rate in (RATE / HALF, RATE, 1.5e-4 / HALF)
    },
    "proximal": {
        f"{strength:g}, K={k}": _srft(prior_strength=strength, rank=k, mode="proximal")
        for strength, k in ((1000.0, 16), (1e4, 16), (1000.0, 64), (1e4, 64), (1000.0, 4), (1000.0, 1))
    },
    "penalty dense": {
        f"{strength:g}, K=16": _srft(prior_strength=strength, rank=16, mode="penalty", diagonal=True) for strength in (100.0, 1000.0)
    },
    "penalty dense, aux": {
        f"{strength:g}, aux {100 * share:g} %": _srft(prior_strength=strength, rank=16, diagonal=True, aux_share=share)
        for strength, share in ((1000.0, 0.1), (1000.0, 0.03), (300.0, 0.1), (1000.0, 0.0), (300.0, 0.0), (3000.0, 0.03))
    },
    "given back": {
        f"{strength:g}, aux {100 * share:g} %": _srft(prior_strength=0.0, rank=0, give_back=strength, aux_share=share)
        for strength, share in ((3.0, 0.1), (1.0, 0.1), (10.0, 0.1), (1.0, 1.0), (3.0, 1.0))
    },
    "given back alike": {
        f"{strength:g}, aux {100 * share:g} %": _srft(prior_strength=0.0, rank=0, give_back=strength, aux_share=share, give_back_by="alike")
        for strength, share in ((2.0, 0.1), (1.0, 0.1), (5.0, 0.1), (1.0, 1.0))
    },
    "penalty, given back": {
        "power, 100, 3 up to 24 sequences, aux 10 %": _srft(
            prior_strength=100.0, rank=16, give_back=3.0, give_back_sequences=24, aux_share=0.1, schedule="power"
        )
    }
    | {
        f"{schedule}, 100, {strength:g}, aux 10 %{named}": _srft(
            rate, prior_strength=100.0, rank=16, give_back=strength, aux_share=0.1, schedule=schedule
        )
        for schedule, strength, rate, named in (
            ("power", 3.0, RATE, ""),
            ("constant", 3.0, RATE, ""),
            ("constant", 1.0, RATE, ""),
            ("power", 1.0, RATE, ""),
            ("power", 0.3, RATE, ""),
            ("power", 3.0, 3e-4, ", lr 3e-4"),
            ("power", 3.0, 1e-3, ", lr 1e-3"),
        )
    },
    "fft, streams apart": {
        f"lr {rate:g}": {"paradigm": "full", "optim.lr": rate, "optim.rates": "published_fe108"} for rate in (6e-4, 1e-3, 3e-4)
    },
    "aux stream": _rates("aux", 3e-4, 6e-4, 1.5e-4),
    "aux stream, given back": {
        f"{strength:g}, aux {100 * share:g} %": {
            **_srft(prior_strength=0.0, rank=0, give_back=strength, aux_share=share),
            "paradigm": "srft-aux",
        }
        for strength, share in ((3.0, 0.1), (1.0, 0.1), (10.0, 0.1))
    },
    "projection": {
        f"{strength:g}, K={k}": _srft(prior_strength=strength, rank=k, mode="projection")
        for strength, k in ((1.0, 16), (100.0, 16), (1.0, 64))
    },
    "projection dense": {"1, K=16": _srft(prior_strength=1.0, rank=16, mode="projection", diagonal=True)},
    "scale group": {"100, K=16": _srft(prior_strength=100.0, rank=16, scale="group")},
    "srft": {
        schedule: _srft(prior_strength=100.0, rank=16, damping_strength=0.5, schedule=schedule)
        for schedule in ("power", "constant", "linear", "cosine", "exponential", "step", "adaptive")
    },
    "damping opposed": {f"lr {rate:g}": _damped(rate, "opposed") for rate in (RATE, 3e-4)},
    "damping by prior": {f"lr {rate:g}": _damped(rate, "prior") for rate in (RATE, 3e-4)},
    "damping, rate kept": {f"lr {rate:g}": _damped(rate, "both") for rate in (RATE, 3e-4)},
    "penalty, opposed": {"100, K=16": {**_damped(RATE, "opposed"), "srft.prior_strength": 100.0}},
    "head": _rates("head", 3e-4, 1e-3),
    "prompt": _rates("prompt", 1e-3, 3e-3),
    "adapter": _rates("adapter", 1e-3, 3e-3),
    "l2-sp gradient": _held("l2_sp", False, 0.01, 0.1),
    "ewc gradient": _held("ewc", False, 0.01, 0.1),
    "released": {
        f"lr {rate:.2g}": _srft(rate, prior_strength=0.0, damping_strength=1.0, rank=0, transfer="two_step") for rate in (RATE / HALF, RATE)
    },
    "srft on lora": {"lr 0.002": {**_srft(2e-3, damping_strength=0.5), "paradigm": "srft-lora"}},
    "srft on prompt": {"lr 0.003": {**_srft(3e-3, damping_strength=0.5), "paradigm": "srft-prompt"}},
}
"""By family: settings by name, the first the one that is run first. ``released`` is the published rule with true ranks."""
FIRST = ("fft", "penalty", "proximal dense", "lora", "ewc decoupled", "l2-sp decoupled", "damping")
"""Families that say most: run before any other, one setting after the other."""


def identity(config: TrainConfig) -> str:
    """What a finished cell is known by: a digest of the settings that are not as in the first cells, so that new settings change nothing.

    Args:
        config: of the cell.

    Returns:
        Twelve hex digits.
    """
    usual = {**to_flat(TrainConfig()), **BEFORE}
    changed = {key: value for key, value in to_flat(config).items() if key != "name" and value != usual[key]}
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the study."""

    modality: Modality
    size: int
    """Target pairs."""
    seed: int
    method: str
    setting: str
    config: TrainConfig
    """Its name is ``cell.<modality>.<size>.<seed>.<method>.<setting>``."""


def cells_of(
    modalities: Sequence[Modality],
    sizes: Sequence[int],
    seeds: int,
    methods: Sequence[str],
    base: Callable[[Modality], TrainConfig],
    *,
    settings: int = 0,
    rates: float = 1.0,
) -> list[Cell]:
    """All cells, the most informative first: modality by modality; first settings of the first families, three seeds, small sizes.

    Args:
        modalities: of the target.
        sizes: target pairs.
        seeds: how many.
        methods: families; all when empty.
        base: what all cells of a modality have in common.
        settings: the first so many of each family; 0: all.
        rates: what their learning rates are multiplied by, which the settings' names then say.

    Returns:
        The cells.

    Raises:
        ValueError: there is no such family.
    """
    if unknown := [method for method in methods if method not in METHODS]:
        raise ValueError(f"methods: {', '.join(unknown)}; expected some of {', '.join(METHODS)}")
    found = []
    for m, modality in enumerate(modalities):
        common = base(modality)
        for method in methods or METHODS:
            for s, (setting, point) in enumerate(_scaled(METHODS[method], rates).items()):
                for z, size in enumerate(sizes):
                    for seed in range(seeds):
                        if settings and s >= settings:
                            continue
                        order = (m, z > 1, method not in FIRST, seed >= 3, z, s > 1, seed, s)
                        found.append((order, _cell(common, modality, size, seed, method, setting, point)))
    return [cell for _, cell in sorted(found, key=lambda entry: entry[0])]


def _scaled(settings: Mapping[str, Point], rates: float) -> Mapping[str, Point]:
    if rates == 1:
        return settings
    return {f"{setting}, rates x {rates:g}": {**point, "optim.lr": point["optim.lr"] * rates} for setting, point in settings.items()}


def _cell(common: TrainConfig, modality: Modality, size: int, seed: int, method: str, setting: str, point: Point) -> Cell:
    drawn = {
        "name": f"cell.{modality}.{size}.{seed}.{method}.{setting}",
        "seed": seed,
        "data.train_world": 1000 + seed,
        "data.train_sequences": min(192, max(8, size // 8)),
        "data.pool": size,
    }
    return Cell(modality=modality, size=size, seed=seed, method=method, setting=setting, config=from_flat({**point, **drawn}, common))
