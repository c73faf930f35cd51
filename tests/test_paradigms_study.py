from __future__ import annotations

import json
from pathlib import Path

import pytest

from paradigms import Paradigms, base_of
from paradigms_cells import FIRST, METHODS, cells_of, identity
from paradigms_gpu import OnOneGPU, main, renderings
from paradigms_measures import parts
from paradigms_measures import tests as measured
from srft.config import DataConfig, Modality, TrainConfig
from srft.model.pretrained import load_tracker


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


def test_a_larger_tracker_has_its_own_weights_and_rates_which_names_say() -> None:
    session = Paradigms(preset="small", pretrained="small_rgb.safetensors", precision="bf16", rate_scale=0.1)
    cells = cells_of(("rgbe",), (64,), 1, ("fft", "penalty, given back"), lambda modality: base_of(session, modality), rates=0.1)
    usual = cells_of(("rgbe",), (64,), 1, ("fft", "penalty, given back"), base)
    assert [c.config.optim.lr for c in cells] == pytest.approx([0.1 * c.config.optim.lr for c in usual])
    assert [c.setting for c in cells] == [f"{c.setting}, rates x 0.1" for c in usual]
    (tracker,) = {c.config.tracker for c in cells}
    assert (tracker.preset, tracker.pretrained) == ("small", "small_rgb.safetensors")
    assert not {identity(c.config) for c in cells} & {identity(c.config) for c in usual}


def test_a_part_of_the_study_names_known_methods() -> None:
    assert {cell.method for cell in cells_of(("rgbe",), (64,), 1, ("fft",), base)} == {"fft"}
    with pytest.raises(ValueError, match="methods: fff; expected some of fft"):
        cells_of(("rgbe",), (64,), 1, ("fff",), base)


def test_what_chooses_and_what_judges_are_other_sequences() -> None:
    data = base("rgbe").data
    found = parts(data, 2048)
    spans = {name: set(range(part.first, part.first + part.count)) for name, part in found.items()}
    assert found["source"].split == found["val_source"].split == "source-test"
    assert not spans["source"] & spans["val_source"]
    assert not set(range(data.source_sequences)) & (spans["source"] | spans["val_source"])  # validated on while training
    assert found["test"].split != found["val"].split
    assert found["test"].count * found["test"].each >= 2048


@pytest.mark.parametrize(("modality", "cars"), [("rgbe", 3), ("rgbt", 0)])
def test_the_cars_are_tracked_where_there_are_events(modality: Modality, cars: int, tmp_path: Path) -> None:
    data = DataConfig(modality=modality, test_sequences=1, source_sequences=1, length=8)
    found = measured(load_tracker("tiny_rgb", streams=2), data, 2, tmp_path)
    assert len(found["per_sequence"].get("cars/online_auc", [])) == cars
    assert all(0 <= found[name] <= 1 for name in ("test/pair_auc", "test/online_auc", "test/online_precision", "source/online_auc"))


def test_every_sequence_is_rendered_once() -> None:
    cells = cells_of(("rgbe", "rgbt"), (64, 192), 2, ("fft", "penalty"), base)
    wanted = renderings(cells, Paradigms())
    keys = [(data.modality, split, world, index) for data, split, world, index in wanted]
    assert len(set(keys)) == len(keys)
    train = [index for modality, split, world, index in keys if (modality, split, world) == ("rgbt", "target-train", 1001)]
    assert train == list(range(24))


@pytest.mark.parametrize("option", ["--hours", "--concurrent", "--tracking-uri"])
def test_one_gpu_has_only_options_that_it_goes_by(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    import tyro

    assert tyro.cli(Paradigms, args=[option, "3"]) != Paradigms()
    with pytest.raises(SystemExit):
        tyro.cli(OnOneGPU, args=[option, "3"])
    assert option in capsys.readouterr().err


@pytest.mark.parametrize("steps", [0, 2, 162])
def test_steps_are_not_rounded(steps: int) -> None:
    with pytest.raises(ValueError, match=f"--steps is {steps}; expected a positive multiple of 4"):
        base_of(Paradigms(steps=steps), "rgbe")


@pytest.mark.long
def test_cells_without_ray_and_mlflow(tmp_path: Path) -> None:
    main(OnOneGPU(quick=True, processes=2, out=tmp_path))
    cells = [json.loads(path.read_text()) for path in (tmp_path / "cells").iterdir()]
    assert {cell["cell"][3] for cell in cells} == {"fft", "penalty", "rgb", "zero-shot"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    main(OnOneGPU(quick=True, processes=1, out=tmp_path))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
