"""Turn the DAVIS346 street recording into the annotated test sequences that ship with the package.

Background subtraction finds blobs, association follows each car's blob, a cubic per box edge smooths it. The blob is the car with
its cast shadow, and dark windows and bumpers blur into the road, so a few boxes per car were drawn by hand on enlarged frames
(``CARS``); between them the correction is interpolated and the automatic trajectory gives the motion.

    python experiments/annotate_davis_cars.py --recording davis346.aedat4 --out /tmp/davis_cars --preview /tmp/davis_cars.png

Without ``--out`` the package's own files are replaced; they come out byte for byte the same.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from srft.data.events import Recording, frame_windows, polarity_image, read_aedat4

ASSETS = Path(__file__).resolve().parents[1] / "platform" / "srft" / "assets" / "davis_cars"
COLORS = ((60, 230, 60), (255, 170, 40), (60, 200, 255))


@dataclass(frozen=True, kw_only=True)
class Car:
    """One target: where its blob is found and what was drawn by hand."""

    name: str
    first: int
    """First annotated frame; the last one is the recording's. Frame 0 is never used: no events precede it."""
    seed: int
    """Frame from which the blob is followed in both directions."""
    hand: dict[int, tuple[float, float, float, float]]
    """Frame to left, top, right, bottom edge of the car without its shadow, in pixels, drawn by hand."""


CARS = (
    Car(
        name="light_hatchback",
        first=1,
        seed=10,
        hand={
            0: (48, 226, 85, 242),
            15: (106, 208, 141, 224),
            30: (160.5, 191, 192.5, 206),
            44: (207, 176, 235.5, 189),
            58: (246.5, 161.5, 271.7, 174),
        },
    ),
    Car(
        name="white_sedan",  # Beside a parked white van until frame 3: one blob.
        first=1,
        seed=20,
        hand={
            1: (206, 158.7, 233, 173),
            15: (225, 153, 250, 166),
            30: (243, 146, 266, 159),
            44: (259, 141, 280, 153),
            58: (272, 137, 292, 148),
        },
    ),
    Car(
        name="dark_car",  # In deep shade before frame 35, where its rear cannot be told from the road.
        first=35,
        seed=45,
        hand={
            35: (293.5, 155.8, 316.8, 174),
            41: (275.5, 163, 300, 183),
            45: (261.5, 168.8, 288.6, 190.2),
            53: (230.5, 181.8, 261.8, 204.8),
            58: (209, 190.2, 243, 215.3),
        },
    ),
)


