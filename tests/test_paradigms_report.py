from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paradigms_record import CELLS, LINES, Row, as_csv, cell_files, read_csv, read_rows, write_cells
from paradigms_report import Report, chosen, front, main, paired, tables

ROOT = Path(__file__).resolve().parent.parent


def row(method: str, setting: str, seed: int, val: float, tested: list[float]) -> Row:
    measures = {f"{split}/{kind}": 0.5 for split in ("test", "source") for kind in ("pair_auc", "online_auc", "online_precision")}
    measures |= {"test/pair_auc": float(np.mean(tested)), "val/pair_auc": val, "train/pair_auc": 0.75}
    lists = {"test/pair_auc": tested, "source/pair_auc": [0.5] * len(tested)}
    history = [{"step": 40 * (i + 1), "val/success_auc": v, "train/iou": v, "source/success_auc": v} for i, v in enumerate((0.3, 0.5, 0.4))]
    about = {"modality": "rgbe", "size": 64, "commit": "abc", "seconds": 30.0, "history": history, "best_step": 80}
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


def test_a_difference_of_means_alone_has_no_interval() -> None:
    whole = [[row(m, "", seed, 0.5, [0.5 + x, 0.7 + x]) for seed in range(3)] for m, x in (("a", 0.1), ("b", 0.0))]
    lost = [[dataclasses.replace(r, per_sequence={}) for r in side] for side in whole]
    mean, low, high, seeds = paired(lost[0], lost[1], "test/pair_auc")
    assert (mean, seeds) == (pytest.approx(0.1), 3)
    assert np.isnan([low, high]).all()
    for first in ([lost[0][0], *whole[0][1:]], whole[0][1:]):  # Seeds without sequences are left out where there are others.
        assert paired(first, whole[1], "test/pair_auc") == pytest.approx((0.1, 0.1, 0.1, 2))
    assert "+10.0 (n = 3)" in tables([*lost[0], *(dataclasses.replace(r, method="fft") for r in lost[1])])


def write_study(folder: Path, rows: list[Row]) -> None:
    (folder / "cells").mkdir(parents=True)
    for r in rows:
        what = ["rgbe", str(r.size), str(r.seed), r.method, r.setting.replace(".", ",")]
        measures = {**r.measures, "per_sequence": r.per_sequence}
        cell = {"cell": what, "measures": measures, "history": r.history, "train_seconds": 30.0, "commit": "abc"}
        (folder / "cells" / f"{r.size}-{r.method}-{r.seed}.json").write_text(json.dumps(cell))


def four(size: int = 64) -> list[Row]:
    made = [row(method, "lr 0.0003", seed, 0.5, [0.5 + 0.1 * seed, 0.6]) for method in ("fft", "penalty") for seed in range(2)]
    return [dataclasses.replace(r, size=size) for r in made]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_cells_give_the_same_files(tmp_path: Path) -> None:
    write_study(tmp_path / "study", four())
    for out in ("one", "two"):
        main(Report(study=tmp_path / "study", results=tmp_path / out))
    written = files(tmp_path / "one")
    assert sorted(written) == [LINES, CELLS, "paradigms_rgbe.png", "paradigms_rgbe_steps.png", "paradigms_tables.md"]
    assert written == files(tmp_path / "two")
    lines = written[LINES].decode().splitlines()
    assert lines[1].startswith("rgbe,64,0,fft,lr 0.0003,0.5500")
    assert lines[1].endswith("80,30.0,,abc")  # best step, seconds, device, commit
    assert "+0.0 [+0.0, +0.0]" in written["paradigms_tables.md"].decode()
    (tmp_path / "study" / "cells" / "9.json").write_text("{}")
    with pytest.raises(ValueError, match=r"9\.json: not a finished cell"):
        main(Report(study=tmp_path / "study", results=tmp_path / "one"))
    assert written == files(tmp_path / "one")


