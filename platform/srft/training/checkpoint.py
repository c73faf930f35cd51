"""Checkpoint directories: whole or absent, checked by checksum, found again by the newest valid one.

A run's directory holds ``epoch_0003/`` with ``weights.safetensors`` (the model), ``state.pt`` (optimizer, generators, method state;
tensors and plain values only), ``meta.json`` (configuration, progress, metrics of this and all earlier epochs, environment) and
``manifest.json`` (size and SHA-256 of the others). Everything is written into a hidden sibling and renamed once it is on disk, so
a directory named ``epoch_*`` is complete unless the disk itself lost something, which the manifest shows.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srft.config import ConfigError, TrainConfig, from_flat, to_flat
from srft.files import environment, sha256, sync, write_json

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Checkpoint", "CheckpointError", "Meta", "best", "claim", "config_of", "history", "latest", "load", "read_meta", "save"]

log = logging.getLogger(__name__)

WEIGHTS, STATE, META, MANIFEST, RUN = "weights.safetensors", "state.pt", "meta.json", "manifest.json", "run.json"
METRIC = "val/success_auc"


class CheckpointError(ValueError):
    """A checkpoint that is incomplete, altered or of another run; the message names the path, what is wrong and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What a checkpoint says about itself."""

    epoch: int
    """Epoch the checkpoint was written after, from 0."""
    step: int
    """Optimizer steps done."""
    metrics: dict[str, float]
    """Metrics of this epoch."""
    history: tuple[dict[str, Any], ...]
    """``{"epoch", "step", "metrics"}`` of every epoch so far, this one included, oldest first."""
    config: dict[str, Any]
    """The run's flat configuration."""
    digest: str
    """Digest of that configuration."""
    environment: dict[str, str]
    """Versions, and the git commit where there is one."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint in memory."""

    path: Path
    meta: Meta
    weights: dict[str, Tensor]
    """Model state by parameter and buffer name."""
    state: dict[str, Any]
    """Optimizer, generators and method state as they were given to :func:`save`."""


def claim(directory: Path, config: TrainConfig, *, resume: bool) -> None:
    """Make a directory the home of one run, and clear what a dead process left half-written there.

    Args:
        directory: of the run; made if missing.
        config: the run.
        resume: accept a directory in which this very run was started before.

    Raises:
        ConfigError: the directory holds another configuration, or holds this one and ``resume`` is False.
    """
    directory.mkdir(parents=True, exist_ok=True)
    marker = directory / RUN
    if marker.exists():
        try:
            found = str(json.loads(marker.read_text())["digest"])
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ConfigError(f"{marker}: not a run description; choose another directory or delete {directory}") from None
        if found != config.digest():
            raise ConfigError(
                f"{directory} holds a run of configuration {found}, but this run is configuration {config.digest()}; "
                f"choose another directory, delete this one, or use the settings in {marker}"
            )
        if not resume:
            raise ConfigError(f"{directory} already holds this run ({found}); pass --resume to go on, or choose another directory")
    _remove_orphans(directory)
    if not marker.exists():
        # The name and the number of workers may change when a run goes on; the digest leaves both out.
        write_json(marker, {"digest": config.digest(), "config": to_flat(config)})


def config_of(directory: Path) -> TrainConfig:
    """The configuration a run directory was claimed for.

    Args:
        directory: of the run.

    Returns:
        The validated configuration.

    Raises:
        ConfigError: the directory holds no run, or its description cannot be read.
    """
    marker = directory / RUN
    try:
        values = json.loads(marker.read_text())["config"]
    except FileNotFoundError:
        raise ConfigError(f"{directory} holds no run ({RUN} is missing); give the directory of a run") from None
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ConfigError(f"{marker}: not a run description; give the directory of a run") from None
    return from_flat(values, source=str(marker))


