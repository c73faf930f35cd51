from __future__ import annotations

import pytest

from paradigms import Paradigms, base_of
from paradigms_cells import FIRST, METHODS, cells_of, identity
from srft.config import TrainConfig


def base(modality: str) -> TrainConfig:
    return base_of(Paradigms(), modality)  # pyrefly: ignore


def test_every_cell_is_another_run_and_the_most_telling_come_first() -> None:
    cells = cells_of(("rgbe", "rgbt"), (64, 768), 1, (), base)
    assert len({identity(cell.config) for cell in cells}) == len(cells) == 2 * 2 * sum(map(len, METHODS.values()))
    assert {cell.modality for cell in cells[: len(cells) // 2]} == {"rgbe"}
    assert {(cell.size, cell.seed, cell.method) for cell in cells[: len(FIRST)]} <= {(64, 0, method) for method in FIRST}
    assert all(cell.config.data.pool == cell.size for cell in cells)


def test_cells_of_one_seed_differ_by_their_method_only() -> None:
    cells = cells_of(("rgbe",), (64,), 2, ("fft", "penalty", "lora"), base)
    of_seed = [{(c.config.seed, c.config.data) for c in cells if c.seed == seed} for seed in range(2)]
    assert [len(found) for found in of_seed] == [1, 1]
    assert of_seed[0] != of_seed[1]
    assert len({(c.config.optim.total_steps, c.config.optim.batch_size, c.config.optim.decay) for c in cells}) == 1


def test_a_part_of_the_study_names_known_methods() -> None:
    assert {cell.method for cell in cells_of(("rgbe",), (64,), 1, ("fft",), base)} == {"fft"}
    with pytest.raises(ValueError, match="methods: fff; expected some of fft"):
        cells_of(("rgbe",), (64,), 1, ("fff",), base)
