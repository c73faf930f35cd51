"""The measurement that is meant for a GPU runs, here on the CPU and the smallest network."""

from tests.benchmarks.gpu_training import measure


def test_a_method_is_measured() -> None:
    figures = measure("SRFT", preset="tiny", device="cpu", precision="bf16", batch=2, steps=1)
    assert figures["samples_per_s"] > 0
