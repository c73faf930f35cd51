"""Follows the trials of a study in the process that started it: what they have come to, the log, progress, budgets."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from srft.config import to_flat
from srft.files import write_json
from srft.run_logging import SETTINGS, SINCE
from srft.search.draw import Observation
from srft.search.halving import expected_epochs
from srft.search.record import TrialResult, TrialState, record_end, trial_directory
from srft.search.study import Study, Trial

__all__ = ["Progress", "TrialLog", "Watch"]

_SPENT = "spent.json"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One thing that happened in a study, and where the study stands."""

    trial: Trial
    state: TrialState
    epoch: int
    """Epochs this trial has finished."""
    metrics: dict[str, float]
    ended: int
    """Trials that have ended."""
    total: int
    elapsed: float
    """Seconds since the study was started or resumed."""
    eta: float
    """Seconds until the end if no more trial is stopped early; not-a-number before the second epoch."""


class TrialLog(Protocol):
    """Where a study writes what happens; ``srft.run_logging.StudyLog`` is one."""

    def start_trial(self, index: int, config: Any) -> None:
        """A trial starts, or starts again."""
        ...

    def log_epoch(self, index: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """A trial finished an epoch (from 0); one that was logged before is ignored."""
        ...

    def set_tags(self, tags: Mapping[str, str], *, index: int) -> None:
        """Something to know about a trial."""
        ...

    def end_trial(self, index: int, state: Literal["FINISHED", "FAILED", "KILLED"], tags: Mapping[str, str]) -> None:
        """A trial ended."""
        ...


class Watch:
    """What the trials of one study have come to, now."""

    def __init__(
        self,
        study: Study,
        directory: Path,
        trial_log: TrialLog | None,
        on_progress: Callable[[Progress], None] | None,
        done: Sequence[TrialResult],
    ) -> None:
        """Take up what earlier sessions left.

        Args:
            study: the study.
            directory: of the study.
            trial_log: where starts, epochs and ends are written.
            on_progress: called for every epoch and end of a trial.
            done: results so far.
        """
        self.study, self.directory, self.log, self.on_progress = study, directory, trial_log, on_progress
        self.trials = {result.trial.index: result.trial for result in done}
        self.metrics: dict[int, list[dict[str, float]]] = {r.trial.index: [e["metrics"] for e in r.history] for r in done}
        self.over = {result.trial.index for result in done if result.state in ("finished", "stopped")}
        self.failed: set[int] = set()
        self.cut: set[int] = set()
        """Trials that a budget ended, to be resumed."""
        self.failed_in_a_row = 0
        self.last_error = ""
        self.began = time.monotonic()
        self._running: dict[int, float] = {}
        self._paused: set[int] = set()
        self._seconds: dict[int, float] = {}
        self._epochs_here = 0
        self._first_epoch = math.nan
        self._spent = json.loads((directory / _SPENT).read_text()) if (directory / _SPENT).exists() else {"hours": 0.0, "trial_hours": 0.0}
        self._ended_hours = 0.0
        if trial_log:
            for result in done:  # The process may have died before the log took note of what was written down.
                if result.trial.origins:
                    self._tag(result.trial)
                if result.state in ("finished", "stopped"):
                    for record in result.history:
                        trial_log.log_epoch(result.trial.index, record["epoch"], record["metrics"])
                    trial_log.end_trial(result.trial.index, "FINISHED", {"srft.end": result.state})

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles what it is given for a restore that studies do without, and a log is a live connection.
        return type(None), ()

    def epochs(self, index: int) -> int:
        """Epochs that a trial has finished.

        Args:
            index: of the trial.

        Returns:
            Their number.
        """
        return len(self.metrics.get(index, ()))

    def total_epochs(self, index: int) -> int:
        """Epochs of a whole trial.

        Args:
            index: of the trial.

        Returns:
            Their number.
        """
        return self.trials[index].config.optim.epochs

    def adopt(self, trial: Trial, metrics: list[dict[str, float]]) -> None:
        """A trial was drawn, or goes on as another one left off.

        Args:
            trial: the trial.
            metrics: of the epochs it starts with.
        """
        self.trials[trial.index], self.metrics[trial.index] = trial, list(metrics)
        self.failed.discard(trial.index)
        if trial.origins:
            self._tag(trial)

    def _tag(self, trial: Trial) -> None:
        # What a trial's run is to say once it has gone on from another trial's checkpoint.
        if not self.log:
            return
        donor, epochs = trial.origins[-1]
        settings = to_flat(trial.config)
        tags = {
            f"srft.origin.{len(trial.origins)}": f"trial {donor} after epoch {epochs - 1}, with {json.dumps(trial.point)}",
            SETTINGS: json.dumps({key: str(settings[key]) for key in trial.point}),
            SINCE: str(trial.since),
            "srft.digest": trial.config.digest(),
        }
        self.log.set_tags(tags, index=trial.index)

    def start(self, index: int) -> None:
        """A trial trains.

        Args:
            index: of the trial.
        """
        self._running.setdefault(index, time.monotonic())
        if self.log and index not in self._paused:
            self.log.start_trial(index, self.trials[index].config)
        self._paused.discard(index)

    def epoch(self, index: int, epoch: int, metrics: dict[str, float], *, replayed: bool) -> None:
        """A trial finished an epoch.

        Args:
            index: of the trial.
            epoch: from 0.
            metrics: by name.
            replayed: it did so in an earlier session.
        """
        if self.study.search == "pbt" and epoch >= self.trials[index].since:  # The others are another trial's, with its settings.
            numbers = {key: value for key, value in self.trials[index].point.items() if isinstance(value, int | float)}
            metrics = {**metrics, **{f"settings/{key}": float(value) for key, value in numbers.items()}}
        self.metrics[index] = [*self.metrics.get(index, [])[:epoch], metrics]
        if self.log:
            self.log.log_epoch(index, epoch, metrics)
        if not replayed:
            self._keep_spent()
            self._epochs_here += 1
            if self._epochs_here == 1:
                self._first_epoch = time.monotonic()
            self._tell(index, "running")

    def end(self, index: int, error: str | None, *, paused: bool = False) -> None:
        """A trial trains no longer.

        Args:
            index: of the trial.
            error: last line of what made it fail.
            paused: it goes on in this session.
        """
        state: TrialState
        seconds = time.monotonic() - self._running.pop(index, time.monotonic())
        self._ended_hours += seconds / 3600
        self._seconds[index] = seconds = self._seconds.get(index, 0.0) + seconds
        self._keep_spent()
        self.failed_in_a_row = 0 if error is None else self.failed_in_a_row + 1
        if error is None and (paused or index in self.cut):
            self._paused.add(index)
            return
        if error is not None:
            state = "failed"
            self.failed.add(index)
            self.last_error = error
        else:
            state = "finished" if self.epochs(index) >= self.total_epochs(index) else "stopped"
            self.over.add(index)
        record_end(trial_directory(self.directory, self.trials[index]), state, seconds=seconds, error=error or "")
        if self.log:
            tags = {"srft.end": state, **({"srft.error": error} if error else {})}
            self.log.end_trial(index, "FAILED" if state == "failed" else "FINISHED", tags)
        self._tell(index, state)

    def _keep_spent(self) -> None:
        write_json(self.directory / _SPENT, {"hours": self.hours, "trial_hours": self.trial_hours})

    @property
    def hours(self) -> float:
        """Of all sessions."""
        return self._spent["hours"] + (time.monotonic() - self.began) / 3600

    @property
    def trial_hours(self) -> float:
        """Of all trials together, in all sessions."""
        running = sum(time.monotonic() - since for since in self._running.values()) / 3600
        return self._spent["trial_hours"] + self._ended_hours + running

    def observations(self) -> list[Observation]:
        """What the trials showed so far.

        Returns:
            One per trial that differs from the study's base in what is searched only: not of a baseline.
        """
        found = []
        searched = {*self.study.space.dimensions, "name", "seed"}
        base = to_flat(self.study.base)
        for index, trial in self.trials.items():
            if any(value != base[key] for key, value in to_flat(trial.config).items() if key not in searched):
                continue
            curve = self.curve(index, self.study.metric)
            whole = index in self.over and len(curve) >= self.total_epochs(index)
            resting = index in self.over or (index not in self._running and bool(curve))
            state = "failed" if index in self.failed else "finished" if whole else "stopped" if resting else "running"
            found.append(Observation.of(trial.point, state, curve, self.curve(index, self.study.second) if self.study.second else None))
        return found

    def curve(self, index: int, metric: str) -> list[float]:
        """A measure after each epoch of a trial.

        Args:
            index: of the trial.
            metric: its name.

        Returns:
            Values, not-a-number where there is none.
        """
        return [metrics.get(metric, math.nan) for metrics in self.metrics.get(index, ())]

    def _tell(self, index: int, state: TrialState) -> None:
        if not self.on_progress:
            return
        ended, here, left = self.over | self.failed, self._epochs_here, self._epochs_left()
        self.on_progress(
            Progress(
                trial=self.trials[index],
                state=state,
                epoch=self.epochs(index),
                metrics=self.metrics[index][-1] if self.metrics.get(index) else {},
                ended=len(ended),
                total=self.study.size,
                elapsed=time.monotonic() - self.began,
                eta=(time.monotonic() - self._first_epoch) / (here - 1) * left if here > 1 else math.nan,
            )
        )

    def _epochs_left(self) -> int:
        # Of trials that pause at rungs as many as halving comes to; of the others all that they lack.
        study, usual, ended = self.study, self.study.base.optim.epochs, self.over | self.failed
        paused = range(len(study.fixed), study.size) if study.halving else range(0)
        whole = [i for i in range(study.size) if i not in paused and i not in ended]
        left = sum(max(0, self.total_epochs(i) - self.epochs(i)) if i in self.trials else usual for i in whole)
        for bracket in range(study.brackets if study.halving else 0):
            members = [i for i in paused if i % study.brackets == bracket]
            expected = expected_epochs(len(members), usual, at=study.rungs(bracket, usual), reduction=study.reduction)
            left += max(0, expected - sum(self.epochs(i) for i in members))
        return left
