"""Checkpoint directories: whole or absent, checked by checksum, found again by the newest valid one.

A run's directory holds ``epoch_0003/``, written after epoch 3, and between epochs ``epoch_0003_step_000130/``, written inside epoch 3
after 130 steps in all. Each holds ``weights.safetensors`` (the tracker), ``state/`` (tensors of the optimizer, readable by any number of
workers, see ``state``), ``state.pt`` (generators, method state; plain values and tensors only), ``meta.json`` (configuration, progress,
metrics of all finished epochs, environment) and ``manifest.json`` (size and SHA-256 of the others). Everything is written into a hidden
sibling and renamed once it is on disk, so a directory named ``epoch_*`` is complete unless the disk itself lost something, which the
manifest shows.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srft.config import TrainConfig, to_flat
from srft.files import environment, sha256, sync, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from srft.method.sparsity import MergedStatistics

__all__ = [
    "Checkpoint", "CheckpointError", "Meta", "Progress", "aside_of", "begin", "best", "commit", "discard",
    "history", "latest", "load", "read_meta", "recorded",
]  # fmt: skip

log = logging.getLogger(__name__)

WEIGHTS, STATE, TENSORS, META, MANIFEST = "weights.safetensors", "state.pt", "state", "meta.json", "manifest.json"
METRIC = "val/success_auc"
_NAME = re.compile(r"epoch_\d+(_step_\d+)?")


class CheckpointError(ValueError):
    """A checkpoint that is incomplete, altered or of another run; the message names the path, what is wrong and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What a checkpoint says about itself."""

    epoch: int
    """Epoch the checkpoint was written after, or inside; from 0."""
    step: int
    """Optimizer steps done."""
    metrics: dict[str, float] | None
    """Metrics of this epoch; None inside one."""
    history: tuple[dict[str, Any], ...]
    """``{"epoch", "step", "metrics"}`` of every finished epoch, oldest first."""
    config: dict[str, Any]
    """The run's flat configuration."""
    digest: str
    """Digest of that configuration."""
    environment: dict[str, str]
    """Versions, and the git commit where there is one."""
    inherited: bool = False
    """Another run wrote it, with settings of its own, and this one goes on from it: never its best."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint in memory."""

    path: Path
    meta: Meta
    weights: dict[str, Tensor]
    """Model state by parameter and buffer name."""
    state: dict[str, Any]
    """Generators and method state as they were given to :func:`commit`."""

    @property
    def tensors(self) -> Path:
        """Folder of the optimizer's tensors."""
        return self.path / TENSORS

    def statistics(self) -> MergedStatistics | None:
        """Gradient statistics that the run had last.

        Returns:
            Those; None before the first.
        """
        from srft.method.sparsity import MergedStatistics

        data = self.state.get("method", {}).get("statistics")
        return MergedStatistics.from_bytes(data) if data else None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    epoch: int
    """Epoch that is finished, or, inside one, running; from 0."""
    step: int
    """Optimizer steps done."""
    metrics: Mapping[str, float] | None
    """Of the finished epoch; None inside one."""

    @property
    def name(self) -> str:
        """Name of the checkpoint."""
        return f"epoch_{self.epoch:04d}" if self.metrics is not None else f"epoch_{self.epoch:04d}_step_{self.step:06d}"


def begin(directory: Path, progress: Progress) -> Path:
    """Make the hidden folder that a checkpoint is written into, the same for all workers; by one of them, before the others write.

    Args:
        directory: of the run.
        progress: of the checkpoint.

    Returns:
        The folder, empty.
    """
    target = aside_of(directory, progress)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    return target


def aside_of(directory: Path, progress: Progress) -> Path:
    """Where a checkpoint is written to before it is complete.

    Args:
        directory: of the run.
        progress: of the checkpoint.

    Returns:
        A hidden folder beside it.
    """
    return directory / f".{progress.name}.tmp"


