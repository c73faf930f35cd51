"""The prior of a run, estimated by one worker or by several."""

import pytest
import torch

from srft.config import DataConfig, SRFTConfig, TrainConfig
from srft.training import prior as prior_module
from srft.training.prior import source_prior
from srft.training.worker import Worker
from tests.test_workers import workers


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior_module, "SOURCE_SEQUENCES", 3)
        yield tmp_path_factory.mktemp("rendered")


@pytest.mark.parametrize("estimator", ["exact", "streaming", "kronecker"])
def test_workers_estimate_the_prior_together(estimator, rendered):
    srft = SRFTConfig(rank=2, fisher_samples=6, estimator=estimator, diagonal=True)
    config = TrainConfig(data=DataConfig(length=8, max_gap=6), srft=srft)
    alone = source_prior(config, rendered, rank=6)
    (kept,) = rendered.glob(f"prior-*-{estimator}-*.safetensors")
    kept.unlink()

    def work(_, rank, gather):
        return source_prior(config, rendered, rank=6, worker=Worker(rank=rank, world_size=2, gather=gather))

    both = workers([None, None], [0, 1], work)
    for prior in both:
        assert not isinstance(prior, Exception), prior
        assert (prior.samples, prior.rank, prior.base_hash) == (6, 6, alone.base_hash)
        assert prior.scale == pytest.approx(alone.scale, rel=1e-3)
        for name, group in alone.groups.items():
            found = prior.groups[name]
            assert found.trace == pytest.approx(group.trace, rel=1e-4), name
            torch.testing.assert_close(found.eigenvalues, group.eigenvalues, rtol=1e-2, atol=1e-3 * float(group.eigenvalues[0]), msg=name)
    assert kept.exists()
    one, two = (prior.groups["backbone.blocks.0.mlp.fc1.weight"] for prior in both)
    torch.testing.assert_close(one.eigenvalues, two.eigenvalues, rtol=0, atol=0)
