"""What a run came from and ran on, as MLflow shows it: data sets, and the load of the machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from srft.config import DataConfig
from srft.files import git_commit

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

__all__ = ["Load", "dataset_inputs"]


def dataset_inputs(data: DataConfig) -> list[DatasetInput]:
    """The data sets of a run; the same settings give the same digest.

    Args:
        data: the run's data settings.

    Returns:
        Training, validation and source data, in MLflow's contexts ``training``, ``validation`` and ``source``.
    """
    target = data.benchmark or f"synthetic {data.modality}"
    source = data.source_benchmark or "synthetic source"
    counts = {"training": "all" if data.benchmark else data.train_sequences, "validation": data.val_sequences}
    found = [_input(f"{target} {context}", data, data.root, context, count) for context, count in counts.items()]
    return [*found, _input(source, data, data.source_root, "source", data.source_sequences)]


def _input(name: str, data: DataConfig, root: str, context: str, count: int | str) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    about: dict[str, Any] = {"modality": "rgb" if context == "source" else data.modality, "sequences": count}
    if root:
        kind, place = (root.split("://")[0] if "://" in root else "local"), {"uri": root}
    else:
        about |= {"length": data.length, "world_seed": data.world_seed}
        kind, place = "code", {"tags": {"mlflow.source.name": "srft.data.synthetic", "mlflow.source.git.commit": git_commit() or ""}}
    digest = hashlib.sha256(json.dumps([name, root, about]).encode()).hexdigest()[:16]
    dataset = Dataset(name=name, digest=digest, source_type=kind, source=json.dumps(place), profile=json.dumps(about))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


class Load:
    """Measures processor, memory, disk, network and, where there are some, GPUs of this machine at intervals, in a thread."""

    def __init__(self, put: Callable[[Mapping[str, float]], None], seconds: float) -> None:
        """Start.

        Args:
            put: called with means over each interval by MLflow's names, ``system/...``.
            seconds: interval.
        """
        self._put, self._seconds, self._stop = put, seconds, threading.Event()
        self._thread = threading.Thread(target=self._run, name="machine-load", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with contextlib.suppress(ImportError, RuntimeError):  # No library for it, or no GPU.
            monitors.append(GPUMonitor())
        while not self._stop.wait(self._seconds):
            values: dict[str, float] = {}
            for monitor in monitors:
                monitor.collect_metrics()
                values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
            self._put(values)