def test_reports_of_parts_come_to_the_report_of_the_whole(tmp_path: Path) -> None:
    for name, rows in (("first", four()[:3]), ("second", four()[2:]), ("all", four())):
        write_study(tmp_path / name, rows)
    for name in ("first", "second", "nothing"):  # What was kept is enough.
        main(Report(study=tmp_path / name, results=tmp_path / "parts"))
    main(Report(study=tmp_path / "all", results=tmp_path / "whole"))
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_cells_without_files_are_known_by_their_lines(tmp_path: Path) -> None:
    results = tmp_path / "results"
    write_study(tmp_path / "old", four())
    main(Report(study=tmp_path / "old", results=results))
    before = files(results)
    lines = read_csv(results / LINES)
    assert as_csv(lines).encode() == before[LINES]
    assert not any(r.per_sequence or r.history for r in lines)
    (results / CELLS).unlink()
    with pytest.raises(ValueError, match="no finished cell, and none in"):
        main(Report(study=tmp_path / "nothing", results=results))
    write_study(tmp_path / "new", four(192))
    main(Report(study=tmp_path / "new", results=results))
    after = files(results)
    assert after[LINES].startswith(before[LINES])
    assert after["paradigms_tables.md"].startswith(before["paradigms_tables.md"])  # with the intervals, which are not in the lines
    assert after["paradigms_rgbe_steps.png"] == before["paradigms_rgbe_steps.png"]
    assert after["paradigms_rgbe.png"] != before["paradigms_rgbe.png"]
    table = lambda: (results / "paradigms_tables.md").read_text().split("### ")[1]
    write_study(tmp_path / "again", four()[:1])  # One cell of the reference anew: not enough for intervals.
    main(Report(study=tmp_path / "again", results=results))
    assert table().strip() in before["paradigms_tables.md"].decode()
    write_study(tmp_path / "more", four()[1:2])  # All of the reference, and none of the other method, whose interval stays.
    main(Report(study=tmp_path / "more", results=results))
    assert table().strip() in before["paradigms_tables.md"].decode()
    third = [row("penalty", "lr 0.0003", 2, 0.5, [0.9, 0.9]), row("fft", "lr 0.0003", 2, 0.5, [0.5, 0.5])]
    write_study(tmp_path / "third", third[:1])  # Another cell of the other method: its line is another.
    main(Report(study=tmp_path / "third", results=results))
    assert "+0.0 (n = 2)" in table()
    assert "[+0.0, +0.0]" not in table()
    write_study(tmp_path / "fourth", [*third, *four()[2:3]])  # The reference is another too; one of three seeds has no files.
    main(Report(study=tmp_path / "fourth", results=results))
    assert "(n = 2) |" in table()
    assert "] (n = 2)" in table()


def test_a_directory_without_cells_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "experiments/paradigms_report.py", str(tmp_path), "--results", str(tmp_path / "results")]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": "platform"}, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/cells: no finished cell, and none in ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_damaged_records_say_so(tmp_path: Path) -> None:
    archive = tmp_path / CELLS
    write_cells({"one.json": b"{}"}, archive)
    write_cells({"one.json": bytes(range(256)) * 40}, archive)
    whole = archive.read_bytes()
    for place in range(0, len(whole), 7):
        archive.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            found = cell_files(tmp_path, archive)
        except ValueError as error:
            assert "not a whole archive" in str(error)  # noqa: PT017
        else:
            assert bytes(range(256)) * 40 in found.values()  # Some bytes say nothing about the content.
    archive.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="not a whole archive"):
        cell_files(tmp_path, archive)
    write_study(tmp_path / "twice", four()[:1])
    (first,) = cell_files(tmp_path / "twice", tmp_path / "none.zip").items()
    with pytest.raises(ValueError, match=r"other\.json and .* are of the same cell"):
        read_rows({**dict([first]), "other.json": first[1]})
    (tmp_path / LINES).write_text(as_csv(four()).replace(",64,1,", ",many,1,"))
    with pytest.raises(ValueError, match=r"paradigms\.csv, line 3: not a cell"):
        read_csv(tmp_path / LINES)
    with pytest.raises(ValueError, match=r"a\.json: not a finished cell"):
        read_rows({"a.json": b"[]"})
