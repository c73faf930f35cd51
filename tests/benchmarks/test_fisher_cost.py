"""What an estimate of the prior costs beside as many forward and backward passes at batch 1."""

from __future__ import annotations

import pytest

from tests.benchmarks import fisher_cost


@pytest.mark.parametrize(("estimator", "diagonal"), [("kronecker", False), ("kronecker", True), ("streaming", False)])
def test_time_and_memory_of_an_estimate(benchmark, sizes, estimator, diagonal, monkeypatch):
    """Kronecker: at most twice the time of the passes, and 3 times the memory of the weights (`base`, 64 pairs)."""
    preset, pairs, rank = sizes["preset"], sizes["pairs"], sizes["rank"]
    if not benchmark.enabled:
        found = benchmark(fisher_cost.measure, estimator, preset, pairs, rank, diagonal=diagonal)
        assert 0 < found["captured_trace"] <= 1.0001
        return
    monkeypatch.setenv("OMP_NUM_THREADS", str(sizes["threads"]))
    found = benchmark.pedantic(fisher_cost.compare, (estimator, preset, pairs, rank), {"diagonal": diagonal}, rounds=1)
    benchmark.extra_info.update(found)
    assert found["time_ratio"] < (2.5 if preset == "base" else 8)
