"""A study: the list of its trials, the directory it lives in, and what each trial has come to.

All trials are drawn before the first one starts, from the study's seed, so a study is the same list of trials wherever and however
often it is started. What a trial has done is in its own directory: checkpoints with their metric history, and ``result.json`` once
it has ended. ``srft.search.tuning`` runs them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from srft.config import ConfigError, TrainConfig, from_flat, to_flat
from srft.files import write_json
from srft.search.space import Space
from srft.training import checkpoint

__all__ = ["Study", "Trial", "TrialResult", "TrialState", "best", "claim", "read_study", "record_end", "results", "trial_directory"]

TrialState = Literal["pending", "running", "finished", "stopped", "failed"]
_STUDY, _RESULT = "study.json", "result.json"


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


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is searched, how, and by which measure."""

    name: str
    base: TrainConfig
    """Configuration of every trial but for what the space or a fixed point replaces; its workers are those of each trial."""
    space: Space
    num_samples: int
    """Trials drawn from the space."""
    fixed: tuple[Mapping[str, Any], ...] = ()
    """Points that are trained first and to the end, such as the baseline."""
    seed: int = 0
    """Of the draws; each trial trains with the base's seed."""
    metric: str = "val/success_auc"
    """What is maximized, from validation sequences."""
    grace_epochs: int = 1
    """Epochs every trial is given before it may be stopped."""
    reduction: int = 2
    """At each rung the best 1 / reduction of the trials seen so far go on."""
    max_concurrent: int = 0
    """Trials at once; 0: as many as the cluster has CPUs for."""
    cpus_per_worker: int = 1
    max_failures: int = 1
    """How often a failed trial is started again (it goes on from its last checkpoint)."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: one is out of range, or the space could draw an invalid configuration.
        """
        limits = {"num_samples": 0, "grace_epochs": 1, "reduction": 2, "max_concurrent": 0, "cpus_per_worker": 1, "max_failures": 0}
        for key, low in limits.items():
            if getattr(self, key) < low:
                raise ConfigError(f"study {self.name}: {key} is {getattr(self, key)}; expected at least {low}")
        if not self.name or "/" in self.name:
            raise ConfigError(f"study name is {self.name!r}; expected a non-empty name without '/'")
        if self.num_samples + len(self.fixed) == 0:
            raise ConfigError(f"study {self.name}: no trials; give num_samples or fixed points")
        self.space.validate(self.base)

    def trials(self) -> list[Trial]:
        """All trials: the fixed points, then the draws. The same list every time.

        Returns:
            One per trial, by index.
        """
        rng = np.random.default_rng(self.seed)
        points: list[dict[str, Any]] = [dict(point) for point in self.fixed]
        seen = {self._configure(index, point).digest() for index, point in enumerate(points)}
        for index in range(len(points), len(points) + self.num_samples):
            point = self.space.sample(rng)
            for _ in range(20):  # A small space may hold fewer points than the study has trials.
                if self._configure(index, point).digest() not in seen:
                    break
                point = self.space.sample(rng)
            seen.add(self._configure(index, point).digest())
            points.append(point)
        return [
            Trial(index=i, name=f"{self.name}-{i:03d}", point=p, config=self._configure(i, p), fixed=i < len(self.fixed))
            for i, p in enumerate(points)
        ]

    def _configure(self, index: int, point: Mapping[str, Any]) -> TrainConfig:
        return from_flat({**point, "name": f"{self.name}-{index:03d}"}, self.base, source=f"study {self.name}, trial {index}")

    def digest(self) -> str:
        """Eight hex digits that change whenever a trial, or how trials are compared, does.

        Returns:
            The digits.
        """
        what = [self.metric, self.grace_epochs, self.reduction, *(trial.config.digest() for trial in self.trials())]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What became of a trial."""

    trial: Trial
    state: TrialState
    directory: Path
    score: float
    """Best value of the study's metric over its epochs; not-a-number without a finished epoch."""
    history: tuple[dict[str, Any], ...]
    """``{"epoch", "step", "metrics"}`` per epoch."""
    seconds: float = math.nan
    """From first start to end, of the session in which it ended."""
    error: str = ""
    """Last line of what made it fail."""

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of its last epoch."""
        return self.history[-1]["metrics"] if self.history else {}


def trial_directory(directory: Path, trial: Trial) -> Path:
    """Where a trial keeps its checkpoints.

    Args:
        directory: of the study.
        trial: one of its trials.

    Returns:
        ``trials/<index>-<digest>``.
    """
    return directory / "trials" / f"{trial.index:03d}-{trial.config.digest()}"


def claim(study: Study, directory: Path, *, resume: bool) -> None:
    """Make a directory the home of one study. Call it before anything is written there.

    Args:
        study: the study.
        directory: of the study; made if missing.
        resume: accept a directory in which this very study was started before.

    Raises:
        ConfigError: the directory holds another study, or this one and ``resume`` is False, or files of something else.
    """
    marker = directory / _STUDY
    if marker.exists():
        try:
            found = str(json.loads(marker.read_text())["digest"])
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ConfigError(f"{marker}: not a study description; choose another --out or delete {directory}") from None
        if found != study.digest():
            raise ConfigError(
                f"{directory} holds a study of configuration {found}, but this study is configuration {study.digest()}; "
                f"choose another --out, delete the directory, or use the settings in {marker}"
            )
        if not resume:
            raise ConfigError(f"{directory} already holds this study ({found}); pass --resume to go on, or choose another --out")
        return
    if directory.exists() and any((directory / name).exists() for name in ("trials", "mlflow.db")):
        raise ConfigError(f"{directory} holds results but no {_STUDY}; choose another --out or delete the directory")
    directory.mkdir(parents=True, exist_ok=True)
    description = {
        "name": study.name,
        "digest": study.digest(),
        "metric": study.metric,
        "base": to_flat(study.base),
        "trials": [{"index": trial.index, "fixed": trial.fixed, "point": trial.point} for trial in study.trials()],
    }
    write_json(marker, description)


def results(study: Study, directory: Path) -> list[TrialResult]:
    """What each trial of a study has come to, read from its directory.

    Args:
        study: the study.
        directory: of the study.

    Returns:
        One per trial, by index.
    """
    return [_result(trial, trial_directory(directory, trial), study.metric) for trial in study.trials()]


def read_study(directory: Path) -> tuple[str, str, list[TrialResult]]:
    """A study from its directory alone.

    Args:
        directory: of the study.

    Returns:
        Its name, its metric and what each trial has come to, by index.

    Raises:
        ConfigError: the directory holds no study.
    """
    marker = directory / _STUDY
    try:
        about = json.loads(marker.read_text())
        base = from_flat(about["base"], source=str(marker))
        trials = [
            Trial(
                index=known["index"],
                name=f"{about['name']}-{known['index']:03d}",
                point=known["point"],
                config=from_flat({**known["point"], "name": f"{about['name']}-{known['index']:03d}"}, base, source=str(marker)),
                fixed=known["fixed"],
            )
            for known in about["trials"]
        ]
    except FileNotFoundError:
        raise ConfigError(f"{directory} holds no study ({_STUDY} is missing); give the directory of a sweep") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ConfigError(f"{marker}: not a study description; give the directory of a sweep") from None
    found = []
    for trial in trials:  # By number: settings that were added since change the digest in the folder's name.
        homes = sorted((directory / "trials").glob(f"{trial.index:03d}-*"))
        found.append(_result(trial, homes[0] if homes else trial_directory(directory, trial), about["metric"]))
    return about["name"], about["metric"], found


def _result(trial: Trial, home: Path, metric: str) -> TrialResult:
    pending: dict[str, Any] = {"state": "running" if home.exists() else "pending"}
    end = json.loads((home / _RESULT).read_text()) if (home / _RESULT).exists() else pending
    history = tuple(checkpoint.history(home)) if home.exists() else ()
    values = [value for entry in history if not math.isnan(value := entry["metrics"].get(metric, math.nan))]
    return TrialResult(trial=trial, directory=home, history=history, score=max(values, default=math.nan), **end)


def best(found: list[TrialResult]) -> TrialResult:
    """The trial with the highest score, the first of equals.

    Args:
        found: of a study.

    Returns:
        The best trial.

    Raises:
        ValueError: no trial has finished an epoch with a score.
    """
    scored = [result for result in found if not math.isnan(result.score)]
    if not scored:
        errors = {result.error for result in found if result.error}
        raise ValueError(
            f"none of the {len(found)} trials finished an epoch; {'errors: ' + '; '.join(sorted(errors)) if errors else 'resume the study'}"
        )
    return max(scored, key=lambda result: (result.score, -result.trial.index))


def record_end(home: Path, state: TrialState, *, seconds: float, error: str = "") -> None:
    """Write down that a trial ended, so that it is never repeated (or, if it failed, is tried again on resume).

    Args:
        home: directory of the trial.
        state: finished, stopped or failed.
        seconds: from start to end.
        error: last line of what made it fail.
    """
    home.mkdir(parents=True, exist_ok=True)
    write_json(home / _RESULT, {"state": state, "seconds": seconds, "error": error})


def forget_end(home: Path) -> None:
    """Take back :func:`record_end`, before a trial starts again.

    Args:
        home: directory of the trial.
    """
    (home / _RESULT).unlink(missing_ok=True)
