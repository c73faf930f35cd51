"""Trials of earlier studies, read from MLflow, as a new study learns from them."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from srft.config import BEFORE, LAYOUT, ConfigError, TrainConfig, to_flat
from srft.run_logging import LoggedTrial, logged_trials
from srft.search.draw import Observation
from srft.search.space import Choice, Dimension
from srft.search.study import Study
from srft.settings import from_flat

__all__ = ["observe", "read_earlier"]

log = logging.getLogger(__name__)


def read_earlier(study: Study, sources: Iterable[str], *, out: Path, uri: str | None = None) -> tuple[Observation, ...]:
    """What trials of earlier studies showed that asked the same question.

    Args:
        study: the new study.
        sources: output directories of studies, or MLflow run ids of studies in the new study's store.
        out: output directory of the new study.
        uri: tracking URI that was asked for.

    Returns:
        One per trial that :func:`observe` accepts.

    Raises:
        ConfigError: a study has no trial that can be learned from.
    """
    known: list[Observation] = []
    for source in sources:
        trials = logged_trials(source, out=out, uri=uri, metrics=[m for m in (study.metric, study.second) if m])
        found, differing = observe(study, trials)
        if not found:
            why = ", ".join(f"{key} ({count})" for key, count in differing.most_common(4)) or "none has finished an epoch"
            raise ConfigError(
                f"--learn-from {source}: none of its {len(trials)} trials can be learned from; settings in which they differ, or that are "
                f"outside the space: {why}; use the earlier study's settings and space"
            )
        log.info("%s: learning from %d of %d trials", source, len(found), len(trials))
        known += found
    return tuple(known)


def observe(study: Study, trials: Iterable[LoggedTrial]) -> tuple[list[Observation], Counter[str]]:
    """Trials whose settings are those of a study's base except for the space's, and inside that.

    How a run is laid out over workers and its seed may differ; a score after other epochs or on other data says nothing.

    Args:
        study: the new study.
        trials: of another one.

    Returns:
        The observations; and how many trials were left out, by the setting that was in the way.
    """
    base = {key: str(value) for key, value in to_flat(study.base).items() if key not in (*LAYOUT, "seed")}
    found, differing = [], Counter[str]()
    for trial in trials:
        curve = trial.history.get(study.metric, ())
        if not curve or all(map(math.isnan, curve)):
            continue
        params = {**{key: str(value) for key, value in BEFORE.items()}, **trial.params}
        point = {key: _value(dimension, key, params.get(key), study.base) for key, dimension in study.space.dimensions.items()}
        others = [key for key, text in base.items() if key not in point and params.get(key, text) != text]
        others += [key for key, value in point.items() if value is None]
        if others:
            differing.update(others)
            continue
        second = trial.history.get(study.second, ()) if study.second else None
        found.append(Observation.of(point, "finished" if trial.end == "finished" else "stopped", curve, second))
    return found, differing


def _value(dimension: Dimension, key: str, text: str | None, base: TrainConfig) -> Any:
    # The value whose logged form this is; None if the dimension has none.
    if text is None:
        return None
    if isinstance(dimension, Choice):
        logged = lambda value: str(to_flat(from_flat({key: value}, base))[key])
        return next((value for value in dimension.values if logged(value) == text), None)
    try:
        number = float(text)
    except ValueError:
        return None
    if not dimension.low <= number <= dimension.high:
        return None
    return int(number) if isinstance(dimension.low, int) and number == int(number) else number
