"""The script that compares the online loops runs, and the loops it compares agree."""

import pytest

from tests.benchmarks.online_cost import CASES, measure


@pytest.mark.parametrize("case", CASES)
def test_both_loops_go_to_the_same_boxes(case):
    figures = measure("tiny", case, frames=3)
    assert figures["boxes_apart_px"] < 0.01
    assert 0 < figures["share_in_network"] < 1
    assert 0 < figures["linear_share_of_plain"] < 1
