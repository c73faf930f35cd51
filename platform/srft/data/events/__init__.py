"""Event streams: recordings of all formats, frame-synchronous windows, representations, and a simulator from video.

Events are one structured array of :data:`EVENT_DTYPE`, sorted by time.
"""

from srft.data.events.aedat4 import read_aedat4
from srft.data.events.files import open_events, read_events
from srft.data.events.recording import EVENT_DTYPE, EventStream, Recording
from srft.data.events.representations import REPRESENTATIONS, event_image, polarity_image, represent
from srft.data.events.simulate import simulate_events, simulate_from_video
from srft.data.events.windows import frame_windows

__all__ = [
    "EVENT_DTYPE",
    "REPRESENTATIONS",
    "EventStream",
    "Recording",
    "event_image",
    "frame_windows",
    "open_events",
    "polarity_image",
    "read_aedat4",
    "read_events",
    "represent",
    "simulate_events",
    "simulate_from_video",
]
