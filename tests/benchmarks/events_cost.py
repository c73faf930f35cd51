"""Speed of event representations and readers on one core, as events per second and as ratios to plain ways within the same run.

PYTHONPATH=platform:. python tests/benchmarks/events_cost.py --out tests/benchmarks/results/events.json

Representations: uniformly random events, the worst case for the caches, in windows of one million. The plain way is ``np.add.at`` on the
pixel indices. Readers: files of several million events in chunks of the default size; the plain way reads the same events from a ``.npy``
file of the structured array. Medians of CPU seconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from srft.data import events as ev
from srft.files import environment, write_json
from tests.reference import event_files as encode

WIDTH, HEIGHT = 1280, 720


def seconds(work: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def random_events(number: int, width: int, height: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    events = np.empty(number, ev.EVENT_DTYPE)
    events["t"] = np.sort(rng.integers(40_000, size=number))
    events["x"], events["y"], events["p"] = (
        rng.integers(width, size=number),
        rng.integers(height, size=number),
        rng.integers(2, size=number),
    )
    return events


def representations(number: int, rounds: int) -> dict[str, dict[str, float]]:
    """Million events per second of every representation and of the plain way, by sensor."""
    out = {}
    for width, height in ((346, 260), (WIDTH, HEIGHT)):
        events = random_events(number, width, height)

        def plain(events=events, width=width, height=height):
            image = np.zeros((2, height, width), np.int64)
            np.add.at(image, (events["p"].astype(np.int64), events["y"], events["x"]), 1)
            return image

        assert np.array_equal(plain(), ev.represent("counts", events, height, width))
        rates = {"np.add.at": number / seconds(plain, rounds) / 1e6}
        for name in ev.REPRESENTATIONS:
            rates[name] = number / seconds(lambda name=name, e=events, h=height, w=width: ev.represent(name, e, h, w), rounds) / 1e6
        out[f"{width}x{height}"] = rates
    return out


def readers(repeats: int, rounds: int, folder: Path) -> dict[str, float]:
    """Million events per second of every reader. Files repeat one encoded stretch, so times run backwards and are not checked."""
    stretch = random_events(20_000, WIDTH, HEIGHT)
    separate = [tuple(event) for event in stretch.tolist()]
    stretch["t"] //= 500
    neighbours = [(t * 500, (x // 40) * 40 + k, y, p) for t, x, y, p in stretch[::5].tolist() for k in (0, 1, 2, 5, 9)]
    files = {
        "EVT 2.0": (encode.header(WIDTH, HEIGHT, "2.0"), encode.evt2(separate)),
        "EVT 3.0, separate events": (encode.header(WIDTH, HEIGHT, "3.0"), encode.evt3(separate)),
        "EVT 3.0, neighbours": (encode.header(WIDTH, HEIGHT, "3.0"), encode.evt3(neighbours)),
        "DAT": (encode.dat([], WIDTH, HEIGHT), encode.dat(separate, WIDTH, HEIGHT)[len(encode.dat([], WIDTH, HEIGHT)) :]),
        "Event Stream, 2 us apart": (encode.event_stream([], WIDTH, HEIGHT), encode.event_stream(separate, WIDTH, HEIGHT)[20:]),
        "Event Stream, 400 us apart": (
            encode.event_stream([], WIDTH, HEIGHT),
            encode.event_stream([(400 * i, *rest) for i, (_, *rest) in enumerate(separate)], WIDTH, HEIGHT)[20:],
        ),
    }
    np.save(folder / "plain.npy", np.tile(random_events(20_000, WIDTH, HEIGHT), repeats))
    rates = {"npy": 0.0}
    for name, (head, body) in files.items():
        (folder / name).write_bytes(head + body * repeats)
    for name in rates | files:
        path = folder / ("plain.npy" if name == "npy" else name)
        total = sum(len(chunk) for chunk in ev.open_events(path).chunks(any_order=True))
        work = lambda path=path: [len(chunk) for chunk in ev.open_events(path).chunks(any_order=True)]
        rates[name] = total / seconds(work, rounds) / 1e6
    return rates


def measure(number: int, repeats: int, rounds: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        images, files = representations(number, rounds), readers(repeats, rounds, Path(folder))
    return {
        "unit": "million events per CPU second, median",
        "representations": images,
        "times np.add.at": {sensor: {k: v / rates["np.add.at"] for k, v in rates.items()} for sensor, rates in images.items()},
        "readers": files,
        "share of npy": {name: rate / files["npy"] for name, rate in files.items()},
        "environment": environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is measured")
    arguments = parser.parse_args()
    result = measure(1_000_000, 100, arguments.rounds)
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "unknown")
    write_json(arguments.out, result | {"cpu": cpu})
    for sensor, rates in result["representations"].items():
        print(sensor, {name: round(rate, 1) for name, rate in rates.items()})
    print({name: round(rate, 1) for name, rate in result["readers"].items()})


if __name__ == "__main__":
    main()