def save(
    directory: Path,
    *,
    config: TrainConfig,
    epoch: int,
    step: int,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    metrics: Mapping[str, float],
    metric: str = METRIC,
) -> Path:
    """Write one checkpoint, then delete those that are neither the newest nor the best.

    Args:
        directory: of the run.
        config: the run.
        epoch: finished epoch, from 0; an existing checkpoint of this epoch is replaced.
        step: optimizer steps done.
        weights: model state by name.
        state: tensors and plain Python values (numbers, strings, lists, dicts), nothing else.
        metrics: of this epoch.
        metric: the metric whose highest value marks the best checkpoint.

    Returns:
        Path of the new checkpoint. An OSError (disk full, not writable) leaves earlier checkpoints untouched.
    """
    import torch
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    earlier = [entry for entry in _recorded(directory) if entry["epoch"] < epoch]
    this = {"epoch": epoch, "step": step, "metrics": {key: float(value) for key, value in metrics.items()}}
    target = directory / f"epoch_{epoch:04d}"
    aside = directory / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        save_file({key: value.detach().contiguous() for key, value in weights.items()}, aside / WEIGHTS)
        (aside / WEIGHTS).chmod(0o644)  # safetensors keeps its files to their owner
        torch.save(dict(state), aside / STATE)
        write_json(
            aside / META,
            {**this, "history": [*earlier, this], "config": to_flat(config), "digest": config.digest(), "environment": environment()},
        )
        manifest = {name: {"bytes": (aside / name).stat().st_size, "sha256": sha256(aside / name)} for name in (WEIGHTS, STATE, META)}
        write_json(aside / MANIFEST, manifest)
        for name in (*manifest, MANIFEST):
            sync(aside / name)
        sync(aside)
        if target.exists():
            shutil.rmtree(target)
        os.replace(aside, target)
        sync(directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _retain(directory, newest=target, metric=metric)
    return target


def load(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU; a missing or altered file is a :class:`CheckpointError`.

    Args:
        path: an ``epoch_*`` directory.

    Returns:
        The checkpoint.
    """
    import torch
    from safetensors.torch import load_file

    _verify(path)
    return Checkpoint(
        path=path,
        meta=read_meta(path),
        weights=load_file(path / WEIGHTS),
        state=torch.load(path / STATE, map_location="cpu", weights_only=True),
    )


def read_meta(path: Path) -> Meta:
    """What a checkpoint says about itself, without its tensors.

    Args:
        path: an ``epoch_*`` directory.

    Returns:
        Progress, metrics, configuration and environment.

    Raises:
        CheckpointError: the description is missing or unreadable.
    """
    try:
        values: dict[str, Any] = json.loads((path / META).read_text())
        return Meta(**(values | {"history": tuple(values["history"])}))
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / META} is missing or unreadable ({error}); delete {path} and use an earlier checkpoint") from None


def latest(directory: Path) -> Path | None:
    """The newest checkpoint whose files match its manifest; damaged ones are reported by a warning and passed over.

    Args:
        directory: of the run.

    Returns:
        Path of the checkpoint, None if there is none.
    """
    for path in reversed(_candidates(directory)):
        try:
            _verify(path)
        except CheckpointError as error:
            log.warning("%s; using the checkpoint before it", error)
            continue
        return path
    return None


def best(directory: Path, metric: str = METRIC) -> Path | None:
    """The valid checkpoint with the highest metric, the earlier one of equals.

    Args:
        directory: of the run.
        metric: what to compare; not-a-number and missing values rank last.

    Returns:
        Path of the checkpoint, None if there is none.
    """
    for path in sorted(_candidates(directory), key=lambda p: -_score(p, metric)):
        try:
            _verify(path)
        except CheckpointError as error:
            log.warning("%s; using the next best checkpoint", error)
            continue
        return path
    return None


def history(directory: Path) -> list[dict[str, Any]]:
    """Metrics of every epoch up to the newest valid checkpoint, which is where a resumed run goes on from.

    Args:
        directory: of the run.

    Returns:
        ``{"epoch", "step", "metrics"}`` per epoch, oldest first; empty without a checkpoint.
    """
    newest = latest(directory)
    return list(read_meta(newest).history) if newest else []


def _candidates(directory: Path) -> list[Path]:
    return sorted((p for p in directory.glob("epoch_*") if p.is_dir()), key=lambda p: (len(p.name), p.name))


def _recorded(directory: Path) -> list[dict[str, Any]]:
    for path in reversed(_candidates(directory)):
        try:
            return list(read_meta(path).history)
        except CheckpointError:
            continue
    return []


def _score(path: Path, metric: str) -> float:
    try:
        value = float(read_meta(path).metrics.get(metric, math.nan))
    except CheckpointError:
        value = math.nan
    return -math.inf if math.isnan(value) else value


def _verify(path: Path) -> None:
    remedy = "the folder is no whole checkpoint; use another epoch_* folder of the run"
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path / MANIFEST} is missing or unreadable ({error.__class__.__name__}); {remedy}") from None
    for name in (WEIGHTS, STATE, META):
        file, expected = path / name, manifest.get(name)
        if expected is None or not file.is_file():
            raise CheckpointError(f"{file} is missing; {remedy}")
        if file.stat().st_size != expected["bytes"]:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes, its manifest says {expected['bytes']}; {remedy}")
        if sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{file} differs from its manifest (SHA-256); {remedy}")


def _retain(directory: Path, *, newest: Path, metric: str) -> None:
    candidates = _candidates(directory)
    keep = {newest, max(candidates, key=lambda p: _score(p, metric))}
    for path in candidates:
        if path not in keep:
            shutil.rmtree(path, ignore_errors=True)


def _remove_orphans(directory: Path) -> None:
    for path in directory.glob(".epoch_*.tmp"):
        log.info("removing %s, left by a process that died while writing it", path)
        shutil.rmtree(path, ignore_errors=True)