def commit(
    directory: Path,
    progress: Progress,
    *,
    config: TrainConfig,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    metric: str = METRIC,
) -> Path:
    """Complete a checkpoint whose ``state/`` is written, by one worker; then delete all but the newest two and the best.

    Args:
        directory: of the run.
        progress: as :func:`begin` was given it; a checkpoint of the same name is replaced.
        config: the run.
        weights: the tracker's, by name.
        state: tensors and plain Python values (numbers, strings, lists, dicts), nothing else.
        metric: the metric whose highest value marks the best checkpoint.

    Returns:
        Path of the new checkpoint. An OSError (disk full, not writable) leaves earlier checkpoints untouched, and a folder that
        :func:`discard` or the next start removes.
    """
    import torch
    from safetensors.torch import save_file

    epochs = [entry for entry in recorded(directory) if entry["epoch"] < progress.epoch]
    this: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step}
    if progress.metrics is not None:
        this["metrics"] = {key: float(value) for key, value in progress.metrics.items()}
        epochs.append(this)
    target, temporary = directory / progress.name, aside_of(directory, progress)
    save_file({key: value.detach().cpu().contiguous() for key, value in weights.items()}, temporary / WEIGHTS)
    (temporary / WEIGHTS).chmod(0o644)  # safetensors keeps its files to their owner
    torch.save(dict(state), temporary / STATE)
    about = {"history": epochs, "config": to_flat(config), "digest": config.digest(), "environment": environment()}
    write_json(temporary / META, {"metrics": None, **this, **about})
    files = sorted(path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file())
    write_json(temporary / MANIFEST, {f: {"bytes": (temporary / f).stat().st_size, "sha256": sha256(temporary / f)} for f in files})
    for path in (*(temporary / f for f in files), *(path for path in temporary.rglob("*") if path.is_dir()), temporary):
        sync(path)
    if target.exists():
        shutil.rmtree(target)
    os.replace(temporary, target)
    sync(directory)
    _retain(directory, newest=target, metric=metric)
    return target


def discard(directory: Path, progress: Progress) -> None:
    """Remove what a failed save left.

    Args:
        directory: of the run.
        progress: of the checkpoint.
    """
    shutil.rmtree(aside_of(directory, progress), ignore_errors=True)


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
    except (OSError, ValueError, KeyError, TypeError) as error:
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


def recorded(directory: Path) -> list[dict[str, Any]]:
    """What :func:`history` gives, by the newest readable description, without reading whole checkpoints to check them.

    Args:
        directory: of the run.

    Returns:
        ``{"epoch", "step", "metrics"}`` per epoch, oldest first; empty without a checkpoint.
    """
    for path in reversed(_candidates(directory)):
        try:
            return list(read_meta(path).history)
        except CheckpointError:
            continue
    return []


def _candidates(directory: Path) -> list[Path]:
    # By progress: a checkpoint inside an epoch comes before the one at its end.
    def order(path: Path) -> tuple[int, float]:
        _, epoch, *step = path.name.split("_")
        return int(epoch), float(step[1]) if step else math.inf

    return sorted((p for p in directory.glob("epoch_*") if p.is_dir() and _NAME.fullmatch(p.name)), key=order)


def _score(path: Path, metric: str) -> float:
    try:
        meta = read_meta(path)
        value = math.nan if meta.inherited else float((meta.metrics or {}).get(metric, math.nan))
    except CheckpointError:
        value = math.nan
    return -math.inf if math.isnan(value) else value


def _verify(path: Path, *, contents: bool = True) -> None:
    remedy = "the folder is no whole checkpoint; use another epoch_* folder of the run"
    try:
        found = json.loads((path / MANIFEST).read_text())
        manifest = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / MANIFEST} is missing or unreadable ({error.__class__.__name__}); {remedy}") from None
    for name in (WEIGHTS, STATE, META):
        if name not in manifest:
            raise CheckpointError(f"{path / MANIFEST} lists no {name}; {remedy}")
    for name, (size, digest) in manifest.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; {remedy}")
        if file.stat().st_size != size:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes, its manifest says {size}; {remedy}")
        if contents and sha256(file) != digest:
            raise CheckpointError(f"{file} differs from its manifest (SHA-256); {remedy}")


def _is_whole(path: Path) -> bool:
    try:
        _verify(path, contents=False)
    except CheckpointError:
        return False
    return True


def _retain(directory: Path, *, newest: Path, metric: str) -> None:
    # The one before the newest too: should the disk lose the newest, a run loses one interval and no more. Reading all that is kept to
    # check it would take longer than writing it, but one that is cut short must not push out a whole one.
    candidates = _candidates(directory)
    whole = [path for path in candidates if path == newest or _is_whole(path)]
    before = [path for path in whole if path != newest][-1:]
    keep = {newest, *before, max(whole, key=lambda p: _score(p, metric))}
    for path in candidates:
        if path not in keep:
            shutil.rmtree(path, ignore_errors=True)
