from __future__ import annotations

import os
import queue
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srft.method.sparsity import Histogram, MergedStatistics, Sketch, merge
from srft.training.sparsity_actor import Answer, RayExchange, SparsityActor, find, start


def sketch(seed: int) -> Sketch:
    rng = np.random.default_rng(seed)
    return Sketch({name: Histogram.of_counts(rng.integers(0, 50, 40), int(rng.integers(0, 500))) for name in ("q", "k")})


@given(st.permutations([(rank, copy) for rank in range(3) for copy in range(2)]))
def test_merge_does_not_depend_on_arrival_and_sending_twice_changes_nothing(arrivals: list[tuple[int, int]]) -> None:
    actor = SparsityActor()
    for rank, _ in arrivals:
        actor.push(7, 10, rank, sketch(rank).to_bytes())
    assert actor.merged(7, 10, 3) == Answer(step=10, sketch=merge([sketch(0), sketch(1), sketch(2)]).to_bytes())


def test_absentees_are_named_and_windows_do_not_mix() -> None:
    actor = SparsityActor()
    actor.push(1, 10, 0, sketch(0).to_bytes())
    actor.push(1, 20, 1, sketch(1).to_bytes())  # another window
    actor.push(2, 10, 2, sketch(2).to_bytes())  # another start of the worker group
    assert actor.merged(1, 10, 3) == Answer(step=10, sketch=None, absent=(1, 2))
    assert actor.merged(9, 10, 2).absent == (0, 1)
    assert actor.status() == {"received": 3, "windows": [(1, 10, [0]), (1, 20, [1]), (2, 10, [2])]}


def test_newest_is_the_last_window_that_all_ranks_are_in() -> None:
    actor = SparsityActor()
    assert actor.newest() is None
    for rank in range(2):
        actor.push(1, 10, rank, sketch(rank).to_bytes())
    actor.push(1, 20, 0, sketch(2).to_bytes())
    assert actor.newest() == MergedStatistics.of(10, sketch(0) + sketch(1)).to_bytes()
    actor.push(1, 20, 1, sketch(3).to_bytes())
    assert actor.newest() == MergedStatistics.of(20, sketch(2) + sketch(3)).to_bytes()


def test_memory_is_bounded() -> None:
    actor = SparsityActor(windows_kept=4)
    for step in range(100):
        actor.push(1, step, 0, sketch(0).to_bytes())
    assert [step for _, step, _ in actor.status()["windows"]] == [96, 97, 98, 99]


class Broadcast:
    """Rank 0's value to everyone, among threads."""

    def __init__(self, world_size: int) -> None:
        self.queues = [queue.Queue[Any]() for _ in range(world_size)]

    def of(self, rank: int) -> Any:
        def broadcast(value: Answer | None) -> Answer | None:
            if rank == 0:
                for q in self.queues:
                    q.put(value)
            return self.queues[rank].get(timeout=30)

        return broadcast


def on_all_ranks(exchanges: list[RayExchange], call: Any) -> list[Any]:
    out: list[Any] = [None] * len(exchanges)

    def one(rank: int) -> None:
        out[rank] = call(exchanges[rank])

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(exchanges))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return out


@pytest.mark.ray
def test_replicas_agree_whatever_happens_to_the_actor(ray_cluster: Any, caplog: pytest.LogCaptureFixture) -> None:
    import ray

    actor = start("exchange-test")
    ray.get(actor.status.remote(), timeout=60)  # Its process may take long to start on a busy machine.
    channel = Broadcast(2)
    exchanges = [
        RayExchange(actor=actor, attempt=1, rank=rank, world_size=2, refresh=10, broadcast=channel.of(rank), patience=5.0)
        for rank in (0, 1)
    ]

    def submit(step: int, ranks: tuple[int, ...] = (0, 1)) -> None:
        for rank in (0, 1):
            target = exchanges[rank]
            if rank in ranks:
                target.submit(step, sketch(rank))
            else:
                target._submitted.add(step)  # as if it had been lost on the way

    def bytes_due(step: int) -> list[bytes | None]:
        found: list[MergedStatistics | None] = on_all_ranks(exchanges, lambda e: e.due(step))
        return [None if statistics is None else statistics.to_bytes() for statistics in found]

    assert bytes_due(10) == [None, None]  # nothing was submitted: nothing is asked
    submit(10)
    assert bytes_due(15) == [None, None]
    expected = MergedStatistics.of(10, sketch(0) + sketch(1)).to_bytes()
    assert bytes_due(20) == [expected, expected]
    assert bytes_due(20) == [None, None]  # due once
    assert ray.get(find("exchange-test").status.remote())["received"] == 2

    exchanges[0].patience = 0.2
    submit(20, ranks=(0,))  # rank 1's statistics never arrive
    started = time.monotonic()
    assert bytes_due(30) == [None, None]
    assert time.monotonic() - started < 3
    assert "rank 1" in caplog.text

    pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    submit(30)
    first = bytes_due(40)
    assert first[0] == first[1]  # agreed, answered or not
    deadline = time.monotonic() + 30
    step = 40
    while time.monotonic() < deadline:  # restarted, empty, by itself
        exchanges[0]._silent = 0
        submit(step)
        answers = bytes_due(step + 10)
        assert answers[0] == answers[1]
        if answers[0] is not None:
            break
        step += 10
        time.sleep(0.5)
    assert answers[0] == MergedStatistics.of(step, sketch(0) + sketch(1)).to_bytes()
    assert exchanges[0].missed == exchanges[1].missed >= 1

    ray.kill(actor)  # for good, but not at once
    gone = time.monotonic() + 30
    while time.monotonic() < gone:
        try:
            ray.get(actor.status.remote(), timeout=5)
        except ray.exceptions.RayError:
            break
        time.sleep(0.1)
    exchanges[0]._silent = 0
    submit(500)
    assert bytes_due(510) == [None, None]
    submit(510)  # the sampled reference shows the loss
    submit(520)
    assert "keeping the previous statistics" in caplog.text
    with pytest.raises(ValueError, match="exchange-test"):
        find("exchange-test")
