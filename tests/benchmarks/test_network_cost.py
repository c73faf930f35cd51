"""The script that compares the networks runs, and the networks it compares agree."""

import pytest

from tests.benchmarks.network_cost import CASES, measure


@pytest.mark.parametrize("case", CASES)
def test_both_networks_give_the_same_boxes_and_losses(case):
    figures = measure("tiny", case, batch=2, rounds=1)
    assert figures["difference"] < 1e-3
    assert figures["ratio"] > 0
    assert 0 < figures["products_share_of_plain"] < 1
