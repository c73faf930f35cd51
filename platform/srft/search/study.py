"""A study: what is searched, how, and the list of its trials.

Random, quasi-random and grid studies are drawn before the first trial starts, from the study's seed, so they are the same list of trials
wherever and however often they are started. TPE draws each trial from what earlier ones showed, population based training changes trials
on the way; both write a trial down before it starts (``record``). ``srft.search.tuning`` runs them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from srft.config import ConfigError, TrainConfig
from srft.search import draw
from srft.search.draw import Observation
from srft.search.halving import rungs
from srft.search.space import Point, Space
from srft.settings import from_flat

__all__ = ["CHANGEABLE", "Search", "Study", "Trial", "make_trial"]

Search = Literal["random", "sobol", "grid", "tpe", "pbt"]
CHANGEABLE = frozenset(
    [f"srft.{key}" for key in ("kappa", "schedule", "prior_strength", "damping_strength", "damping_range", "refresh")]
    + [f"optim.{key}" for key in ("lr", "weight_decay", "grad_clip")]
    + ["baseline.strength"]
)
"""Settings that may change while a run trains: no tensor's shape follows from them."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One member of a study."""

    index: int
    name: str
    """``<study>-<index>``."""
    point: dict[str, Any]
    """The dotted keys in which it differs from the study's base."""
    config: TrainConfig
    fixed: bool
    """Given, not drawn: never stopped early and no yardstick for the others."""
    origins: tuple[tuple[int, int], ...] = ()
    """Population based training: (trial, epochs) whose checkpoint it went on from, each time it did."""

    @property
    def since(self) -> int:
        """Epochs that others trained before it took their checkpoint over, with settings of their own."""
        return self.origins[-1][1] if self.origins else 0


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is searched, how, and by which measure."""

    name: str
    base: TrainConfig
    """Configuration of every trial but for what the space or a fixed point replaces; its workers are those of each trial."""
    space: Space
    num_samples: int
    """Trials drawn from the space. A grid must not have more points."""
    search: Search = "random"
    """How they are drawn: independently, evenly (Sobol), all combinations, from what earlier trials showed (TPE), or independently and
    then changed while they train (population based training)."""
    fixed: tuple[Mapping[str, Any], ...] = ()
    """Points that are trained first and to the end, such as the baseline."""
    known: tuple[Observation, ...] = ()
    """Trials of earlier studies that TPE learns from."""
    levels: int = 3
    """Values of a continuous dimension in a grid."""
    seed: int = 0
    """Of the draws."""
    own_seeds: bool = False
    """Train each trial with a seed of its own, the base's plus its index; otherwise all have the base's."""
    metric: str = "val/success_auc"
    """What is maximized, from validation sequences."""
    second: str = ""
    """Another measure to maximize, such as source/success_auc: the study looks for the best compromises."""
    early_stopping: bool = True
    """Trials pause at rungs, and only the best go on from there (asynchronous successive halving)."""
    grace_epochs: int = 1
    """Epochs every trial is given before it may be stopped."""
    reduction: int = 2
    """At each rung the best 1 / reduction of the trials seen so far go on."""
    brackets: int = 1
    """More than one: every other trial is of a bracket whose first rung comes later (asynchronous HyperBand)."""
    perturb_epochs: int = 1
    """Population based training: epochs between two exchanges."""
    max_concurrent: int = 0
    """Trials at once; 0: as many as the cluster has processors for."""
    cpus_per_worker: int = 1
    gpus_per_worker: float = 1.0
    """Where the cluster has GPUs; trials of one worker may share one."""
    max_failures: int = 1
    """How often a failed trial is started again (it goes on from its last checkpoint)."""
    max_failed: int = 5
    """So many trials that fail one after the other end the study; 0: none do."""
    max_hours: float = 0.0
    """Hours of all sessions together after which trials end with their epoch, to be resumed under a larger budget; 0: no limit."""
    max_gpu_hours: float = 0.0
    """The same for GPU-hours of all trials."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: one is out of range, or the space could draw an invalid configuration.
        """
        limits = {
            **{"num_samples": 0, "grace_epochs": 1, "reduction": 2, "brackets": 1, "perturb_epochs": 1, "levels": 1, "max_concurrent": 0},
            **{"cpus_per_worker": 1, "max_failures": 0, "max_failed": 0, "max_hours": 0, "max_gpu_hours": 0},
        }
        where = f"study {self.name}"
        for key, low in limits.items():
            if getattr(self, key) < low:
                raise ConfigError(f"{where}: {key} is {getattr(self, key)}; expected at least {low}")
        if not self.name or "/" in self.name:
            raise ConfigError(f"study name is {self.name!r}; expected a non-empty name without '/'")
        if self.search not in get_args(Search):
            raise ConfigError(f"{where}: search is {self.search!r}; expected one of {get_args(Search)}")
        if not 0 < self.gpus_per_worker <= 1 or (self.base.workers > 1 and self.gpus_per_worker != 1):
            raise ConfigError(
                f"{where}: gpus_per_worker is {self.gpus_per_worker} with {self.base.workers} worker(s) per trial; "
                "expected 1, or a share above 0 for trials of one worker"
            )
        for metric in (self.metric, *([self.second] if self.second else [])):
            if not metric.startswith(("val/", "source/")):
                raise ConfigError(
                    f"{where}: metric is {metric!r}; trials are chosen by val/… or source/…, never by what they are tested on"
                )
        if self.num_samples + len(self.fixed) == 0:
            raise ConfigError(f"{where}: no trials; give num_samples or fixed points")
        if self.known and self.search != "tpe":
            raise ConfigError(f"{where}: search {self.search} learns nothing from earlier trials; use tpe, or give them as fixed points")
        self.space.validate(self.base)
        if self.search == "grid" and (size := len(draw.grid(self.space, self.levels))) > self.num_samples:
            raise ConfigError(
                f"{where}: the grid has {size} points, num_samples is {self.num_samples}; give {size}, or fewer values or levels"
            )
        if self.search == "pbt":
            stuck = [key for key in self.space.dimensions if key not in CHANGEABLE]
            if stuck:
                raise ConfigError(
                    f"{where}: {', '.join(stuck)} cannot change while a trial trains; a pbt space may have {', '.join(sorted(CHANGEABLE))}"
                )
            if 0 < self.num_samples < 4:
                raise ConfigError(f"{where}: num_samples is {self.num_samples}; expected at least 4, a population")

    @property
    def halving(self) -> bool:
        """Whether trials pause at rungs: not in a population, which pauses by itself."""
        return self.early_stopping and self.search != "pbt"

    def rungs(self, index: int, total: int) -> list[int]:
        """Epochs after which a drawn trial pauses: those of its bracket.

        Args:
            index: of the trial.
            total: its epochs.

        Returns:
            Rising; empty where trials do not pause.
        """
        if not self.halving:
            return []
        return rungs(total, grace=self.grace_epochs, reduction=self.reduction, bracket=index % self.brackets)

    @property
    def size(self) -> int:
        """Number of trials, drawn yet or not."""
        return len(self.fixed) + (len(draw.grid(self.space, self.levels)) if self.search == "grid" else self.num_samples)

    def trials(self) -> list[Trial]:
        """The fixed points, then all draws that are known before the first trial has run. The same list every time.

        Returns:
            One per trial, by index; of TPE the fixed points only.
        """
        points: list[Point] = []
        match self.search:
            case "random" | "pbt":
                points = draw.random(self.space, self.num_samples, self.seed)
            case "sobol":
                points = draw.sobol(self.space, self.num_samples, self.seed)
            case "grid":
                points = draw.grid(self.space, self.levels)
        first = len(self.fixed)
        return [
            *(self.trial(i, p) for i, p in enumerate(self.fixed)),
            *(self.trial(i, p) for i, p in enumerate(points, first)),
        ]

    def trial(self, index: int, point: Mapping[str, Any], origins: tuple[tuple[int, int], ...] = ()) -> Trial:
        """A member of the study.

        Args:
            index: its number.
            point: what replaces the base's settings.
            origins: see :class:`Trial`.

        Returns:
            The trial; a point that makes no valid configuration is a ConfigError.
        """
        if self.own_seeds:
            point = {"seed": self.base.seed + index, **point}
        return make_trial(self.name, self.base, index, dict(point), fixed=index < len(self.fixed), origins=origins)

    def digest(self) -> str:
        """Eight hex digits that change whenever a trial, or how trials are drawn and compared, does.

        Returns:
            The digits.
        """
        what: list[Any] = [self.metric, self.grace_epochs, self.reduction, *(trial.config.digest() for trial in self.trials())]
        how = {"search": "random", "second": "", "early_stopping": True, "brackets": 1}
        what += [[key, getattr(self, key)] for key, usual in how.items() if getattr(self, key) != usual]
        if self.search in ("tpe", "pbt"):
            what += [self.base.digest(), repr(self.space), self.num_samples, self.seed, self.perturb_epochs]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]


def make_trial(
    name: str, base: TrainConfig, index: int, point: Point, *, fixed: bool, origins: Iterable[Iterable[int]] = (), source: str = ""
) -> Trial:
    """A member of a study.

    Args:
        name: of the study.
        base: configuration that the point changes.
        index: number of the trial.
        point: dotted keys.
        fixed: see :class:`Trial`.
        origins: see :class:`Trial`.
        source: where the point comes from, for errors.

    Returns:
        The trial.
    """
    named = f"{name}-{index:03d}"
    config = from_flat({**point, "name": named}, base, source=source or f"study {name}, trial {index}")
    return Trial(index=index, name=named, point=point, config=config, fixed=fixed, origins=tuple((t, e) for t, e in origins))
