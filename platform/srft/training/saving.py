"""Writes checkpoints while training goes on, and reads them back into a network and an optimizer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from srft.config import ConfigError, TrainConfig
from srft.method.optimizer import SRFTAdamW
from srft.training import checkpoint
from srft.training.checkpoint import Checkpoint, Progress
from srft.training.state import read_tensors, staged, write_tensors
from srft.training.update import RunningMean
from srft.training.worker import Worker, set_weights

__all__ = ["Checkpointer", "restore", "resumable"]

log = logging.getLogger(__name__)


class Checkpointer:
    """Saves a run. Large ones are copied and written by a thread; a failure then shows at the next save or at :meth:`wait`."""

    def __init__(self, directory: Path, config: TrainConfig, worker: Worker, *, aside_from: int = 2**28) -> None:
        """Save nothing yet.

        Args:
            directory: of the run.
            config: the run.
            worker: which worker this is; all of them call the same methods.
            aside_from: bytes of tensors from which on a thread writes them.
        """
        self.directory, self.config, self.worker, self.aside_from = directory, config, worker, aside_from
        self._copies: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def expect(self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
        """Take the memory that copies of a large checkpoint will need, in a thread: the first save would wait longest for that.

        Args:
            weights: as :meth:`save` will be given them.
            tensors: likewise.
        """
        writes = self.worker.rank == 0 or not self.worker.whole
        if writes and sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) >= self.aside_from:
            self._thread = threading.Thread(target=staged, args=(_together(weights, tensors), self._copies), name="checkpoint memory")
            self._thread.start()

    def save(self, progress: Progress, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Save; when this returns, small checkpoints are complete, and what was given may change.

        Args:
            progress: how far the run is.
            weights: the tracker's, whole.
            tensors: what resuming needs besides; DTensors where workers hold shards.
            values: plain values and small tensors, the same on every worker.
        """
        self.wait()
        writes, leads = self.worker.rank == 0 or not self.worker.whole, self.worker.rank == 0
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if leads:
            checkpoint.begin(self.directory, progress)
        self.worker.gather(None)
        if not writes:
            self.worker.gather(None)
            return
        if size < self.aside_from:
            self._write(progress, weights, tensors, values)
            self._raise()
        else:
            copies = staged(_together(weights, tensors), self._copies)
            parts = ({n.removeprefix(p): t for n, t in copies.items() if n.startswith(p)} for p in ("weights.", "state."))
            self._thread = threading.Thread(target=self._write, args=(progress, *parts, dict(values)), name="checkpoint")
            self._thread.start()
        self.worker.gather(None)  # no worker reports an epoch whose checkpoint is neither complete nor on its way

    def wait(self) -> None:
        """Wait for what is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, progress: Progress, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        try:
            folder = checkpoint.aside_of(self.directory, progress) / checkpoint.TENSORS
            write_tensors(folder, tensors, None if self.worker.whole else self.worker.group)
            if self.worker.rank == 0:
                checkpoint.commit(self.directory, progress, config=self.config, weights=weights, state=values)
        except BaseException as error:
            self._error = _of_the_disk(error, self.directory / progress.name)
            if self.worker.rank == 0:
                checkpoint.discard(self.directory, progress)


def _of_the_disk(error: BaseException, folder: Path) -> BaseException:
    # Writers have errors of their own for a full disk, one of them not even an Exception.
    from safetensors import SafetensorError
    from torch.distributed.checkpoint.api import CheckpointException

    if not isinstance(error, CheckpointException | SafetensorError | RuntimeError):
        return error
    first = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) and error.failures else error
    why = (str(first).strip().splitlines() or [type(first).__name__])[-1]
    found = OSError(f"{folder}: the checkpoint was not written ({why[:200]}); earlier ones are as they were: make room, and resume")
    found.__cause__ = error
    return found


def _together(weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"weights.{n}": t for n, t in weights.items()} | {f"state.{n}": t for n, t in tensors.items()}


def resumable(optimizer: SRFTAdamW, raw: Mapping[str, Tensor], means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that resuming needs besides the exported weights.

    Args:
        optimizer: all of its state.
        raw: the trained weights by name, if they are not what is exported.
        means: running means of them, if they are not what is exported either.

    Returns:
        By name, the very tensors that are trained.
    """
    others = {f"raw.{name}": p.detach() for name, p in raw.items()} | {f"mean.{name}": value for name, value in means.items()}
    return optimizer.named_state() | others


def restore(
    config: TrainConfig,
    directory: Path,
    network: nn.Module,
    optimizer: SRFTAdamW,
    mean: RunningMean | None,
    tensors: Mapping[str, Tensor],
) -> Checkpoint | None:
    """Fill a network, its optimizer and running mean from a run's newest valid checkpoint.

    Args:
        config: the run.
        directory: of the run.
        network: as it is trained, sharded or not.
        optimizer: of its parameters.
        mean: of its weights, if the run keeps one; from the exported weights, unless ``tensors`` has it.
        tensors: of :func:`resumable`, filled in place.

    Returns:
        The checkpoint, None without one.

    Raises:
        ConfigError: the checkpoint is of another configuration.
    """
    newest = checkpoint.latest(directory)
    if newest is None:
        return None
    saved = checkpoint.load(newest)
    if saved.meta.digest != config.digest():
        raise ConfigError(
            f"{newest} is of configuration {saved.meta.digest}, this run is configuration {config.digest()}; choose another directory"
        )
    set_weights(network, saved.weights)
    if mean is not None:
        mean.begin_here()
    read_tensors(saved.tensors, tensors)
    optimizer.resume(saved.state["method"])
    log.info("resuming from %s", newest)
    return saved
