"""Gradient-sparsity statistics of all workers, merged by one shared Ray actor.

Every refresh each worker sends its sketch (a few hundred bytes per operation) to the actor and goes on training. Rank 0 later asks
for the merged window and broadcasts what it got, or that it got nothing, through the process group: a late, lost or restarted
actor delays a refresh and never makes two replicas differ.

The actor itself needs numpy only: sketches travel as the bytes of ``srft.method.sparsity.Sketch``.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srft.files import write_json
from srft.method.packed import Packed
from srft.method.sparsity import MergedStatistics, Sketch

__all__ = ["NAMESPACE", "Answer", "RayExchange", "SparsityActor", "actor_name", "announce", "ending", "find", "of_running", "start"]

log = logging.getLogger(__name__)

NAMESPACE = "srft"
ANNOUNCED = "actor.json"
"""File of a run's directory that says where its actor is while workers train."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The merged statistics of one step window, or who is missing from it."""

    step: int
    """Step the window ended at."""
    sketch: bytes | None
    """Sum over all ranks, None while ranks are absent."""
    absent: tuple[int, ...] = ()
    """Ranks that have not been heard of in this window."""


@dataclass
class _Window:
    """What one attempt's workers sent for one step: the sum so far, and whose."""

    ranks: set[int]
    total: Packed


@dataclass
class SparsityActor:
    """Adds up sketches by (attempt, step) as they come. Started empty again it only lacks what it has not yet been sent.

    Counts are whole numbers: the same sketches give the same counts in whatever order they arrived.
    """

    windows_kept: int = 64
    """Windows in memory; those that have been there longest are dropped."""
    _windows: OrderedDict[tuple[int, int], _Window] = field(default_factory=OrderedDict, repr=False)
    _received: int = 0
    _ending: bool = False

    def end(self) -> None:
        """Tell the workers to save and end; they ask every few steps."""
        self._ending = True

    def ending(self) -> bool:
        """Whether workers are to end.

        Returns:
            True once :meth:`end` was called.
        """
        return self._ending

    def push(self, attempt: int, step: int, rank: int, sketch: bytes) -> None:
        """Take one worker's statistics; sending the same again changes nothing.

        Args:
            attempt: which start of the worker group sends; a restarted group never mixes with the one before.
            step: optimizer step at which the window ended.
            rank: of the sending worker.
            sketch: ``Sketch.to_bytes()``.
        """
        self._received += 1
        window = self._windows.get((attempt, step))
        if window is None:
            self._windows[attempt, step] = _Window({rank}, Packed.from_bytes(sketch))
        elif rank not in window.ranks:
            window.total += Packed.from_bytes(sketch)
            window.ranks.add(rank)
        while len(self._windows) > self.windows_kept:
            self._windows.popitem(last=False)

    def merged(self, attempt: int, step: int, world_size: int) -> Answer:
        """What all ranks sent for one window.

        Args:
            attempt: which start of the worker group asks.
            step: optimizer step at which the window ended.
            world_size: number of ranks expected.

        Returns:
            The sum, or the absentees.
        """
        window = self._windows.get((attempt, step))
        absent = tuple(rank for rank in range(world_size) if window is None or rank not in window.ranks)
        if absent or window is None:
            return Answer(step=step, sketch=None, absent=absent)
        return Answer(step=step, sketch=window.total.to_bytes())

    def newest(self) -> bytes | None:
        """Statistics of the newest window that all ranks which ever sent one in its attempt are in.

        Returns:
            ``MergedStatistics.to_bytes()``, None before the first.
        """
        for (attempt, step), window in reversed(self._windows.items()):
            if window.ranks == set().union(*(w.ranks for (other, _), w in self._windows.items() if other == attempt)):
                return MergedStatistics.of(step, Sketch.unpacked(window.total)).to_bytes()
        return None

    def status(self) -> dict[str, Any]:
        """What the actor holds, for a look from outside.

        Returns:
            ``received`` payloads since start, and ``windows`` as (attempt, step, ranks).
        """
        return {
            "received": self._received,
            "windows": [(attempt, step, sorted(window.ranks)) for (attempt, step), window in self._windows.items()],
        }


def actor_name(run_name: str) -> str:
    """Name of a run's actor inside :data:`NAMESPACE`.

    Args:
        run_name: of the run.

    Returns:
        The name.
    """
    return f"sparsity-{run_name}"


