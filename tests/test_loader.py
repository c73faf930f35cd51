import multiprocessing
import time

import numpy as np
import pytest
import torch

from srft.data.loader import PairLoader
from srft.data.pairs import PairSampler, SampleError
from srft.data.sequence import Sequence
from srft.model.architecture import PRESETS
from tests.test_pairs import noise


def sampler(**changes):
    settings = {"arch": PRESETS["tiny"], "seed": 3, "max_gap": 6, "center_jitter": 3.0, "scale_jitter": 0.25}
    return PairSampler(**settings, **({"sequences": (noise(), noise(seed=1))} | changes))


def loader(source, workers=0, **changes):
    return PairLoader(source, **({"epochs": 2, "steps": 3, "batch_size": 4, "workers": workers} | changes))


def same(batch, expected):
    for part, other in zip(batch, expected, strict=True):
        torch.testing.assert_close(part, other, rtol=0, atol=0)


class Counted:
    """Black frames that count in shared memory how often one was read."""

    def __init__(self, made):
        self.made = made

    def __len__(self):
        return 24

    def __getitem__(self, index):
        self.made.add_(1)
        return np.zeros((60, 60, 3), np.uint8)


class Broken(Counted):
    def __getitem__(self, index):
        raise OSError(f"frame {index} is on a disk that is gone")


def test_one_process_two_processes_and_two_ranks_give_the_same_batches():
    source = sampler()
    expected = [source.batch(epoch, step, 4) for epoch in range(2) for step in range(3)]
    plain, ahead = loader(source), loader(source, workers=2)
    ranks = [loader(source, workers=1, rank=rank, world_size=2) for rank in range(2)]
    for i, whole in enumerate(expected):
        same(plain.batch(*divmod(i, 3)), whole)
        same(ahead.batch(*divmod(i, 3)), whole)
        shares = [each.batch(*divmod(i, 3)) for each in ranks]
        same([torch.stack(parts, 1).flatten(0, 1) for parts in zip(*shares, strict=True)], whole)


def test_a_run_goes_on_at_any_step_without_making_the_steps_before():
    made = torch.zeros(1, dtype=torch.int64).share_memory_()
    counted = Sequence(name="counted", frames=Counted(made), boxes=np.tile([20.0, 20, 20, 20], (24, 1)), absent=np.zeros(24, bool))
    source = sampler(sequences=(counted,))
    resumed = loader(source, workers=1, steps=50, ahead=1)
    same(resumed.batch(1, 47), source.batch(1, 47, 4))
    for step in (48, 49):
        same(resumed.batch(1, step), source.batch(1, step, 4))
    assert made.item() == 2 * 4 * 3 * 2  # three batches of four pairs, here and there; the run ends, nothing is made after
    with pytest.raises(IndexError, match="epoch 2, step 0 of a run of 2 epochs of 50 steps"):
        resumed.batch(2, 0)


def test_steps_asked_for_out_of_order_are_right():
    source = sampler()
    with_workers = loader(source, workers=1)
    for epoch, step in ((0, 1), (0, 0), (1, 2), (1, 0)):
        same(with_workers.batch(epoch, step), source.batch(epoch, step, 4))
    same(next(loader(source).epoch(1, 1)), source.batch(1, 1, 4))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_made_ends_the_run_with_its_name(workers):
    bad = Sequence(name="bad", frames=Broken(None), boxes=np.tile([20.0, 20, 20, 20], (24, 1)), absent=np.zeros(24, bool))
    with pytest.raises(SampleError) as caught:
        loader(sampler(sequences=(bad,)), workers=workers).batch(0, 0)
    message = str(caught.value)
    assert message.startswith("epoch 0, sample 0, sequence bad, frames (")
    assert message.endswith("is on a disk that is gone")
    assert "\n" not in message


def test_a_negative_number_of_processes_is_refused():
    with pytest.raises(ValueError, match="workers is -1"):
        loader(sampler(), workers=-1)


def test_processes_end_with_their_loader_at_once():
    before = set(multiprocessing.active_children())
    made = loader(sampler(), workers=2)
    made.batch(0, 0)
    own = set(multiprocessing.active_children()) - before
    assert len(own) == 2
    started = time.perf_counter()
    del made
    while own & set(multiprocessing.active_children()):
        assert time.perf_counter() - started < 4  # not by the garbage collector, which waits five seconds for each
        time.sleep(0.05)
