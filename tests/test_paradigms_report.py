from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paradigms_report import Report, Row, as_csv, chosen, front, main, paired, read_rows, tables


def row(method: str, setting: str, seed: int, val: float, tested: list[float]) -> Row:
    measures = {f"{split}/{kind}": 0.5 for split in ("test", "source") for kind in ("pair_auc", "online_auc", "online_precision")}
    measures |= {"test/pair_auc": float(np.mean(tested)), "val/pair_auc": val, "train/pair_auc": 0.75}
    lists = {"test/pair_auc": tested, "source/pair_auc": [0.5] * len(tested)}
    history = [{"step": 40 * (i + 1), "val/success_auc": v, "train/iou": v, "source/success_auc": v} for i, v in enumerate((0.3, 0.5, 0.4))]
    about = {"modality": "rgbe", "size": 64, "commit": "abc", "seconds": 30.0, "history": history}
    return Row(seed=seed, method=method, setting=setting, measures=measures, per_sequence=lists, **about)


def test_settings_are_chosen_on_validation_among_those_with_all_seeds() -> None:
    rows = [row("fft", "low", seed, 0.5, [0.9, 0.9]) for seed in range(2)]
    rows += [row("fft", "high", seed, 0.6, [0.1, 0.1]) for seed in range(2)] + [row("fft", "once", 0, 0.9, [1.0, 1.0])]
    assert [r.setting for r in chosen(rows)["fft"]] == ["high", "high"]


def test_a_paired_difference_has_an_interval_that_covers_the_truth() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(60):
        level = rng.normal(0.5, 0.2, 40)
        pairs = [(level, level + 0.02 + rng.normal(0, 0.02, 40) + rng.normal(0, 0.01)) for _ in range(5)]
        first = [row("a", "", seed, 0.5, list(b)) for seed, (_, b) in enumerate(pairs)]
        second = [row("b", "", seed, 0.5, list(a)) for seed, (a, _) in enumerate(pairs)]
        mean, low, high, seeds = paired(first, second, "test/pair_auc")
        assert seeds == 5
        assert low < mean < high
        assert paired(second, first, "test/pair_auc")[0] == pytest.approx(-mean)
        covered += low <= 0.02 <= high
    assert 45 <= covered <= 60  # 95 % of 60 is 57; five seeds make percentiles a little narrow


def test_a_difference_needs_common_seeds_and_an_interval_needs_two() -> None:
    one, other = row("a", "", 0, 0.5, [0.5, 0.7]), row("b", "", 1, 0.5, [0.5, 0.5])
    assert np.isnan(paired([one], [other], "test/pair_auc")[0])
    mean, low, _, seeds = paired([one], [row("b", "", 0, 0.5, [0.5, 0.5])], "test/pair_auc")
    assert (mean, seeds) == (pytest.approx(0.1), 1)
    assert np.isnan(low)


def test_the_front_has_what_nothing_beats() -> None:
    assert front([(1, 5), (2, 4), (2, 3), (0, 5), (3, 1), (1, 5)]) == [0, 5, 1, 4]
    rng = np.random.default_rng(0)
    points = [tuple(map(float, p)) for p in rng.random((50, 2))]
    kept = front(points)  # pyrefly: ignore
    assert [points[i][1] for i in kept] == sorted((points[i][1] for i in kept), reverse=True)


def test_the_same_cells_give_the_same_files(tmp_path: Path) -> None:
    cells = tmp_path / "study" / "cells"
    cells.mkdir(parents=True)
    with pytest.raises(ValueError, match="no finished cell"):
        read_rows(cells)
    made = [row(method, "lr 0,0003", seed, 0.5, [0.5 + 0.1 * seed, 0.6]) for method in ("fft", "penalty") for seed in range(2)]
    for i, r in enumerate(made):
        measures = {**r.measures, "per_sequence": r.per_sequence}
        cell = {"cell": ["rgbe", "64", str(r.seed), r.method, r.setting], "measures": measures, "history": r.history, "train_seconds": 30.0}
        (cells / f"{i}.json").write_text(json.dumps(cell))
    for out in ("one", "two"):
        main(Report(study=tmp_path / "study", results=tmp_path / out))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["paradigms.csv", "paradigms_rgbe.png", "paradigms_rgbe_steps.png", "paradigms_tables.md"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    rows = read_rows(cells)
    assert as_csv(rows).splitlines()[1].startswith("rgbe,64,0,fft,lr 0.0003,0.5500")
    assert "80,30.0" in as_csv(rows)  # best step
    assert "+0.0 [+0.0, +0.0]" in tables(rows)
    (cells / "9.json").write_text("{}")
    with pytest.raises(ValueError, match=r"9\.json: not a finished cell"):
        read_rows(cells)
