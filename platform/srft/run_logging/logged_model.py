"""Checkpoints as MLflow logged models: anyone loads one by its address and tracks with it; the best is the champion of the registry."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from srft.files import environment, sha256

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from srft.evaluation.online import OnlineTracker

__all__ = ["CHAMPION", "log_model", "register_version"]

CHAMPION = "champion"
_SCORE, _WEIGHTS = "srft.score", "srft.weights"
_NEEDED = ("torch", "torchvision", "timm", "numpy", "mlflow")


def _describe(folder: Path, *, model_id: str, run_id: str) -> None:
    # What makes a checkpoint in folder/data an MLflow model.
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import add_to_model
    from mlflow.types import Schema, TensorSpec

    frames, box = TensorSpec(np.dtype("uint8"), (-1, -1, -1, -1), "frames"), TensorSpec(np.dtype("float64"), (4,), "box")
    boxes = TensorSpec(np.dtype("float64"), (-1, 4))
    model = Model(run_id=run_id, model_id=model_id, signature=ModelSignature(Schema([frames, box]), Schema([boxes])))
    add_to_model(model, loader_module=__name__, data="data")
    model.save(str(folder / "MLmodel"))
    versions = environment()
    needed = ["srft", *(f"{name}=={versions[name]}" for name in _NEEDED if name in versions)]
    (folder / "requirements.txt").write_text("\n".join(needed) + "\n")


def log_model(client: MlflowClient, experiment_id: str, run_id: str, checkpoint: Path, metrics: Mapping[str, float], step: int) -> str:
    """Store a checkpoint as a logged model of a run, unless it is there already.

    ``mlflow.pyfunc.load_model(address).predict({"frames": frames, "box": box})`` takes uint8 frames ``[T, H, W, 3 or 6]`` (RGB, then the
    auxiliary image) and the target's ltwh box in the first, in pixels, and returns the boxes ``[T, 4]``.

    Args:
        client: of the store.
        experiment_id: of the run.
        run_id: what it came from.
        checkpoint: an ``epoch_*`` directory.
        metrics: of the checkpoint.
        step: epoch of the checkpoint.

    Returns:
        Id of the model.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

    weights = sha256(checkpoint / "weights.safetensors")
    known = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'")
    for model in known:
        if model.tags.get(_WEIGHTS) == weights and model.status == LoggedModelStatus.READY:
            return model.model_id
    model = client.create_logged_model(experiment_id, name=checkpoint.name, source_run_id=run_id, tags={_WEIGHTS: weights})
    with tempfile.TemporaryDirectory() as temporary:
        _describe(Path(temporary), model_id=model.model_id, run_id=run_id)
        client.log_model_artifacts(model.model_id, temporary)
    client.log_model_artifacts(model.model_id, str(checkpoint), "data")
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    # Beside the run's own entry of this epoch, which has another time: MLflow takes the two for one otherwise.
    time = model.creation_timestamp
    client.log_batch(run_id, metrics=[Metric(f"model/{k}", v, time, step, model_id=model.model_id) for k, v in metrics.items()])
    return model.model_id


def register_version(client: MlflowClient, name: str, *, model_id: str, run_id: str, score: float, digest: str) -> str:
    """Register a logged model as a new version; the alias ``champion`` moves to it if its score is higher than the standing one's.

    Args:
        client: of the store.
        name: of the registered model; made if there is none.
        model_id: of the logged model; registered once only.
        run_id: of its run.
        score: on validation sequences, comparable between versions.
        digest: of the run's settings.

    Returns:
        The version.
    """
    from mlflow.exceptions import MlflowException

    with contextlib.suppress(MlflowException):  # It exists already.
        client.create_registered_model(name)
    known = [v for v in client.search_model_versions(f"name = '{name}'") if v.tags.get("srft.model") == model_id]
    if known:
        version = str(known[0].version)
    else:
        source = client.get_logged_model(model_id).artifact_location
        tags = {_SCORE: repr(score), "srft.digest": digest, "srft.model": model_id}
        version = str(client.create_model_version(name, source=source, run_id=run_id, tags=tags, model_id=model_id).version)
    champion = client.get_registered_model(name).aliases.get(CHAMPION)
    standing = float(client.get_model_version(name, champion).tags.get(_SCORE, "-inf")) if champion else float("-inf")
    if score > standing:
        client.set_registered_model_alias(name, CHAMPION, version)
    return version


class _Model:
    """What MLflow calls: one sequence at a time."""

    def __init__(self, tracker: OnlineTracker) -> None:
        self.tracker = tracker

    def predict(self, model_input: Mapping[str, Any], params: Mapping[str, Any] | None = None) -> np.ndarray:
        """Track.

        Args:
            model_input: frames and box, see :func:`log_model`.
            params: none are known.

        Returns:
            Boxes ``[T, 4]`` ltwh, the first as given.
        """
        frames, box = np.asarray(model_input["frames"]), np.asarray(model_input["box"], np.float64)
        self.tracker.initialize(frames[0], box)
        return np.stack([box, *(self.tracker.track(frame).box for frame in frames[1:])])


def _load_pyfunc(path: str) -> _Model:
    # MLflow calls this by its name.
    from srft.evaluation.online import OnlineTracker
    from srft.training.step import tuned_tracker

    return _Model(OnlineTracker(tuned_tracker(Path(path))))
