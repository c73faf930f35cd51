import copy
import itertools
import math
import threading
from dataclasses import replace

import pytest
import torch

from srft.method import kronecker
from srft.method.fisher import undisturbed
from tests.reference.fisher import TokenNet, token_samples
from tests.test_kronecker import estimate, kept_part


def workers(models, shares, work):
    """Results or errors of workers in threads of their own, which exchange copies as processes do."""
    slots, barrier, results = [None] * len(shares), threading.Barrier(len(shares), timeout=60), [None] * len(shares)

    def run(rank):
        def gather(value):
            slots[rank] = copy.deepcopy(value)
            barrier.wait()
            values = copy.deepcopy(slots)
            barrier.wait()
            return values

        try:
            results[rank] = work(models[rank], shares[rank], gather)
        except Exception as error:
            results[rank] = error
            if isinstance(error, threading.BrokenBarrierError):
                barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("sizes", [(6, 6), (1, 11), (12, 0), (0, 5, 7)])
def test_any_split_over_workers_is_one_worker_with_all_samples(sizes):
    # 12 samples: within the sketch of what is no matrix, so that nothing is dropped.
    data = token_samples(12)
    alone = estimate(TokenNet(), data, diagonal=True, rest_rank=4, oversampling=4)
    edges = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    shares = [data[a:b] for a, b in itertools.pairwise(edges)]

    def work(model, share, gather):
        return estimate(model, share, diagonal=True, rest_rank=4, oversampling=4, gather=gather)

    results = workers([TokenNet() for _ in shares], shares, work)
    for prior in results:
        assert replace(prior, groups={}, scale=0.0).__dict__ == replace(alone, groups={}, scale=0.0).__dict__
        assert prior.scale == pytest.approx(alone.scale, rel=1e-5)
        assert list(prior.groups) == list(alone.groups)
        for name, p in alone.groups.items():
            q, tolerance = prior.groups[name], 1e-5 * max(p.trace, 1e-6)
            assert q.trace == pytest.approx(p.trace, rel=1e-6, abs=1e-9)
            torch.testing.assert_close(q.diagonal, p.diagonal, rtol=1e-5, atol=tolerance)
            torch.testing.assert_close(q.eigenvalues, p.eigenvalues, rtol=1e-4, atol=tolerance)
            torch.testing.assert_close(kept_part(q), kept_part(p), rtol=1e-3, atol=10 * tolerance)
            assert q.error_bound().spectral == pytest.approx(p.error_bound().spectral, rel=1e-3, abs=10 * tolerance)
    for other in results[1:]:  # Replicas train with the same prior, bit by bit.
        for name, p in results[0].groups.items():
            assert all(torch.equal(a, b) for a, b in zip(p.parts, other.groups[name].parts, strict=True))
            assert torch.equal(p.eigenvalues, other.groups[name].eigenvalues)


def test_what_fails_on_one_worker_fails_on_all():
    data, models = token_samples(4), [TokenNet(), TokenNet()]
    bad = (data[0][0] * math.nan, data[0][1])

    def work(model, share, gather):
        return estimate(model, share, gather=gather)

    first, second = workers(models, [data[:2], [data[2], bad]], work)
    assert str(first).startswith("worker 1 failed with ValueError: loss of sample 1 is")
    assert str(second).startswith("loss of sample 1 is")
    assert all("no samples" in str(error) for error in workers(models, [[], []], work))
    assert all("workers hold weights" in str(error) for error in workers([TokenNet(0), TokenNet(1)], [data, data], work))


def test_workers_draw_labels_of_their_own(monkeypatch):
    seeds = []
    monkeypatch.setattr(kronecker, "undisturbed", lambda model, seed: seeds.append(seed) or undisturbed(model, seed))
    models, data = [TokenNet(), TokenNet()], token_samples(2)
    workers(models, [data, data], lambda model, share, gather: estimate(model, share, seed=5, gather=gather))
    assert sorted(seeds) == [5, 5, 6, 6]  # The same in both passes.
