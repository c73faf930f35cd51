"""What a run trains on: the synthetic world, or benchmarks on disk."""

import dataclasses
import math
import shutil

import numpy as np
import pytest

import srft.data.domain as domain_module
from srft.config import ConfigError, DataConfig, OptimConfig, TrainConfig
from srft.data.benchmarks import LAYOUTS, DataError
from srft.data.domain import load_domain, source_training
from srft.data.native import write_native
from srft.data.synthetic import record
from srft.settings import from_flat
from srft.training.step import run

LENGTH = 8


def test_a_domain_has_the_numbers_asked_for():
    domain = load_domain(DataConfig(train_sequences=2, val_sequences=1, source_sequences=1, length=8))
    assert (len(domain.train), len(domain.val), len(domain.source)) == (2, 1, 1)
    assert domain.train[0].frames.shape[-1] == 6
    assert domain.source[0].frames.shape[-1] == 3


@pytest.mark.parametrize(("modality", "channels"), [("rgb", 3), ("rgbd", 6), ("rgbt", 6)])
def test_a_domain_has_the_modality_asked_for(modality, channels):
    domain = load_domain(DataConfig(train_sequences=1, val_sequences=1, source_sequences=1, length=8, modality=modality))
    assert {s.frames.shape[-1] for s in (*domain.train, *domain.val)} == {channels}
    assert domain.source[0].frames.shape[-1] == 3


@pytest.fixture(scope="module")
def lasher(tmp_path_factory):
    """Four sequences for training in LasHeR's layout and one for testing, and two lists; the last for training shows its target once."""
    root = tmp_path_factory.mktemp("LasHeR")
    captures = [record("target-train", index, seed=7, length=LENGTH, modality="rgbt") for index in range(4)]
    for capture in captures:
        capture.absent[:] = False
    captures[3].absent[1:] = True
    write_native("lasher", root, captures, split="train")
    write_native("lasher", root, [record("target-test", 0, seed=7, length=LENGTH, modality="rgbt")])
    (root / "val.txt").write_text(f"{captures[1].name}\n")
    return root


def names(sequences):
    return [sequence.name for sequence in sequences]


def test_one_sequence_is_too_few_for_training_and_validation(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "boxes.txt").write_text("1,2,3,4\n" * 3)
    with pytest.raises(DataError, match="no training sequences beside those of validation"):
        load_domain(DataConfig(benchmark="own", root=str(tmp_path), modality="rgb"))


def test_a_domain_of_a_benchmark(lasher):
    """The validation part is not trained on, nor is a sequence without two visible frames; the source is synthetic unless said."""
    config = from_flat({"data.benchmark": "lasher", "data.root": str(lasher), "data.source_sequences": 1, "data.length": LENGTH})
    assert config.data.modality == "rgbt"
    domain = load_domain(config.data)
    assert names(domain.train) == ["target-train-0000", "target-train-0002"]
    assert names(domain.val) == ["target-train-0001"]
    assert names(domain.source) == ["source-test-0000"]
    assert domain.train[0].frames[0].shape == (120, 160, 6)


def test_no_pair_to_draw_is_named(lasher, tmp_path):
    root = tmp_path / "sparse"
    shutil.copytree(lasher, root)
    for file in root.glob("trainingset/*/visible.txt"):
        file.write_text("\n".join("0,0,0,0" if i % 2 else row for i, row in enumerate(file.read_text().splitlines())))
    data = DataConfig(benchmark="lasher", root=str(root), source_benchmark="lasher", source_root=str(root), max_gap=1)
    with pytest.raises(DataError, match=r"no pair can be drawn from any of 3 sequences; .*raise data\.max_gap"):
        load_domain(data)


def test_no_pair_to_draw_in_the_synthetic_world_is_named(monkeypatch):
    hidden = lambda split, count, **_: [dataclasses.replace(s, absent=np.arange(len(s)) > 3) for s in short[:count]]
    short = load_domain(DataConfig(train_sequences=2, val_sequences=1, source_sequences=1, length=8)).train
    monkeypatch.setattr(domain_module, "sequences", hidden)
    with pytest.raises(DataError, match=r"synthetic world: .*any of 2 sequences; .*4 visible of 8 frames.*data\.pairs to near"):
        load_domain(DataConfig(train_sequences=2, val_sequences=1, source_sequences=1, length=20, pairs="published"))


def test_a_source_benchmark(lasher):
    """Retention is measured on its validation part, the prior estimated from the rest; only RGB of it is seen."""
    data = DataConfig(
        source_benchmark="lasher", source_root=str(lasher), train_sequences=1, val_sequences=1, length=LENGTH, source_sequences=5
    )
    assert data.modality == "rgbe"
    domain = load_domain(data)
    assert names(domain.train) == ["target-train-0000"]
    assert domain.train[0].frames[0].shape == (120, 160, 6)
    assert names(domain.source) == ["target-train-0001"]
    assert domain.source[0].frames[0].shape == (120, 160, 3)
    assert names(source_training(data, 1)) == ["target-train-0000", "target-train-0002", "target-train-0003"]


def test_a_benchmark_trains(lasher, tmp_path):
    config = TrainConfig(
        paradigm="full",
        data=DataConfig(benchmark="lasher", root=str(lasher), source_benchmark="lasher", source_root=str(lasher), max_gap=6),
        optim=OptimConfig(batch_size=2, epochs=1, steps_per_epoch=2),
    )
    report = run(config, cache=tmp_path / "cache", directory=tmp_path / "run")
    assert report.step == 2
    assert math.isfinite(report.metrics["train/loss"])
    assert 0 <= report.metrics["val/success_auc"] <= 1


def test_the_modality_is_that_of_the_benchmark():
    assert {name: DataConfig(benchmark=name, root="/data").modality for name in LAYOUTS if name != "own"} == {
        layout.name: layout.modality for layout in LAYOUTS.values() if layout.name != "own"
    }
    assert DataConfig(benchmark="own", root="/data", modality="rgbd").modality == "rgbd"
    assert DataConfig(benchmark="lasher", root="/data", modality="rgb").modality == "rgb"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.benchmark": "otb"}, "data.benchmark is 'otb'; expected one of"),
        ({"data.benchmark": "lasher"}, "data.root is ''; expected an absolute path or an address for lasher"),
        ({"data.benchmark": "lasher", "data.root": "LasHeR"}, "data.root is 'LasHeR'; expected an absolute path"),
        ({"data.source_root": "/data"}, "data.source_root is '/data'; expected empty without data.source_benchmark"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        from_flat(settings)
