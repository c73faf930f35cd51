"""``srft track``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

if TYPE_CHECKING:
    from srft.evaluation.online import Trajectory


@dataclass(frozen=True, kw_only=True)
class Track:
    """Follow one target through a video and show it.

    srft track davis_cars:light_hatchback --out car.mp4

    srft track drone.mp4 --init 412,230,60,48 --out drone_tracked.mp4 --boxes drone.csv

    srft track man/visible --aux man/infrared --aux-pixels thermal --init 10,20,30,40 --weights winner.safetensors --boxes man.txt

    srft track recording.aedat4 --init 120,80,40,40 --start 200 --frames 500 --out recording.mp4
    """

    video: tyro.conf.Positional[str]
    """Video file, folder of images (in natural order of their names), AEDAT 4 recording with frames, or a sequence that ships with the
    package: davis_cars:light_hatchback, davis_cars:white_sedan, davis_cars:dark_car."""
    init: str | None = None
    """The target in the first frame: left,top,width,height in pixels. Shipped sequences know theirs."""
    aux: str | None = None
    """Video file or folder of the other sensor, aligned with the video; paired by position."""
    aux_pixels: Literal["picture", "depth", "thermal"] = "picture"
    """What images of --aux show: pictures (8-bit grey or colour), depth in millimetres (16-bit), or thermal counts (16-bit)."""
    events: Path | None = None
    """Recording of an event camera that sees what the video shows, pixel for pixel; the auxiliary modality."""
    times: Path | None = None
    """Time of each frame on the clock of --events, microseconds, one a line. Without it both start together."""
    representation: Literal["polarity", "red_blue", "three_windows"] = "polarity"
    """What events look like."""
    weights: str = "tiny_rgb"
    """Name of shipped weights, a file, or a checkpoint directory. Where there is an auxiliary modality, an RGB tracker is carried into two
    streams."""
    rgb_only: bool = False
    """Leave the auxiliary modality out."""
    out: Path | None = None
    """Video to write, .mp4 or .avi: boxes and scores on the frames, the auxiliary images beside them."""
    boxes: Path | None = None
    """Results to write: .txt (left,top,width,height of each frame, as benchmark kits read; scores in NAME_scores.txt), .csv or .json."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; a GPU if there is one when left out."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network."""
    start: int = 0
    """First frame, from 0."""
    frames: int | None = None
    """How many frames; to the end when left out."""
    fps: float | None = None
    """Frames per second of a folder of images (30 when left out), and of --out."""


def parse_box(text: str) -> list[float]:
    """Read a box.

    Args:
        text: ``left,top,width,height``.

    Returns:
        Four numbers.

    Raises:
        ValueError: it is something else.
    """
    try:
        box = [float(number) for number in text.split(",")]
    except ValueError:
        box = []
    if len(box) != 4:
        raise ValueError(f"--init is {text!r}; expected left,top,width,height in pixels, such as 412,230,60,48")
    return box


def write_boxes(path: Path, trajectory: Trajectory, start: int) -> None:
    """Write a trajectory as text.

    Args:
        path: ``.txt``, ``.csv`` or ``.json``.
        trajectory: boxes and scores.
        start: number of its first frame.
    """
    from srft.files import write_json, write_text

    boxes, scores = trajectory.boxes.round(4).tolist(), trajectory.scores.round(6).tolist()
    rows = [",".join(f"{value:.4f}" for value in box) for box in boxes]
    if path.suffix == ".json":
        write_json(path, {"name": trajectory.name, "start": start, "boxes_ltwh": boxes, "scores": scores})
    elif path.suffix == ".csv":
        lines = [f"{start + i},{row},{score:.6f}" for i, (row, score) in enumerate(zip(rows, scores, strict=True))]
        write_text(path, "\n".join(["frame,left,top,width,height,score", *lines, ""]))
    else:
        write_text(path, "\n".join([*rows, ""]))
        write_text(path.with_name(f"{path.stem}_scores.txt"), "\n".join([*(f"{score:.6f}" for score in scores), ""]))


def run(command: Track) -> None:
    """Track, write and print the speed.

    Args:
        command: the options.

    Raises:
        ValueError: options, files or the target are not as they should be.
    """
    if command.out is None and command.boxes is None:
        raise ValueError("nothing would be kept; expected --out VIDEO.mp4, --boxes FILE.csv, or both")
    if command.boxes and command.boxes.suffix not in (".txt", ".csv", ".json"):
        raise ValueError(f"--boxes is {command.boxes}; expected a name ending in .txt, .csv or .json")
    if command.start < 0 or (command.frames is not None and command.frames < 1):
        raise ValueError(f"--start {command.start} --frames {command.frames}; expected a first frame from 0 and at least one frame")
    if command.fps is not None and not 0 < command.fps < math.inf:
        raise ValueError(f"--fps is {command.fps:g}; expected a positive rate")
    given = parse_box(command.init) if command.init else None

    import contextlib
    import time

    import numpy as np
    import torch
    from tqdm import tqdm

    from srft.data.clip import open_clip
    from srft.data.frames import read_ahead
    from srft.data.video import video_writer
    from srft.evaluation.online import OnlineTracker, Tracked, Trajectory
    from srft.evaluation.overlay import overlay
    from srft.model.pretrained import load_tracker
    from srft.training.step import tuned_tracker

    clip = open_clip(
        command.video,
        aux=command.aux,
        aux_pixels=command.aux_pixels,
        events=command.events,
        times=command.times,
        fps=command.fps,
        representation=command.representation,
    )
    stop = len(clip) if command.frames is None else min(len(clip), command.start + command.frames)
    if command.start >= len(clip):
        raise ValueError(f"--start is {command.start}; {command.video} has {len(clip)} frames, from 0")
    if given is None and clip.box is not None and command.start == 0:
        given = clip.box.tolist()
    if given is None:
        raise ValueError(f"where is the target in frame {command.start}? Expected --init left,top,width,height in pixels")

    two = clip.has_aux and not command.rgb_only
    if Path(command.weights).is_dir():
        network = tuned_tracker(Path(command.weights))
    else:
        network = load_tracker(command.weights)
        if two and network.streams == 1:
            network = load_tracker(command.weights, streams=2)
    device = command.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tracker = OnlineTracker(network, device=device, precision=command.precision, rgb_only=not two)

    boxes, scores, seconds = np.empty((stop - command.start, 4)), np.ones(stop - command.start), 0.0
    with contextlib.ExitStack() as stack:
        writer = None
        numbers = range(command.start, stop)
        for i, frame in zip(tqdm(numbers, unit="frame", disable=None), read_ahead(clip.frame, numbers), strict=True):
            begun = time.perf_counter()
            if i == command.start:
                tracker.initialize(frame, np.array(given))
                tracked = Tracked(np.array(given), 1.0)
            else:
                tracked = tracker.track(frame)
                seconds += time.perf_counter() - begun
            boxes[i - command.start], scores[i - command.start] = tracked
            if command.out:
                picture = overlay(frame, tracked.box, f"{i}  {tracked.score:.2f}", aux=two)
                if writer is None:
                    height, width = picture.shape[:2]
                    writer = stack.enter_context(video_writer(command.out, fps=command.fps or clip.fps, width=width, height=height))
                writer.write(picture)
    if command.boxes:
        write_boxes(command.boxes, Trajectory(name=clip.name, boxes=boxes, scores=scores), command.start)
    speed = f", {(len(boxes) - 1) / seconds:.1f} frames/s in the tracker" if seconds else ""
    written = " and ".join(str(path) for path in (command.out, command.boxes) if path)
    print(f"{len(boxes)} frames{speed}, {network.streams if two else 1} stream(s) on {device}; wrote {written}")
