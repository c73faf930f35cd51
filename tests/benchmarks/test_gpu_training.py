"""The measurement that is meant for a GPU runs, here on the CPU and the smallest network."""

import pytest

from tests.benchmarks.gpu_training import Method, measure


@pytest.mark.parametrize("method", ["FFT", "SRFT"])
def test_both_methods_are_measured(method: Method) -> None:
    figures = measure(method, preset="tiny", device="cpu", precision="bf16", batch=2, steps=1)
    assert figures["samples_per_s"] > 0
