"""Writes the runs of a study, in a thread behind a queue."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from srft.config import ConfigError, TrainConfig, to_flat
from srft.files import write_json
from srft.run_logging.inputs import Load, dataset_inputs
from srft.run_logging.logged_model import log_model, register_version
from srft.run_logging.outbox import Outbox
from srft.run_logging.store import (
    ATTEMPTS,
    LINK,
    PARENT,
    TRIAL,
    children,
    client_of,
    experiment_of,
    first_line,
    source_tags,
    store_errors,
    store_uri,
    study_run,
)
from srft.signals import interruptible

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

RunState = Literal["FINISHED", "FAILED", "KILLED"]
_UNSENT = "unsent.jsonl"
_LOAD_SECONDS = 10.0
_METRICS = 1000  # A request holds no more.


@contextlib.contextmanager
def open_study(
    out: Path, name: str, trials: Mapping[int, TrainConfig], *, digest: str, uri: str | None = None, params: Mapping[str, Any] | None = None
) -> Iterator[StudyLog]:
    """The log of one study, for as long as it runs.

    A study that was logged from this output directory to this store before is taken up again. SIGTERM is a KeyboardInterrupt like Ctrl-C,
    also between and after trials. On the way out the study and every trial still running become KILLED after either, FAILED after another
    exception; without one the study is FINISHED.

    Args:
        out: output directory of the study.
        name: of the study; the MLflow experiment has the same.
        trials: configuration of each trial by index; its name is the run's.
        digest: of the study.
        uri: any MLflow tracking URI; see :func:`store_uri`.
        params: of the study itself.

    Yields:
        The log.

    Raises:
        ConfigError: the store does not answer or cannot be opened.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    where = store_uri(out, uri)
    try:
        client = client_of(where)
        experiment_id = experiment_of(client, name, out, where)
        run_id = study_run(client, experiment_id, out, name, digest=digest, where=where, params=params or {})
        study_log = StudyLog(client, experiment_id, run_id, trials, out=out, digest=digest)
    except store_errors() as error:
        raise ConfigError(
            f"MLflow store {where}: {first_line(error)}; check the URI (--tracking-uri, MLFLOW_TRACKING_URI) and that its server runs"
        ) from None
    state: RunState = "FAILED"
    with interruptible():
        try:
            yield study_log
            state = "FINISHED"
        finally:
            if isinstance(sys.exception(), KeyboardInterrupt | SystemExit):
                state = "KILLED"
            study_log.close(state)


