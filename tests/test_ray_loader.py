"""Batches made by Ray Data tasks are those made here."""

from dataclasses import replace

import pytest

from srft.config import ConfigError
from srft.training.ray_loader import RayPairLoader
from tests.conftest import RayCluster
from tests.test_loader import Broken, loader, same, sampler
from tests.test_pairs import noise


def stream(source, **changes):
    return RayPairLoader(source, **({"epochs": 2, "steps": 3, "batch_size": 4} | changes))


@pytest.mark.ray
def test_any_node_makes_the_same_batches_from_any_step_on(ray_cluster: RayCluster) -> None:
    source = sampler()
    made = stream(source)
    for epoch, step in ((0, 1), (0, 2), (1, 0)):  # resumed inside the first epoch, on into the second
        same(made.batch(epoch, step), source.batch(epoch, step, 4))
    made.close()
    bad = replace(noise(), name="bad", frames=Broken(None))
    with pytest.raises(Exception, match=r"sequence bad, frames .* is on a disk that is gone"):
        stream(sampler(sequences=(bad,)), epochs=1, steps=1).batch(0, 0)


def test_it_needs_a_cluster() -> None:
    import ray

    if not ray.is_initialized():
        with pytest.raises(ConfigError, match=r"in no Ray cluster; set data\.loader=local"):
            stream(sampler()).batch(0, 0)
    assert loader(sampler()).batch(0, 0).boxes.shape == (4, 4)
