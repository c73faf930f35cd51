"""The method's first claim, as small as can be: at an equal rate, regularized tuning keeps more of the source than full fine-tuning."""

from __future__ import annotations

import dataclasses

import pytest

from paradigms_measures import looks, pair_success
from srft.config import DataConfig, OptimConfig, SRFTConfig, TrainConfig
from srft.training.returning import trackers
from srft.training.step import fine_tune, prepare, tuned_tracker


def test_both_parts_keep_more_of_the_source_than_full_fine_tuning_at_an_equal_rate(tmp_path):
    base = TrainConfig(
        data=DataConfig(train_sequences=8, val_sequences=1, source_sequences=16, length=8, pool=64),
        srft=SRFTConfig(rank=16, prior_strength=100.0, schedule="constant", fisher_samples=48, give_back=0.0, aux_share=1.0),
        optim=OptimConfig(lr=1e-3, epochs=1, steps_per_epoch=16, batch_size=8),
    )
    kept: dict[str, list[float]] = {"full": [], "srft": [], "given back": []}
    for seed in range(3):
        for paradigm in ("full", "srft"):
            data = dataclasses.replace(base.data, train_world=1000 + seed)
            config = dataclasses.replace(base, paradigm=paradigm, seed=seed, data=data)
            domain, prior = prepare(config, tmp_path / "cache")
            few = dataclasses.replace(domain, source=domain.source[:1])
            fine_tune(config, few, prior, directory=tmp_path / f"{paradigm}-{seed}")
            folder = tmp_path / f"{paradigm}-{seed}" / "epoch_0000"
            tested = {paradigm: tuned_tracker(folder)}
            if paradigm == "full":
                tested["given back"] = trackers(folder, tmp_path / "cache", aux_share=0.1)[1](3.0)
            for name, network in tested.items():
                kept[name].append(float(pair_success(network, looks(domain.source, network.arch, data, 6), 6, rgb_only=True).mean()))
    for part in ("srft", "given back"):
        differences = [held - full for held, full in zip(kept[part], kept["full"], strict=True)]
        assert min(differences) > 0
        assert sum(differences) / 3 > 0.02
    assert kept["full"][0] != pytest.approx(kept["full"][1], abs=1e-6)