def start(run_name: str) -> Any:
    """Start a run's actor. It occupies no CPU, restarts (empty) when its process dies and ends with the calling process.

    Args:
        run_name: of the run; unique in the cluster while the run lasts.

    Returns:
        Ray actor handle.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"name": actor_name(run_name), "namespace": NAMESPACE, "num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
    return ray.remote(SparsityActor).options(**options).remote()


def find(run_name: str) -> Any:
    """The running actor of a run.

    Args:
        run_name: of the run.

    Returns:
        Ray actor handle.

    Raises:
        ValueError: no such actor runs in this cluster.
    """
    import ray

    try:
        return ray.get_actor(actor_name(run_name), namespace=NAMESPACE)
    except ValueError:
        raise ValueError(f"no sparsity actor of a run named {run_name!r} in this Ray cluster; is the run still training?") from None


def announce(directory: Path, run_name: str) -> Path:
    """Leave word in a run's directory where its actor is, for :func:`of_running`.

    Args:
        directory: of the run.
        run_name: that the actor was started for.

    Returns:
        The file, to be removed when the run ends.
    """
    import ray

    write_json(directory / ANNOUNCED, {"run": run_name, "address": ray.get_runtime_context().gcs_address})
    return directory / ANNOUNCED


def of_running(directory: Path, patience: float = 10.0) -> MergedStatistics | None:
    """The newest statistics of a run that several workers train now, asked from outside.

    Args:
        directory: of the run.
        patience: seconds to wait for the actor.

    Returns:
        The statistics; None if the run trains no more, or has none yet.
    """
    try:
        where = json.loads((directory / ANNOUNCED).read_text())
    except FileNotFoundError:
        return None
    if (Path.home() / ".ray" / "auth_token").exists():  # Ray made it for the run's cluster, and asks for it if told to.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    ours = not ray.is_initialized()
    try:
        if ours:
            ray.init(address=where["address"], namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        data = ray.get(find(where["run"]).newest.remote(), timeout=patience)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, ray.exceptions.RayError) as error:
        log.warning("%s: the run's sparsity actor does not answer (%s); looking at its checkpoints", directory, type(error).__name__)
        return None
    finally:
        if ours:
            ray.shutdown()
    return MergedStatistics.from_bytes(data) if data else None


def ending(actor: Any, patience: float = 1.0) -> bool:
    """Ask a run's actor whether its workers are to end.

    Args:
        actor: Ray handle.
        patience: seconds to wait for an answer.

    Returns:
        True if they are; False also if the actor does not answer.
    """
    import ray

    try:
        return bool(ray.get(actor.ending.remote(), timeout=patience))
    except (ray.exceptions.RayError, TimeoutError):
        return False


@dataclass(kw_only=True)
class RayExchange:
    """One worker's end of the exchange (a ``srft.method.sparsity.StatisticsExchange``).

    What is submitted at step s is due at step s + ``refresh`` on every worker, as in a single process. ``due`` is collective at
    those steps: all ranks call it.
    """

    actor: Any
    """Ray handle of the actor."""
    attempt: int
    """Which start of the worker group this is, the same on all ranks."""
    rank: int
    world_size: int
    refresh: int
    """Steps between two exchanges."""
    broadcast: Callable[[Answer | None], Answer | None]
    """Gives rank 0's argument to every rank (collective)."""
    patience: float = 1.0
    """Seconds rank 0 waits for one answer at most."""
    missed: int = 0
    """Refreshes without an answer, so far."""
    _submitted: set[int] = field(default_factory=set, repr=False)
    _sample: Any = field(default=None, repr=False)
    _silent: int = 0

    def submit(self, step: int, sketch: Sketch) -> None:
        """Send this worker's statistics without waiting.

        Args:
            step: optimizer step at which the window ended.
            sketch: of this worker's share of the elements.
        """
        self._submitted.add(step)
        self._check_sample()
        reference = self.actor.push.remote(self.attempt, step, self.rank, sketch.to_bytes())
        if self._sample is None:  # One reference in flight is enough to notice an actor that is gone.
            self._sample = reference

    def due(self, step: int) -> MergedStatistics | None:
        """What is to be applied at a step, the same on every rank.

        Args:
            step: the step about to be taken.

        Returns:
            Merged statistics; None to keep the previous ones.
        """
        window = step - self.refresh
        if window not in self._submitted:
            return None
        self._submitted.discard(window)
        answer = self.broadcast(self._ask(window) if self.rank == 0 else None)
        if answer is None or answer.sketch is None:
            self.missed += 1
            return None
        return MergedStatistics.of(window, Sketch.from_bytes(answer.sketch))

    def _ask(self, window: int) -> Answer | None:
        import ray

        # An actor that stays silent costs its full patience a few times only.
        patience = self.patience if self._silent < 3 else 0.02
        deadline = time.monotonic() + patience
        answer: Answer | None = None
        try:
            while True:
                remaining = max(0.01, deadline - time.monotonic())
                answer = ray.get(self.actor.merged.remote(self.attempt, window, self.world_size), timeout=remaining)
                if answer.sketch is not None:
                    self._silent = 0
                    return answer
                if time.monotonic() >= deadline:
                    break
                time.sleep(0.005)
        except (ray.exceptions.RayError, TimeoutError) as error:
            log.warning("sparsity actor: no answer for step %d (%s); keeping the previous statistics", window, type(error).__name__)
        if answer is not None:
            log.warning(
                "sparsity actor: step %d lacks rank %s; keeping the previous statistics", window, ", ".join(map(str, answer.absent))
            )
        self._silent += 1
        return None

    def _check_sample(self) -> None:
        import ray

        if self._sample is None:
            return
        ready, _ = ray.wait([self._sample], timeout=0)
        if not ready:
            return
        try:
            ray.get(ready[0])
        except ray.exceptions.RayError as error:
            log.warning("sparsity actor: statistics of rank %d were lost (%s)", self.rank, type(error).__name__)
        self._sample = None
