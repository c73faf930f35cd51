"""Which trial of a study trains next: one that goes on from a rung, drawn beforehand, proposed, or a population's; and when no more do."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from srft.config import ConfigError
from srft.search import draw
from srft.search.draw import Observation
from srft.search.halving import promotable
from srft.search.population import exchanges, fork
from srft.search.record import forget_end, record_trials, trial_directory
from srft.search.study import Study, Trial
from srft.search.watch import Watch
from srft.training.cluster import gpus

__all__ = ["Queue", "Turn"]

_DRAWS = 50
"""Points that are drawn anew, at most, until one is a valid configuration."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A trial that may train now."""

    trial: Trial
    until: int
    """Epochs after which it pauses, or has ended."""


class Queue:
    """Hands out trials. What it decides is written to the study's directory first, so that a resumed study decides nothing twice."""

    def __init__(self, study: Study, directory: Path, watch: Watch, generation: int) -> None:
        """Start with what is unfinished.

        Args:
            study: the study.
            directory: of the study.
            watch: of its trials.
            generation: of a population, so far.
        """
        self.study, self.directory, self.watch, self.generation = study, directory, watch, generation
        self._out: set[int] = set()
        self._turns: dict[int, int] = {}
        waiting = [i for i in sorted(watch.trials) if i not in watch.over]
        self._waiting = deque(i for i in waiting if not self._between_turns(i))
        self.closed = ""
        """Why no more trials are handed out before the study's end; empty while they are."""

    def __bool__(self) -> bool:
        """Whether anything is left to train.

        Returns:
            False once every trial has ended.
        """
        return len(self.watch.over) < self.study.size

    def next(self) -> Turn | None:
        """The next trial.

        Returns:
            Its turn; None if there is none now: see :attr:`done`.
        """
        self._close()
        if self.closed:
            return None
        if not self._waiting or self.study.halving:
            self._waiting.extendleft(self._promoted()[:1])
        if not self._waiting:
            self._draw()
        if not self._waiting:
            return None
        trial = self.watch.trials[self._waiting.popleft()]
        self._out.add(trial.index)
        self._turns[trial.index] = self._until(trial.index)
        forget_end(trial_directory(self.directory, trial))
        return Turn(trial=trial, until=self._turns[trial.index])

    @property
    def done(self) -> bool:
        """Whether no trial is waiting, training, or still to be drawn."""
        return not self._out and (bool(self.closed) or not (self._waiting or self._more() or self._promoted()))

    def back(self, index: int) -> None:
        """A trial has ended or paused.

        Args:
            index: of the trial.
        """
        self._out.discard(index)

    def pauses(self, index: int) -> bool:
        """Whether a trial that stops now goes on later in this session.

        Args:
            index: of the trial.

        Returns:
            Whether it reached the end of its turn, not its own.
        """
        return self._turns[index] <= self.watch.epochs(index) < self.watch.total_epochs(index)

    def end(self) -> None:
        """Nothing else is to train: trials that paused at a rung stay there, unless the study was closed before its end."""
        watch = self.watch
        for index in sorted(watch.trials):
            if self.study.halving and not self.closed and index not in watch.over | watch.failed and self._between_turns(index):
                watch.end(index, None)

    def _until(self, index: int) -> int:
        total = self.watch.total_epochs(index)
        if self.study.search == "pbt" and not self.watch.trials[index].fixed:
            return min(total, (self.generation + 1) * self.study.perturb_epochs)
        return next((rung for rung in self._rungs(index) if rung > self.watch.epochs(index)), total)

    def _between_turns(self, index: int) -> bool:
        # Paused: at a rung, or ahead of a population that is not complete. At its end it only has to be taken note of.
        epochs = self.watch.epochs(index)
        if self.study.search == "pbt":
            return self._until(index) <= epochs < self.watch.total_epochs(index)
        return epochs in self._rungs(index)

    def _rungs(self, index: int) -> list[int]:
        return [] if self.watch.trials[index].fixed else self.study.rungs(index, self.watch.total_epochs(index))

    def _promoted(self) -> list[int]:
        # Paused trials that may go on; once nothing else can, the best of each bracket, so that one of it is trained to the end.
        if not self.study.halving:
            return []
        study, watch = self.study, self.watch
        found: list[int] = []
        last: list[int] = []
        drawn = [i for i in self._members() if i not in watch.failed]
        for bracket in range(study.brackets):
            own = {i: watch.curve(i, study.metric) for i in drawn if i % study.brackets == bracket}
            if own:
                second = {i: watch.curve(i, study.second) for i in own} if study.second else None
                rungs = max((self._rungs(i) for i in own), key=len)  # Trials may differ in length.
                found += promotable(own, rungs, reduction=study.reduction, second=second)
            if not any(len(curve) == watch.total_epochs(i) for i, curve in own.items()):
                paused = [i for i in own if own[i]]
                last += sorted(paused, key=lambda i: (-len(own[i]), -np.nanmax([-math.inf, *own[i]]), i))[:1]
        free = [i for i in found if i not in self._out and i not in watch.over]
        return free if free or self._out or self._waiting or self._more() else [i for i in last if i not in watch.over]

    def _more(self) -> bool:
        if self.study.search == "tpe":
            return len(self.watch.trials) < self.study.size
        return self.study.search == "pbt" and any(self.watch.epochs(i) < self.watch.total_epochs(i) for i in self._alive())

    def _draw(self) -> None:
        if self.study.search == "tpe" and self._more():
            self._write([*self.watch.trials.values(), trial := self._proposed(len(self.watch.trials))])
            self.watch.adopt(trial, [])
            self._waiting.append(trial.index)
        elif self.study.search == "pbt" and not self._out and self._more():
            self._exchange()
            self._waiting.extend(i for i in self._members() if i not in self.watch.failed)

    def _proposed(self, index: int) -> Trial:
        # Each value of the space is valid, a combination need not be: then another one, away from it.
        seen = [*self.study.known, *self.watch.observations()]
        refused: list[ConfigError] = []
        while len(refused) < _DRAWS:
            seed = int(np.random.default_rng((self.study.seed, index, len(refused))).integers(2**31))
            point = draw.propose(self.study.space, seen, seed=seed, objectives=2 if self.study.second else 1)
            try:
                return self.study.trial(index, point)
            except ConfigError as error:
                refused.append(error)
                seen.append(Observation(point=point, state="stopped"))
        raise ConfigError(f"study {self.study.name}: {_DRAWS} points in a row are no valid configuration; the last: {refused[-1]}")

    def _near(self, old: Trial, donor: Trial, rng: np.random.Generator) -> Trial:
        # Settings near the donor's; its own if none of those are valid.
        origins = (*old.origins, (donor.index, self.watch.epochs(donor.index)))
        for _ in range(_DRAWS):
            point = {**old.point, **draw.perturb(self.study.space, donor.point, rng)}
            with contextlib.suppress(ConfigError):
                return self.study.trial(old.index, point, origins)
        return self.study.trial(old.index, {**old.point, **{key: donor.point[key] for key in self.study.space.dimensions}}, origins)

    def _members(self) -> list[int]:
        return [index for index, trial in self.watch.trials.items() if not trial.fixed]

    def _alive(self) -> list[int]:
        return [index for index in self._members() if index not in self.watch.failed]

    def _exchange(self) -> None:
        # The worst go on from the best, with settings near theirs: the same however often it is repeated.
        study, watch = self.study, self.watch
        rng = np.random.default_rng((study.seed, self.generation))
        measures, alive = [name for name in (study.metric, study.second) if name], self._alive()
        last = {i: [watch.metrics[i][-1].get(name, math.nan) if i in alive else math.nan for name in measures] for i in self._members()}
        trials, changed = dict(watch.trials), {}
        for index, donor in exchanges(last, rng).items():
            new = watch.trials[donor]
            trials[index] = changed[index] = self._near(watch.trials[index], new, rng)
            fork(trial_directory(self.directory, new), trial_directory(self.directory, trials[index]), trials[index].config)
        self.generation += 1
        self._write(list(trials.values()))
        for trial in changed.values():
            watch.adopt(trial, watch.metrics[trial.origins[-1][0]])

    def _write(self, trials: list[Trial]) -> None:
        record_trials(self.study, self.directory, trials, generation=self.generation)

    def _close(self) -> None:
        study, watch = self.study, self.watch
        if study.max_failed and watch.failed_in_a_row >= study.max_failed:
            self.closed = f"the last {watch.failed_in_a_row} trials failed, one after the other: {watch.last_error}"
        elif self.spent():
            self.closed = self.spent()

    def spent(self) -> str:
        """Which budget is used up.

        Returns:
            In words; empty if none is.
        """
        study, watch = self.study, self.watch
        if study.max_hours and watch.hours >= study.max_hours:
            return f"its {study.max_hours:g} hours are used up"
        if study.max_gpu_hours:
            each = study.gpus_per_worker * study.base.workers
            used = watch.trial_hours * each if gpus() >= each else 0.0
            if used >= study.max_gpu_hours:
                return f"its {study.max_gpu_hours:g} GPU-hours are used up"
        return ""
