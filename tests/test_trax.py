"""A client that speaks the TraX protocol, and the tracker that answers it."""

import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.cli import main
from srft.data.benchmarks import open_benchmark
from srft.data.native import write_native
from srft.evaluation.follow import track_sequences
from srft.evaluation.online import OnlineTracker
from srft.evaluation.trax import Message, format_message, parse_box, parse_message, serve
from srft.model.pretrained import load_tracker
from tests.test_native import recorded


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A sequence of VOT-RGBD2022 in a folder whose name has a space, a percent sign and an equals sign."""
    root = tmp_path_factory.mktemp("vot") / "a b%20=c"
    write_native("vot-rgbd2022", root, recorded("rgbd")[:1])
    return open_benchmark("vot-rgbd2022", root)[0]


@pytest.fixture(scope="module")
def network():
    return load_tracker("tiny_rgb", streams=2)


def requests(video, frames, channels=("color", "depth")):
    """Lines of a client, as vot-trax 4 sends them to a tracker of version 3."""
    folder = video.frames.folder
    lines = []
    for i in range(frames):
        images = [f'"file://{folder}/{c}/{i + 1:08d}.{"png" if c == "depth" else "jpg"}"' for c in channels]
        region = [f'"{",".join(f"{v:.4f}" for v in video.boxes[0])}"'] if i == 0 else []
        lines.append(" ".join(["@@TRAX:initialize" if i == 0 else "@@TRAX:frame", *images, *region, '"some.key=a value"', "\n"]))
    return ["noise of some library\n", *lines, "@@TRAX:quit \n"]


def answers(text):
    return [m for line in text.splitlines() if (m := parse_message(line, 2)) is not None]


def test_the_answers_are_what_the_tracker_finds(video, network):
    out = io.StringIO()
    assert serve(OnlineTracker(network), requests(video, len(video)), out, channels=("color", "depth")) == len(video)
    hello, *states = answers(out.getvalue())
    assert hello.kind == "hello"
    assert hello.properties["trax.version"] == "3"
    assert hello.properties["trax.channels"] == "color;depth;"
    (expected,) = track_sequences(network, [video])
    found = np.array([parse_box(state.arguments[0]) for state in states])
    np.testing.assert_allclose(found, expected.boxes, atol=1e-3)
    np.testing.assert_allclose([float(s.properties["confidence"]) for s in states], expected.scores, atol=1e-5)


def test_a_client_can_start_over(video, network):
    out = io.StringIO()
    twice = requests(video, 3)[:-1] + requests(video, 3)
    assert serve(OnlineTracker(network), twice, out, channels=("color", "depth")) == 6
    states = answers(out.getvalue())[1:]
    assert states[:3] == states[3:]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["@@TRAX:frame a b\n"], "client says 'frame'; expected initialize, or quit"),
        (["@@TRAX:dance\n"], "client says 'dance'"),
        (["@@TRAX:initialize a b\n"], "initialize with 2 arguments; expected 3: images of color, depth"),
        (["@@TRAX:initialize data:x file:///b 1,2,3,4\n"], "color image is 'data:x'; expected a path"),
        (['@@TRAX:initialize "file:///no such.jpg" file:///b 1,2,3,4\n'], "no such.jpg"),
    ],
)
def test_nonsense_ends_the_session_and_the_client_is_told(network, lines, message):
    out = io.StringIO()
    with pytest.raises((ValueError, OSError)) as error:
        serve(OnlineTracker(network), lines, out, channels=("color", "depth"))
    assert message in str(error.value)
    assert answers(out.getvalue())[-1].kind == "quit"
    assert message in answers(out.getvalue())[-1].properties["trax.reason"]


def test_regions():
    assert parse_box("1,2,3.5,4").tolist() == [1, 2, 3.5, 4]
    assert parse_box("1,2,5,2,5,8,1,8").tolist() == [1, 2, 4, 6]
    for region in ("m0,0,3,3,1,2", "1", "1,2,3,4,5", ""):
        with pytest.raises(ValueError, match="region"):
            parse_box(region)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=8), min_size=3, max_size=3), st.dictionaries(st.from_regex(r"[a-z.]{1,6}", fullmatch=True), st.text()))
def test_what_is_written_is_read_back(arguments, properties):
    arguments = [a.replace("\r", "") for a in arguments]
    properties = {k: v.replace("\r", "") for k, v in properties.items()}
    message = Message(kind="initialize", arguments=tuple(arguments), properties=properties)
    line = format_message(message)
    assert "\n" not in line
    assert parse_message(line, 2) == message


def test_the_command_speaks_on_standard_streams(video, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(requests(video, 3, ("color",)))))
    monkeypatch.setattr("sys.argv", ["srft", "trax", "tiny_rgb"])
    main()
    hello, *states = answers(capsys.readouterr().out)
    assert hello.properties["trax.channels"] == "color;"
    assert [s.kind for s in states] == ["state"] * 3
    monkeypatch.setattr("sys.argv", ["srft", "trax", "tiny_rgb", "--aux", "depth"])
    with pytest.raises(SystemExit, match="one stream"):
        main()