class StudyLog:
    """Writes one study and its trials; made by :func:`open_study`. No method raises when the store is away."""

    def __init__(
        self, client: MlflowClient, experiment_id: str, run_id: str, trials: Mapping[int, TrainConfig], *, out: Path, digest: str
    ) -> None:
        """Take up what the store already knows of the study, and start the writing thread.

        Args:
            client: of the store.
            experiment_id: of the study's experiment.
            run_id: of the study's run.
            trials: configuration of each trial by index.
            out: output directory.
            digest: of the study.
        """
        self.client, self.experiment_id, self.run_id, self.trials, self.digest = client, experiment_id, run_id, dict(trials), digest
        self._out = out
        self._runs: dict[int, str] = {}
        self._newest: dict[int, int] = {}
        self._attempts: dict[int, int] = {}
        self._models: dict[int, str] = {}
        self._open: set[int] = set()
        for run in children(client, experiment_id, run_id):
            index = int(run.data.tags[TRIAL])
            self._runs[index] = run.info.run_id
            self._newest[index] = int(run.data.metrics.get("epoch", -1))
            self._attempts[index] = int(run.data.tags.get(ATTEMPTS, 0))
            if run.info.status == "RUNNING":
                self._open.add(index)
        self._outbox = Outbox(out / _UNSENT, self._apply, together=("epoch", "metrics"))
        self._open -= {entry["trial"] for entry in self._outbox if entry["do"] == "end"}
        self._outbox.start()
        self._started = client.get_run(run_id).info.start_time / 1000
        self._load = Load(self._log_load, _LOAD_SECONDS)

    def start_trial(self, index: int, config: TrainConfig | None = None) -> None:
        """A trial starts, or starts again.

        Args:
            index: of the trial.
            config: of a trial that was not known when the log was opened.
        """
        if config is not None:
            self.trials.setdefault(index, config)
        self._attempts[index] = self._attempts.get(index, 0) + 1
        self._open.add(index)
        self._outbox.put({"do": "start", "trial": index, "attempt": self._attempts[index]})

    def log_epoch(self, index: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """A trial finished an epoch; one that was logged before is ignored, so a resumed trial leaves no duplicates.

        Args:
            index: of the trial.
            epoch: from 0; the step of its metrics.
            metrics: by name.
        """
        self._outbox.put({"do": "epoch", "trial": index, "epoch": epoch, "metrics": dict(metrics), "time": int(time.time() * 1000)})

    def end_trial(self, index: int, state: RunState, tags: Mapping[str, str] | None = None) -> None:
        """A trial ended.

        Args:
            index: of the trial.
            state: how.
            tags: set on its run.
        """
        self._open.discard(index)
        self._outbox.put({"do": "end", "trial": index, "state": state, "tags": dict(tags or {})})

    def log_metrics(self, metrics: Mapping[str, float], *, index: int | None = None) -> None:
        """Figures without an epoch, such as the test scores at the end.

        Args:
            metrics: by name.
            index: of the trial; None for the study.
        """
        self._outbox.put({"do": "metrics", "trial": index, "metrics": dict(metrics), "time": int(time.time() * 1000)})

    def set_tags(self, tags: Mapping[str, str], *, index: int | None = None) -> None:
        """Tags on a run.

        Args:
            tags: by name.
            index: of the trial; None for the study.
        """
        self._outbox.put({"do": "tags", "trial": index, "tags": dict(tags)})

    def log_artifact(self, path: Path, *, index: int | None = None, folder: str = "") -> None:
        """Store a file, or all files of a directory.

        Args:
            path: must stay where it is until the log is closed.
            index: of the trial; None for the study.
            folder: inside the run's artifacts.
        """
        self._outbox.put({"do": "artifact", "trial": index, "path": str(path.resolve()), "folder": folder})

    def log_checkpoint(self, path: Path, *, index: int) -> None:
        """Store a trial's checkpoint as a logged model, once.

        Args:
            path: an ``epoch_*`` directory; must stay where it is until the log is closed.
            index: of the trial.
        """
        self._outbox.put({"do": "model", "trial": index, "path": str(path.resolve())})

    def register(self, index: int, model: str, *, score: float, timeout: float = 60.0) -> str | None:
        """Register a trial's newest logged model as a new version; the alias ``champion`` moves to it if its score is higher.

        Args:
            index: of the trial, of which :meth:`log_checkpoint` was told a checkpoint.
            model: registered model, such as ``srft-rgbe``.
            score: on validation sequences, comparable between versions.
            timeout: seconds to wait at most for what is still to be written.

        Returns:
            The version; None, with a warning, if the store is away or has no model of the trial.
        """
        if not self.flush(timeout):
            log.warning("model %s was not registered: the MLflow store is away", model)
            return None
        if index not in self._models:
            log.warning("model %s was not registered: no checkpoint of trial %d is in the MLflow store", model, index)
            return None
        try:
            return register_version(
                self.client,
                model,
                model_id=self._models[index],
                run_id=self._run(index),
                score=score,
                digest=self.client.get_run(self._run(index)).data.tags["srft.digest"],
            )
        except store_errors() as error:
            log.warning("model %s was not registered: %s", model, first_line(error))
            return None

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything is written.

        Args:
            timeout: seconds to wait at most.

        Returns:
            Whether everything is.
        """
        return self._outbox.flush(timeout)

    def close(self, state: RunState) -> None:
        """End the study's run, and those of trials that did not end; what cannot be sent in time is kept for the next start.

        Args:
            state: how the study ended.
        """
        self._load.close()
        for index in sorted(self._open):
            self.end_trial(index, "KILLED" if state != "FAILED" else "FAILED", {})
        self._outbox.put({"do": "end", "trial": None, "state": state, "tags": {}})
        self._outbox.close()

    def _log_load(self, values: Mapping[str, float]) -> None:
        if not self._outbox.away:  # Not worth keeping.
            now = time.time()
            step = int(now - self._started)
            self._outbox.put({"do": "metrics", "trial": None, "metrics": dict(values), "time": int(now * 1000), "step": step})

    def _apply(self, entries: list[dict[str, Any]]) -> None:
        # Figures, or one entry of another kind.
        from mlflow.entities import RunTag

        from srft.training.checkpoint import read_meta

        entry = entries[0]
        if entry["do"] in ("epoch", "metrics"):
            return self._send_figures(entries)
        index = entry["trial"]
        run_id = self.run_id if index is None else self._run(index)
        tags = [RunTag(key, str(value)) for key, value in entry.get("tags", {}).items()]
        match entry["do"]:
            case "start":
                self.client.update_run(run_id, status="RUNNING")
                self.client.set_tag(run_id, ATTEMPTS, str(entry["attempt"]))
            case "tags":
                self.client.log_batch(run_id, tags=tags)
            case "artifact":
                path = Path(entry["path"])
                store = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
                store(run_id, str(path), entry["folder"] or None)
            case "model":
                meta = read_meta(Path(entry["path"]))
                self._models[index] = log_model(
                    self.client, self.experiment_id, run_id, Path(entry["path"]), meta.metrics or {}, meta.epoch
                )
            case "end":
                self.client.log_batch(run_id, tags=tags)
                self.client.set_terminated(run_id, entry["state"])

    def _send_figures(self, entries: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        for index, mine in itertools.groupby(sorted(entries, key=_trial_of), key=_trial_of):
            newest, metrics = self._newest.get(index, -1), []
            for entry in mine:
                values, step = entry["metrics"], entry.get("step", 0)
                if entry["do"] == "epoch":
                    if entry["epoch"] <= newest:
                        continue
                    newest = step = entry["epoch"]
                    values = {**values, "epoch": float(step)}
                metrics += [Metric(key, value, entry["time"], step) for key, value in values.items()]
            run_id = self.run_id if index < 0 else self._run(index)
            for start in range(0, len(metrics), _METRICS):
                self.client.log_batch(run_id, metrics=metrics[start : start + _METRICS])
            self._newest[index] = newest

    def _run(self, index: int) -> str:
        if index not in self._runs:
            # A request whose answer was lost may have made the run: look before making another.
            found = [run for run in children(self.client, self.experiment_id, self.run_id) if run.data.tags[TRIAL] == str(index)]
            self._runs[index] = found[0].info.run_id if found else self._make_run(index)
            link = self._out / LINK  # So that they are found without asking the store.
            write_json(link, json.loads(link.read_text()) | {"runs": self._runs})
        return self._runs[index]

    def _make_run(self, index: int) -> str:
        from mlflow.entities import Param

        config = self.trials[index]
        tags = {PARENT: self.run_id, TRIAL: str(index), "srft.digest": config.digest(), **source_tags()}
        run_id = self.client.create_run(self.experiment_id, tags=tags, run_name=config.name).info.run_id
        self.client.log_batch(run_id, params=[Param(key, str(value)) for key, value in to_flat(config).items()])
        self.client.log_inputs(run_id, datasets=dataset_inputs(config.data))
        return run_id


def _trial_of(entry: dict[str, Any]) -> int:
    return -1 if entry["trial"] is None else entry["trial"]
