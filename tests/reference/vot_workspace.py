"""A workspace of vot-toolkit with made-up videos and results, and the toolkit's own measures of them.

The toolkit is GPL and is called as a program, from an environment of its own, only to record the numbers:

    uv venv toolkit && uv pip install --python toolkit/bin/python vot-toolkit==0.9.0 attributee==0.1.9
    PYTHONPATH=platform:. python -m tests.reference.vot_workspace toolkit/bin/vot tests/assets/vot_toolkit.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

STACKS = {"multistart": ("vot2022/rgbd", "baseline"), "longterm": ("vot2021/rgbd", "rgbd-unsupervised")}
SIZE = (320, 240)
TRACKERS = ("steady", "wild")


def truth(rng: np.random.Generator, length: int) -> np.ndarray:
    """A box that walks about, partly out of the image, with one absence: ``[T, 4]``, two decimals, NaN where absent."""
    center = np.array([160.0, 120.0]) + np.cumsum(rng.normal(0, 4, (length, 2)), 0)
    size = np.clip(np.array([40.0, 30.0]) + np.cumsum(rng.normal(0, 0.5, (length, 2)), 0), 8, 90)
    center = np.abs(center) % 640
    center = np.minimum(center, np.array([[640.0, 480.0]]) - center)
    boxes = np.round(np.column_stack([center - size / 2, size]), 2)
    start = int(rng.integers(length // 2, length - 12))
    boxes[start : start + 9] = np.nan
    return boxes


def track(rng: np.random.Generator, boxes: np.ndarray, noise: float) -> np.ndarray:
    """Answers near the truth that are sometimes lost for a while and sometimes degenerate; the first row is not used."""
    found = np.where(np.isnan(boxes), 50.0, boxes) + rng.normal(0, noise, boxes.shape)
    for _ in range(3):
        start, length = int(rng.integers(1, len(boxes))), int(rng.integers(5, 25))
        found[start : start + length, :2] += 300 * (rng.random(2) - 0.5)
    found[:, 2:] = np.maximum(found[:, 2:], 0)
    found[rng.random(len(boxes)) < 0.02] = 0
    found[rng.random(len(boxes)) < 0.02] = np.nan
    return np.round(found, 2)


def rows(boxes: np.ndarray) -> str:
    """Rows of four numbers."""
    return "".join(",".join(f"{v:g}" for v in row) + "\n" for row in boxes.tolist())


def write(folder: Path, kind: str, seed: int = 0) -> Path:
    """Write a workspace: videos without pictures, and the results of two trackers.

    ``folder/sequences`` and ``folder/results/<tracker>/<experiment>/<video>`` in the toolkit's layout.
    """
    stack, experiment = STACKS[kind]
    rng = np.random.default_rng(seed)
    lengths = {"multistart": (260, 140, 900), "longterm": (150, 90, 120)}[kind]
    files = {"config.yaml": f"registry:\n- ./trackers.ini\nstack: {stack}\n"}
    files["trackers.ini"] = "".join(f"[{t}]\nlabel = {t}\nprotocol = traxpython\ncommand = none\n\n" for t in TRACKERS)
    files["sequences/list.txt"] = "".join(f"video{i}\n" for i in range(len(lengths)))
    for i, length in enumerate(lengths):
        name = f"video{i}"
        boxes = truth(rng, length)
        anchors = np.zeros(length, int)
        anchors[0], anchors[length // 4], anchors[length // 3], anchors[length - 1] = 1, 1, -1, -1
        files[f"sequences/{name}/groundtruth.txt"] = rows(boxes)
        files[f"sequences/{name}/anchor.value"] = "".join(f"{a}\n" for a in anchors)
        files[f"sequences/{name}/sequence"] = (
            f"name={name}\nfps=30\nformat=default\nwidth={SIZE[0]}\nheight={SIZE[1]}\nlength={length}\n"
            "channels.color=color/%08d.jpg\nchannel.default=color\n"
        )
        for tracker, noise in zip(TRACKERS, (1.0, 6.0), strict=True):
            place = f"results/{tracker}/{experiment}/{name}/{name}"
            if kind == "longterm":
                files[f"{place}_001.txt"] = "1\n" + rows(track(rng, boxes, noise)[1:])
                scores = np.round(rng.random(length), 3)
                files[f"{place}_001_confidence.value"] = "\n" + "".join(f"{s:g}\n" for s in scores[1:])
                continue
            for a in np.flatnonzero(anchors):
                part = boxes[a:] if anchors[a] > 0 else boxes[a::-1]
                files[f"{place}_{a:08d}.txt"] = "1\n" + rows(track(rng, part, noise)[1:])
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def toolkit_measures(program: str, folder: Path, kind: str) -> dict[str, dict[str, float]]:
    """Measures of each tracker as the toolkit reports them."""
    names = ("eao", "accuracy", "robustness") if kind == "multistart" else ("precision", "recall", "f_score")
    command = [program, "analysis", "--workspace", str(folder), "--format", "json", "--name", "recorded", *TRACKERS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = folder / "analysis" / "recorded.json"
    if done.returncode or not report.exists():
        raise SystemExit(f"{' '.join(command)}: no {report}\n{done.stdout}\n{done.stderr}")
    results = json.loads(report.read_text())["results"][STACKS[kind][1]]["results"]
    if kind == "multistart":
        score, _, average = results
        rows_ = [(*eao, accuracy, robustness) for eao, (accuracy, robustness, *_) in zip(score, average, strict=True)]
    else:
        rows_ = results[0]
    return {tracker: dict(zip(names, row, strict=True)) for tracker, row in zip(TRACKERS, rows_, strict=True)}


def main() -> None:
    """Record."""
    program, out = os.path.abspath(sys.argv[1]), Path(sys.argv[2])
    recorded = {}
    for kind in STACKS:
        with tempfile.TemporaryDirectory() as folder:
            recorded[kind] = toolkit_measures(program, write(Path(folder), kind), kind)
    out.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
