"""The settings of a logged run, read back: what a retraining starts from."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srft.config import ConfigError, TrainConfig, to_flat
from srft.run_logging.store import (
    DIRECTORY,
    PARENT,
    children,
    client_of,
    first_line,
    linked,
    own_history,
    settings_of,
    store_errors,
    store_uri,
)
from srft.settings import recorded

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["Origin", "config_of", "find_origin"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A logged run."""

    run_id: str
    name: str
    config: TrainConfig
    store: str
    """URI of the store it is in."""
    directory: Path | None
    """Output directory of its study, if it is on this machine; ``cache`` in it has the rendered sequences and the prior."""


def find_origin(
    *, study: str = "", trial: int | None = None, run: str = "", model: str = "", out: Path = Path("outputs"), uri: str | None = None
) -> Origin:
    """The run that a study chose, that has an id, or that a registered model came from; exactly one is given.

    Args:
        study: output directory or MLflow run id of a study: the trial that it chose, or the best on validation if it is not over.
        trial: number of another trial of the study.
        run: MLflow run id of a trial, or of a retraining.
        model: ``models:/name@alias`` or ``models:/name/version``.
        out: where the store is looked for, see :func:`srft.run_logging.store_uri`.
        uri: tracking URI; the study's own if it is left out and a directory is given.

    Returns:
        The run.

    Raises:
        ConfigError: none or several are given, there is no such study, trial, run or model, or the store does not answer.
    """
    if sum(map(bool, (study, run, model))) != 1:
        raise ConfigError("give one of --study, --run and --model")
    if trial is not None and not study:
        raise ConfigError("--trial is a number within a study: give --study, too, or --run alone")
    about = linked(study) if study else {}
    where = uri or about.get("store") or store_uri(out)
    try:
        client = client_of(where, make=False)
        if study:
            found = _chosen(client, about.get("run_id", study), study, trial)
        else:
            found = client.get_run(run or _run_of_model(client, model))
        parent = client.get_run(found.data.tags[PARENT]) if PARENT in found.data.tags else found
    except store_errors() as error:
        other = "give the store that has it, such as --tracking-uri sqlite:////…/mlflow.db of the study's directory"
        remedy = "check both" if uri or about else other
        raise ConfigError(f"{study or run or model} in MLflow store {where}: {first_line(error)}; {remedy}") from None
    if found.data.tags.get("srft.role") == "study":
        raise ConfigError(f"run {found.info.run_id} is a study's; give it as --study, or the run of one of its trials")
    place = Path(parent.data.tags.get(DIRECTORY, str(study if about else "")) or "-")
    return Origin(
        run_id=found.info.run_id,
        name=found.info.run_name or found.info.run_id,
        config=config_of(settings_of(found), source=f"run {found.info.run_id}"),
        store=where,
        directory=place.resolve() if place.is_dir() else None,
    )


def config_of(params: Mapping[str, str], *, source: str) -> TrainConfig:
    """Settings from the text that MLflow keeps of them.

    Args:
        params: of a run; those that are no settings are left out.
        source: named in errors.

    Returns:
        The configuration; a setting that did not exist when the run was logged says what the run did without it.

    Raises:
        ConfigError: the run has no settings, or a value is out of range.
    """
    known = to_flat(TrainConfig())
    values = {key: text if isinstance(known[key], str) else ast.literal_eval(text) for key, text in params.items() if key in known}
    if "optim.lr" not in values:
        raise ConfigError(
            f"{source} has no settings (optim.lr is missing among its {len(params)} params); give a trial's run, not a study's"
        )
    return recorded(values, source=source)


def _chosen(client: MlflowClient, run_id: str, study: str, trial: int | None) -> Any:
    runs = {int(run.data.tags["srft.trial_id"]): run for run in children(client, client.get_run(run_id).info.experiment_id, run_id)}
    if trial is not None:
        if trial not in runs:
            raise ConfigError(f"--trial is {trial}; {study} has logged trials {sorted(runs)}")
        return runs[trial]
    chosen = [run for run in runs.values() if run.data.tags.get("srft.chosen") == "SRFT"]
    if chosen:
        return chosen[0]

    def best(run: Any) -> float:
        values = own_history(client, run, "val/success_auc").values()
        return max((value for value in values if not math.isnan(value)), default=-math.inf)

    scores = {index: best(run) for index, run in sorted(runs.items())}
    index = max(scores, key=lambda i: scores[i], default=None)
    if index is None or scores[index] == -math.inf:
        raise ConfigError(f"{study}: none of {len(runs)} logged trials has finished an epoch; resume the sweep")
    return runs[index]


def _run_of_model(client: MlflowClient, model: str) -> str:
    name, alias, version = model.removeprefix("models:/"), "", ""
    if "@" in name:
        name, alias = name.rsplit("@", 1)
    elif "/" in name:
        name, version = name.rsplit("/", 1)
    if not model.startswith("models:/") or not (alias or version):
        raise ConfigError(f"--model is {model!r}; expected models:/srft-rgbe@champion or models:/srft-rgbe/3")
    found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
    if not found.run_id:
        raise ConfigError(f"{model} came from no run, so its settings are not known")
    return found.run_id
