"""What a sweep's front and a study's cells come to beside each other."""

from functools import partial
from pathlib import Path

import pytest

from paradigms import Paradigms, base_of
from paradigms_cells import cells_of
from paradigms_record import Row
from search_front import Tracker, by_hand, covered
from srft.config import to_flat
from sweep import Sweep, make_study

ROOT = Path(__file__).resolve().parent.parent


def tracker(chosen_by, tested_by) -> Tracker:
    return Tracker(name="", epochs=4, chosen_by=chosen_by, tested_by=tested_by)


def test_validation_chooses_the_front_and_test_says_what_it_covers() -> None:
    side = [tracker((0.6, 0.5), (0.62, 0.52)), tracker((0.5, 0.6), (0.52, 0.62)), tracker((0.5, 0.5), (0.9, 0.9))]
    front, area = covered(side, (0.5, 0.5))
    assert front == [0, 1]  # the third is best on test, which nobody may know
    assert area == pytest.approx(12 * 2 + 2 * 12 - 2 * 2)  # in squared points
    assert covered(side[:1], (0.62, 0.0))[1] == 0.0


def test_only_cells_of_the_same_sequences_and_families_count() -> None:
    measures = {"test/pair_auc": 0.6, "source/pair_auc": 0.7, "val/pair_auc": 0.5, "val_source/pair_auc": 0.4}
    about = {"modality": "rgbe", "measures": measures, "per_sequence": {}, "history": [{}] * 4}
    about |= {"best_step": 40, "seconds": 1.0, "commit": ""}
    rows = [
        Row(method=m, setting="s", size=z, seed=s, **about)
        for m, z, s in (("fft", 64, 0), ("fft", 64, 1), ("fft", 192, 0), ("lora", 64, 0))
    ]
    (found,) = by_hand(rows, ("fft", "penalty"), "rgbe", 64, 0)
    assert (found.name, found.epochs, found.chosen_by, found.tested_by) == ("fft (s)", 4, (0.5, 0.4), (0.6, 0.7))
    with pytest.raises(ValueError, match="no cell of rgbe with 64 pairs and seed 3 of penalty"):
        by_hand(rows, ("penalty",), "rgbe", 64, 3)


def test_the_search_trains_as_the_cell_that_it_is_compared_with() -> None:
    (cell,) = cells_of(("rgbe",), (64,), 1, ("fft",), partial(base_of, Paradigms(steps=240, batch=16)), settings=1)
    study = make_study(Sweep(config=ROOT / "experiments" / "search_front_base.json"))
    trial = to_flat(next(t.config for t in study.trials() if t.config.optim.lr == cell.config.optim.lr))
    differing = {key for key, value in to_flat(cell.config).items() if trial[key] != value}
    # What it validates and tests on, and what full fine-tuning has no use for.
    assert {key for key in differing if not key.startswith("srft.")} == {"name", "data.val_sequences", "data.test_sequences"}