def blobs(frames: np.ndarray) -> list[np.ndarray]:
    """What differs from the empty street, the median of all frames.

    Args:
        frames: ``[T, H, W]`` uint8.

    Returns:
        Per frame ``[N, 4]`` float64: left, top, right, bottom.
    """
    street = np.median(frames, axis=0)
    found = []
    for frame in frames:
        changed = cv2.GaussianBlur(np.abs(frame - street).astype(np.float32), (3, 3), 0) > 10
        closed = cv2.morphologyEx(changed.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
        _, _, stats, _ = cv2.connectedComponentsWithStats(closed)
        stats = stats[1:][stats[1:, cv2.CC_STAT_AREA] >= 100]
        found.append(np.column_stack([stats[:, 0], stats[:, 1], stats[:, 0] + stats[:, 2], stats[:, 1] + stats[:, 3]]).astype(np.float64))
    return found


def follow(found: list[np.ndarray], car: Car) -> dict[int, np.ndarray]:
    """The car's blob in every frame where it stands alone.

    Args:
        found: blobs of all frames.
        car: the target.

    Returns:
        Frame to edges ``[4]``; frames in which the blob merged with another one are left out.

    Raises:
        ValueError: no blob lies where the car was drawn by hand.
    """
    frames = sorted(car.hand)
    drawn = np.array([np.interp(car.seed, frames, [car.hand[f][edge] for f in frames]) for edge in range(4)])
    near = [blob for blob in found[car.seed] if np.abs((blob - drawn)[1:3]).max() < 6]
    if len(near) != 1:
        raise ValueError(f"{car.name}: {len(near)} blobs near {drawn.round(1).tolist()} in frame {car.seed}; expected one")
    track = {car.seed: near[0]}
    for step in (1, -1):
        frame = car.seed + step
        while 0 <= frame < len(found) and frame >= min(car.first, min(frames)):
            recent = sorted(track, key=lambda f: abs(f - frame))[:6]
            guess = np.array(
                [np.polyval(np.polyfit(recent, [track[f][e] for f in recent], min(1, len(recent) - 1)), frame) for e in range(4)]
            )
            fitting = [blob for blob in found[frame] if np.abs(blob - guess).max() < 5]
            if fitting:
                track[frame] = min(fitting, key=lambda blob: float(np.abs(blob - guess).sum()))
            frame += step
    return track


def annotate(found: list[np.ndarray], car: Car) -> np.ndarray:
    """Smooth boxes of one car.

    Args:
        found: blobs of all frames.
        car: the target.

    Returns:
        ``[T - first, 4]`` float64: left, top, width, height in pixels, two decimals.
    """
    track = follow(found, car)
    measured = np.array(sorted(track))
    frames = np.arange(len(found))
    keys = sorted(car.hand)
    edges = np.empty((len(found), 4))
    for e in range(4):
        values = np.array([track[f][e] for f in measured])
        rough = np.polyval(np.polyfit(measured, values, 3), measured)
        good = np.abs(values - rough) <= 1.5  # A lane marking beside the car moves an edge for a few frames.
        smooth = np.polyfit(measured[good], values[good], 3)
        correction = [car.hand[f][e] - np.polyval(smooth, f) for f in keys]
        edges[:, e] = np.polyval(smooth, frames) + np.interp(frames, keys, correction)
    edges = edges[car.first :]
    return np.column_stack([edges[:, :2], edges[:, 2:] - edges[:, :2]]).round(2)


def _written(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def write(recording: Recording, boxes: dict[str, np.ndarray], out: Path) -> None:
    """Write the excerpt and the annotations.

    Args:
        recording: all frames and events.
        boxes: per car ``[T - first, 4]``.
        out: folder, made if missing; files of the same names are replaced.
    """
    out.mkdir(parents=True, exist_ok=True)
    start = int(recording.frame_times[0])
    events = recording.events
    street = np.median(recording.frames, axis=0).astype(np.uint8)
    target = out / "recording.npz"
    with _written(target).open("wb") as file:
        np.savez_compressed(
            file,
            street=street,
            change=recording.frames - street,  # modulo 256; half the size of the frames
            frame_times=recording.frame_times - start,
            t=(events["t"] - start).astype(np.int32),
            x=events["x"],
            y=events["y"],
            p=events["p"],
        )
    os.replace(_written(target), target)
    for car in CARS:
        rows = ["frame,left,top,width,height,absent"]
        rows += [f"{car.first + i},{a:.2f},{b:.2f},{w:.2f},{h:.2f},0" for i, (a, b, w, h) in enumerate(boxes[car.name].tolist())]
        target = out / f"{car.name}.csv"
        _written(target).write_text("\n".join(rows) + "\n", newline="\n")
        os.replace(_written(target), target)


def tiles(recording: Recording, boxes: dict[str, np.ndarray], car: Car, zoom: int = 6) -> Iterator[np.ndarray]:
    """Enlarged surroundings of a car with all boxes, for looking at.

    Args:
        recording: all frames and events.
        boxes: per car ``[T - first, 4]``.
        car: whose surroundings.
        zoom: side of a pixel.

    Yields:
        Per annotated frame ``[H, W, 3]`` uint8 BGR: grey frame (shadows lifted), then polarity image.
    """
    windows = frame_windows(recording.events["t"], recording.frame_times)
    height, width = recording.frames.shape[1:]
    for i, (left, top, w, h) in enumerate(boxes[car.name]):
        frame = car.first + i
        x, y = (np.clip(int(c - s / 2), 0, m - s) for c, s, m in ((left + w / 2, 56, width), (top + h / 2, 36, height)))
        grey = (np.clip((recording.frames[frame].astype(np.float64) - 3) / 120, 0, 1) ** 0.6 * 255).astype(np.uint8)
        pair = []
        for image in (cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), polarity_image(recording.events[windows[frame]], height, width)[..., ::-1]):
            view = cv2.resize(image[y : y + 36, x : x + 56], None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
            for color, other in zip(COLORS, CARS, strict=True):
                if frame >= other.first:
                    a, b, c, d = boxes[other.name][frame - other.first]
                    low = (round((a - x) * zoom), round((b - y) * zoom))
                    cv2.rectangle(view, low, (round((a + c - x) * zoom), round((b + d - y) * zoom)), color, 1)
            cv2.putText(view, str(frame), (2, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 128, 255), 1)
            pair.append(view)
        yield np.hstack(pair)


def main() -> None:
    """Parse the command line, annotate, write.

    Raises:
        SystemExit: the recording cannot be read.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", type=Path, required=True, help="davis346.aedat4 of the aedat package's source archive")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write to (default: the package's own files)")
    parser.add_argument("--preview", type=Path, help="also write one PNG per car, NAME_CAR.png, with boxes on enlarged frames")
    arguments = parser.parse_args()
    try:
        recording = read_aedat4(arguments.recording)
        found = blobs(recording.frames)
        boxes = {car.name: annotate(found, car) for car in CARS}
    except ValueError as error:
        raise SystemExit(f"annotate_davis_cars: {error}") from None
    write(recording, boxes, arguments.out)
    for car in CARS:
        print(f"{car.name}: frames {car.first} to {len(found) - 1}, blob alone in {len(follow(found, car))} of {len(found)} frames")
        if arguments.preview:
            views = list(tiles(recording, boxes, car))
            views += [np.zeros_like(views[0])] * (-len(views) % 3)
            sheet = np.vstack([np.hstack(views[i : i + 3]) for i in range(0, len(views), 3)])
            cv2.imwrite(str(arguments.preview.with_name(f"{arguments.preview.stem}_{car.name}.png")), sheet)


if __name__ == "__main__":
    main()
