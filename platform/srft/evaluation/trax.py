"""A tracker behind the TraX protocol, by which vot-toolkit and others drive programs: lines of text over standard streams.

Written from the protocol's specification (https://trax.readthedocs.io, protocol). Version 3 is announced, in which ``initialize`` brings
images and region together: clients of version 3 and of version 4 both speak it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO
from urllib.parse import unquote

import numpy as np

from srft.data.frames import Frame
from srft.data.images import StoredImage, decode
from srft.evaluation.online import OnlineTracker

__all__ = ["Channel", "Message", "format_message", "parse_box", "parse_message", "serve"]

Channel = Literal["color", "depth", "ir"]
"""An image of a frame, as the protocol calls it."""

PREFIX = "@@TRAX:"
_RENDERINGS: Mapping[Channel, str] = {"color": "image", "depth": "depth:jet", "ir": "thermal"}
_ARGUMENT = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')
_ESCAPES = {"n": "\n"}


@dataclass(frozen=True, kw_only=True)
class Message:
    """One line of the protocol."""

    kind: str
    """``hello``, ``initialize``, ``frame``, ``state`` or ``quit``."""
    arguments: tuple[str, ...] = ()
    """Images, then the region; what follows is named, ``key=value``."""
    properties: Mapping[str, str] = field(default_factory=dict)


def parse_message(line: str, images: int) -> Message | None:
    """Read a line.

    Args:
        line: as it came.
        images: how many images a request has.

    Returns:
        The message; None for a line of something else.
    """
    if not line.startswith(PREFIX):
        return None
    kind, _, rest = line[len(PREFIX) :].strip().partition(" ")
    words = [re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), quoted) if quoted else bare for quoted, bare in _ARGUMENT.findall(rest)]
    count = {"initialize": images + 1, "frame": images, "state": 1}.get(kind, 0)
    pairs = (word.partition("=") for word in words[count:])
    return Message(kind=kind, arguments=tuple(words[:count]), properties={key: value for key, _, value in pairs})


def format_message(message: Message) -> str:
    """Write a line.

    Args:
        message: what to say.

    Returns:
        The line, without its end.
    """
    words = [*message.arguments, *(f"{key}={value}" for key, value in message.properties.items())]
    escaped = (word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for word in words)
    return " ".join([PREFIX + message.kind, *(f'"{word}"' for word in escaped)])


def parse_box(region: str) -> np.ndarray:
    """Read a region: a rectangle, or a polygon of which the bounding box is taken.

    Args:
        region: four numbers ltwh, or the coordinates x, y of three points or more; with commas between.

    Returns:
        ``[4]`` ltwh pixels.

    Raises:
        ValueError: it is something else, such as a mask.
    """
    try:
        numbers = np.array([float(number) for number in region.split(",")])
    except ValueError:
        numbers = np.zeros(0)
    if len(numbers) == 4:
        return numbers
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"region is {region[:60]!r}; expected left,top,width,height or the x,y of at least three points")
    points = numbers.reshape(-1, 2)
    return np.concatenate([points.min(0), points.max(0) - points.min(0)])


def serve(tracker: OnlineTracker, requests: Iterable[str], answers: TextIO, *, channels: tuple[Channel, ...], name: str = "srft") -> int:
    """Introduce the tracker and answer a client until it quits or its lines end.

    Args:
        tracker: who tracks.
        requests: lines of the client.
        answers: where to answer, line by line.
        channels: images of a frame in the order in which they are sent: colour, and depth or infrared.
        name: of the tracker.

    Returns:
        Frames that were tracked, first ones among them.

    Raises:
        ValueError: a request makes no sense, or has a frame or box that cannot be tracked; the client is told so first.
        OSError: an image cannot be read; likewise.
    """

    def say(message: Message) -> None:
        answers.write(format_message(message) + "\n")
        answers.flush()

    hello = {"trax.version": "3", "trax.name": name, "trax.image": "path;", "trax.region": "rectangle;"}
    say(Message(kind="hello", properties={**hello, "trax.channels": "".join(f"{channel};" for channel in channels)}))
    served = 0
    try:
        for request in _requests(requests, len(channels)):
            box, score = _answer(tracker, request, channels, started=served > 0)
            served += 1
            region = ",".join(f"{value:.4f}" for value in box)
            say(Message(kind="state", arguments=(region,), properties={"confidence": f"{score:.6f}"}))
    except (ValueError, OSError) as error:
        say(Message(kind="quit", properties={"trax.reason": str(error)}))
        raise
    return served


def _requests(lines: Iterable[str], images: int) -> Iterator[Message]:
    for line in lines:
        message = parse_message(line, images)
        if message is None:
            continue
        if message.kind == "quit":
            return
        yield message


def _answer(tracker: OnlineTracker, request: Message, channels: tuple[Channel, ...], *, started: bool) -> tuple[np.ndarray, float]:
    expected = {"initialize": len(channels) + 1, "frame": len(channels)}.get(request.kind)
    if expected is None or (request.kind == "frame" and not started):
        raise ValueError(f"client says {request.kind!r}; expected initialize, {'frame, ' if started else ''}or quit")
    if len(request.arguments) != expected:
        raise ValueError(f"{request.kind} with {len(request.arguments)} arguments; expected {expected}: images of {', '.join(channels)}")
    images = [_picture(uri, channel) for uri, channel in zip(request.arguments, channels, strict=False)]
    frame: Frame = images[0] if len(images) == 1 else (images[0], images[1])
    if request.kind == "initialize":
        box = parse_box(request.arguments[-1])
        tracker.initialize(frame, box)
        return box, 1.0
    return tracker.track(frame)


def _picture(uri: str, channel: Channel) -> np.ndarray:
    scheme, _, path = uri.partition("://")
    if scheme != "file":
        raise ValueError(f"{channel} image is {uri[:60]!r}; expected a path, file:///...")
    plain = Path(path)
    file = plain if plain.exists() else Path(unquote(path))
    return decode(StoredImage(file.read_bytes(), _RENDERINGS[channel], str(file))).pixels
