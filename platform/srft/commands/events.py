"""``srft events``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

if TYPE_CHECKING:
    import numpy as np

    from srft.data.events.convert import Summary


@dataclass(frozen=True, kw_only=True)
class Events:
    """Say what an event recording holds, and turn it into one image per frame.

    srft events street.aedat4

    srft events street.aedat4 --out street_dvs --representation red_blue

    srft events drive.raw --out drive_events --fps 25

    srft events drive.h5 --size 640 480 --out drive_voxels --representation voxel_grid --bins 5 --frames image_timestamps.txt

    Reads AEDAT 4, Event Stream (.es), Prophesee EVT 2.0, EVT 3.0 and DAT, HDF5, .npz, .npy and text tables. A stopped conversion goes on
    when the same command is given again.
    """

    recording: tyro.conf.Positional[Path]
    """The event recording."""
    out: Path | None = None
    """Write frame0000.png ... (or .npy where the representation is no image) and events.json into this folder."""
    representation: Literal["polarity", "red_blue", "three_windows", "counts", "time_surface", "voxel_grid"] = "polarity"
    """polarity: saturating counts, red and blue on black, what the trackers here are trained with. red_blue: VisEvent and COESOT.
    three_windows: FE108."""
    frames: Path | None = None
    """Text file of frame times in microseconds (or fractions of seconds), one a line, or start and end of each exposure."""
    fps: float | None = None
    """Frames per second from the first event on; for recordings without frames."""
    window: Literal["auto", "interval", "exposure"] = "auto"
    """Events of a frame: those since the frame before, or those during its exposure; auto is exposure for red_blue where exposures are
    known, otherwise interval."""
    duration: int | None = None
    """Instead: so many microseconds before the frame."""
    count: int | None = None
    """Instead: the last so many events before the frame."""
    tau: float = 30_000.0
    """Decay of time_surface, microseconds."""
    bins: int = 5
    """Planes of voxel_grid."""
    size: tuple[int, int] | None = None
    """Width and height of the sensor, for files that do not say it."""
    sort: bool = False
    """Accept events that are not in order of time; holds all of them in memory."""
    json: Path | None = None
    """Write what the recording holds to this file."""


def run(command: Events) -> None:
    """Print the summary; convert if a folder is given.

    Args:
        command: the options.

    Raises:
        ValueError: options contradict each other or the recording.
    """
    import dataclasses

    import numpy as np
    from tqdm import tqdm

    from srft.data.events import aedat4, open_events, read_events, windows
    from srft.data.events.convert import read_frame_times, summarize, write_windows
    from srft.files import write_json

    if command.frames and command.fps is not None:
        raise ValueError("--frames and --fps both say when the frames are; give one")
    if sum(option is not None for option in (command.duration, command.count)) + (command.window != "auto") > 1:
        raise ValueError("--window, --duration and --count each say which events belong to a frame; give one")
    stream = open_events(command.recording, size=command.size)
    sorted_events = [read_events(command.recording, size=command.size, sort=True).events] if command.sort else None

    def chunks() -> Any:
        return stream.chunks() if sorted_events is None else (part for part in sorted_events if len(part))

    summary = summarize(stream, chunks())
    times, exposures, cuts = np.empty(0, np.int64), None, None
    if command.frames:
        times, exposures = read_frame_times(command.frames)
    elif command.fps is not None:
        times = windows.regular_times(summary.first, summary.last, command.fps)
    elif stream.format == aedat4.FORMAT:
        clock = aedat4.frame_clock(stream.path)
        times, exposures, cuts = clock.times, clock.exposures, clock.cuts(command.representation)
    _print(command.recording, summary, times, exposures)
    if command.json:
        write_json(command.json, dataclasses.asdict(summary) | {"seconds": summary.seconds, "frames": len(times)})
    if command.out is None:
        return

    if not len(times):
        raise ValueError(f"{command.recording}: has no frames to go by; give their times with --frames FILE, or a rate with --fps 25")
    if command.window == "exposure" and exposures is None:
        raise ValueError("--window exposure needs exposures: an AEDAT 4 recording with frames, or --frames with start and end on each line")
    kind, edges = "interval", None
    if command.count is not None:
        kind, parts = f"last {command.count} events", windows.windows_by_count(chunks(), times, command.count)
    else:
        if command.duration is not None:
            kind, edges = f"{command.duration} microseconds", windows.duration_edges(times, command.duration)
        elif exposures is not None and (
            command.window == "exposure" or (command.window == "auto" and command.representation == "red_blue")
        ):
            kind, edges = "exposure", exposures
        else:
            edges = windows.interval_edges(times if cuts is None else cuts)
        parts = windows.windows_in_time(chunks(), edges)
    settings: dict[str, dict[str, Any]] = {"time_surface": {"tau": command.tau}, "voxel_grid": {"bins": command.bins}}
    made = list(
        tqdm(
            write_windows(
                parts,
                edges,
                command.out,
                representation=command.representation,
                settings=settings.get(command.representation, {}),
                height=summary.height,
                width=summary.width,
                total=len(times),
                source={"recording": command.recording.name, "events": summary.events, "first": summary.first, "window": kind},
            ),
            total=len(times),
            unit="frame",
            disable=None,
        )
    )
    written, empty = sum(new for _, new in made), sum(number == 0 for number, _ in made)
    print(f"{command.out}: {len(made)} frames of {command.representation}, window {kind}; {written} written now, {empty} without events")


def _print(path: Path, summary: Summary, times: np.ndarray, exposures: np.ndarray | None) -> None:
    print(f"{path}: {summary.format}, sensor {summary.width}x{summary.height}")
    if summary.events:
        rate = f", {summary.events / summary.seconds:,.0f} events/s" if summary.seconds else ""
        print(f"  {summary.events:,} events, {100 * summary.brighter / summary.events:.1f} % brighter, in {summary.seconds:.3f} s{rate}")
    else:
        print("  no events")
    if len(times):
        span = (times[-1] - times[0]) * 1e-6
        rate = f", {(len(times) - 1) / span:.2f} per second" if span else ""
        exposed = f", exposed for {(exposures[:, 1] - exposures[:, 0]).mean() * 1e-3:.2f} ms" if exposures is not None else ""
        print(f"  {len(times):,} frames{rate}{exposed}")
