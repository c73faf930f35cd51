"""The directory of a study: which trials it has and what each has come to.

``study.json`` lists the trials drawn so far. What a trial has done is in its own directory below ``trials/``: checkpoints with their metric
history, and ``result.json`` once it has ended.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from srft.config import ConfigError, to_flat
from srft.files import write_json
from srft.search.front import at_best
from srft.search.study import Study, Trial, make_trial
from srft.settings import recorded
from srft.training import checkpoint
from srft.training.home import held

__all__ = [
    "StudyRecord", "TrialResult", "TrialState", "best", "claim", "forget_end", "read_study", "record_end", "record_trials",
    "trial_directory",
]  # fmt: skip

TrialState = Literal["pending", "running", "finished", "stopped", "failed"]
_STUDY, _RESULT = "study.json", "result.json"


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What became of a trial."""

    trial: Trial
    state: TrialState
    directory: Path
    score: float
    """Best value of the study's metric over its own epochs; not-a-number without one that is finished."""
    history: tuple[dict[str, Any], ...]
    """``{"epoch", "step", "metrics"}`` per epoch, with those of the trial whose checkpoint it went on from."""
    seconds: float = math.nan
    """From first start to end, of the session in which it ended."""
    error: str = ""
    """Last line of what made it fail."""

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of its last epoch."""
        return self.history[-1]["metrics"] if self.history else {}

    @property
    def own(self) -> tuple[dict[str, Any], ...]:
        """The part of its history that it trained itself, with the settings that it has."""
        return self.history[self.trial.since :]

    def at_best(self, metric: str, second: str) -> tuple[float, float]:
        """Two measures at the own epoch that is best by the first.

        Args:
            metric: the first.
            second: the other.

        Returns:
            Both; not-a-number without a finished epoch.
        """
        return at_best(*([entry["metrics"].get(name, math.nan) for entry in self.own] for name in (metric, second)))


def trial_directory(directory: Path, trial: Trial) -> Path:
    """Where a trial keeps its checkpoints.

    Args:
        directory: of the study.
        trial: one of its trials.

    Returns:
        ``trials/<index>-<digest>``, and a number if it went on from other trials' checkpoints.
    """
    again = f"-{len(trial.origins)}" if trial.origins else ""
    return directory / "trials" / f"{trial.index:03d}-{trial.config.digest()}{again}"


def claim(study: Study, directory: Path, *, resume: bool) -> None:
    """Make a directory the home of one study. Call it before anything is written there.

    A study that goes on does so with the workers and loaders that it is given now, which its digest leaves out.

    Args:
        study: the study.
        directory: of the study; made if missing.
        resume: accept a directory in which this very study was started before.

    Raises:
        ConfigError: the directory holds another study, or this one and ``resume`` is False, or files of something else.
    """
    if held(marker := directory / _STUDY, study.digest(), what="study", resume=resume):
        write_json(marker, {**json.loads(marker.read_text()), "base": to_flat(study.base)})
        return
    if directory.exists() and any((directory / name).exists() for name in ("trials", "mlflow.db")):
        raise ConfigError(f"{directory} holds results but no {_STUDY}; choose another --out or delete the directory")
    directory.mkdir(parents=True, exist_ok=True)
    record_trials(study, directory, study.trials())


def record_trials(study: Study, directory: Path, trials: Sequence[Trial], *, generation: int = 0) -> None:
    """Write down which trials a study has, before one that is not written down starts.

    Args:
        study: the study.
        directory: of the study.
        trials: all that were drawn so far, by index.
        generation: of population based training: how often members were exchanged.
    """
    write_json(
        directory / _STUDY,
        {
            "name": study.name,
            "digest": study.digest(),
            "search": study.search,
            "size": study.size,
            "metric": study.metric,
            "second": study.second,
            "generation": generation,
            "space": {key: repr(dimension) for key, dimension in study.space.dimensions.items()},
            "base": to_flat(study.base),
            "trials": [{"index": t.index, "fixed": t.fixed, "point": t.point, "origins": t.origins} for t in trials],
        },
    )


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """A study as its directory tells it."""

    name: str
    metric: str
    second: str
    """Second objective, empty without one."""
    size: int
    """Number of trials, drawn yet or not."""
    generation: int
    """How often members of a population were exchanged."""
    results: tuple[TrialResult, ...]
    """Of the trials drawn so far, by index."""


def read_study(directory: Path) -> StudyRecord:
    """A study from its directory alone.

    Args:
        directory: of the study.

    Returns:
        The study and what each trial has come to.

    Raises:
        ConfigError: the directory holds no study.
    """
    marker = directory / _STUDY
    try:
        about = json.loads(marker.read_text())
        base, name = recorded(about["base"], source=str(marker)), about["name"]
        trials = [
            make_trial(name, base, one["index"], one["point"], fixed=one["fixed"], origins=one.get("origins", ()), source=str(marker))
            for one in about["trials"]
        ]
        metric = about["metric"]
    except FileNotFoundError:
        raise ConfigError(f"{directory} holds no study ({_STUDY} is missing); give the directory of a sweep") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ConfigError(f"{marker}: not a study description; give the directory of a sweep") from None
    homes: dict[int, Path] = {}
    for home in sorted((directory / "trials").glob("[0-9]*-*"), reverse=True):
        homes[int(home.name.split("-")[0])] = home
    found = []
    for trial in trials:  # Else by number: settings that were added since change the digest in the folder's name.
        home = trial_directory(directory, trial)
        found.append(_result(trial, home if home.exists() or trial.origins else homes.get(trial.index, home), metric))
    size, second, generation = (about.get(key, usual) for key, usual in (("size", len(trials)), ("second", ""), ("generation", 0)))
    return StudyRecord(name=name, metric=metric, second=second, size=size, generation=generation, results=tuple(found))


def _result(trial: Trial, home: Path, metric: str) -> TrialResult:
    ended = (home / _RESULT).exists()
    end: dict[str, Any] = json.loads((home / _RESULT).read_text()) if ended else {"state": "running" if home.exists() else "pending"}
    # Where it goes on from if it still runs; checksums of what has ended are not needed to show it.
    history = () if not home.exists() else tuple(checkpoint.recorded(home) if ended else checkpoint.history(home))
    values = [value for entry in history[trial.since :] if not math.isnan(value := entry["metrics"].get(metric, math.nan))]
    return TrialResult(trial=trial, directory=home, history=history, score=max(values, default=math.nan), **end)


def best(found: Sequence[TrialResult], metric: str = "", second: str = "") -> TrialResult:
    """The trial with the highest score, the first of equals; of two measures the highest sum, which is on their front.

    Args:
        found: of a study.
        metric: of the study; needed with two measures only.
        second: second measure, of which the value at the epoch of the best first one counts.

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

    def worth(result: TrialResult) -> float:
        if not second:
            return result.score
        _, kept = result.at_best(metric, second)
        return -math.inf if math.isnan(kept) else result.score + kept

    return max(scored, key=lambda result: (worth(result), -result.trial.index))


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
