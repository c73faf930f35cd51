"""The pictures of the method: their figures against what they are of, and the pictures themselves from two runs."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from figures import OPERATIONS, Figures, by_place, draw_sparsity, main, surface, transfer_sensitivity
from srft.config import DataConfig, OptimConfig, SRFTConfig, TrainConfig
from srft.data.pairs import RawBatch, normalized
from srft.model.losses import tracking_loss
from srft.model.tracker import MultiModalTracker
from srft.training import checkpoint
from srft.training.step import run

ROOT = Path(__file__).resolve().parent.parent


def test_operations_find_their_places() -> None:
    values = {f"backbone.blocks_rgb.{i}.{operation}": 10.0 * i + j for i in range(2) for j, operation in enumerate(OPERATIONS)}
    blocks, table = by_place({**values, "backbone.fusion.0.norm2.weight": 7.0, "backbone.norm.weight": 99.0})
    assert blocks == ["rgb 0", "rgb 1", "fusion 0"]
    assert table[3].tolist()[:2] == [3.0, 13.0]
    assert np.isnan(table[:-1, 2]).all()
    assert table[-1, 2] == 7.0
    assert by_place({"backbone.blocks.3.norm1.weight": 1.0})[0] == ["3"]


@pytest.mark.parametrize("rgb_only", [False, True])
def test_the_corners_of_a_surface_are_the_losses_there(rgb_only: bool) -> None:
    torch.manual_seed(0)
    network, first, second = (MultiModalTracker.from_preset("tiny", 2) for _ in range(3))
    before = {name: p.clone() for name, p in network.named_parameters()}
    sizes = {"template": (3, 64, 64, 6), "search": (3, 128, 128, 6)}
    crops = [torch.randint(0, 256, size, dtype=torch.uint8) for size in sizes.values()]
    raw = RawBatch(*crops, torch.rand(3, 4) * 0.2 + 0.4)
    found = surface(network, [first.state_dict(), second.state_dict()], [raw], np.array([0.0, 1.0]), rgb_only=rgb_only)
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    batch, channels = normalized(raw), 3 if rgb_only else 6
    for i, there in enumerate((network, first)):
        with torch.inference_mode():
            output = there.eval()(batch.template[:, :channels], batch.search[:, :channels])
        assert found[0, i] == pytest.approx(float(tracking_loss(output, batch.boxes)["loss"]), rel=1e-4)
    assert len(set(found.ravel().tolist())) == 4


def test_schedules_are_drawn_and_one_run_alone_is_an_error(tmp_path: Path) -> None:
    main(Figures(out=tmp_path))
    assert (tmp_path / "schedules.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="give both runs"):
        main(Figures(out=tmp_path, full=tmp_path))


@pytest.mark.filterwarnings("error")
def test_a_run_without_statistics_is_said_to_have_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = Figure()
    for name, measured in (("none", {}), ("some", {f"sparsity/hoyer/blocks_rgb.0.{operation}": 0.5 for operation in OPERATIONS})):
        progress = checkpoint.Progress(epoch=0, step=4, metrics={"val/success_auc": 0.5, **measured})
        checkpoint.begin(tmp_path / name, progress)
        checkpoint.commit(tmp_path / name, progress, config=TrainConfig(), weights={}, state={})
        axes = figure.subplots()
        draw_sparsity(axes, tmp_path / name)
        assert (len(axes.lines), axes.get_legend() is None) == ((0, True) if name == "none" else (len(OPERATIONS), False))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{tmp_path / 'none'}: no statistics of gradients")


def test_one_run_alone_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "experiments/figures.py", "--out", str(tmp_path), "--full", "x"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": "platform"}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: --full is x and --srft is None; give both runs, or neither for the schedules alone\n"


@pytest.mark.long
def test_pictures_of_two_runs_are_always_the_same(tmp_path: Path) -> None:
    base = TrainConfig(
        data=DataConfig(train_sequences=3, val_sequences=1, source_sequences=1, length=8, max_gap=6),
        srft=SRFTConfig(fisher_samples=8, refresh=2),
        optim=OptimConfig(epochs=2, steps_per_epoch=3, batch_size=2),
    )
    for paradigm in ("full", "srft"):
        run(dataclasses.replace(base, paradigm=paradigm), cache=tmp_path / "cache", directory=tmp_path / paradigm)
    assert min(transfer_sensitivity(tmp_path / "srft").values()) > 0
    for folder in ("a", "b"):
        given = Figures(full=tmp_path / "full", srft=tmp_path / "srft", cache=tmp_path / "cache", pairs=8, points=2)
        main(dataclasses.replace(given, out=tmp_path / folder, results=tmp_path / folder))
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert set(pictures) == {"figure_prior.png", "figure_surface.png", "figure_transfer.png", "schedules.png"}
    assert pictures == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
