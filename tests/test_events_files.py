"""Readers of event files: streams encoded word by word here, real recordings, and what is wrong with damaged ones."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.data import events as ev
from tests.reference import event_files as encode

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "events"
RECORDING, TUMBLING = DATA / "davis346.aedat4", DATA / "dvs.es"
needs_recording = pytest.mark.skipif(not RECORDING.is_file(), reason=f"no recording at {RECORDING}")
needs_tumbling = pytest.mark.skipif(not TUMBLING.is_file(), reason=f"no recording at {TUMBLING}")
WIDTH, HEIGHT = 40, 30


def read(path, chunk=1 << 22, **options):
    parts = list(ev.open_events(path, chunk=chunk, **options).chunks())
    return [event for part in parts for event in part.tolist()]


def write(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


ENCODERS = {
    "es": lambda events: encode.event_stream(events, WIDTH, HEIGHT, resets=range(0, len(events), 7)),
    "es atis": lambda events: encode.event_stream_atis(events, WIDTH, HEIGHT),
    "evt2": lambda events: encode.header(WIDTH, HEIGHT, "2.0") + encode.evt2(events),
    "evt3": lambda events: encode.header(WIDTH, HEIGHT, "3.0") + encode.evt3(events),
    "evt3 single": lambda events: encode.header(WIDTH, HEIGHT, "3.0") + encode.evt3(events, vectors=False),
    "dat": lambda events: encode.dat(events, WIDTH, HEIGHT),
}

EVENTS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 3), st.integers(0, 400), st.sampled_from([62, 63, 64, 126, 127, 128, 254, 4095, 4096, 20_000])),
        st.integers(0, WIDTH - 1),
        st.integers(0, HEIGHT - 1),
        st.integers(0, 1),
    ),
    max_size=60,
)
"""Time since the event before, column, row, polarity."""


def absolute(gaps):
    times = np.cumsum([gap for gap, *_ in gaps]).tolist()
    return [(t, *rest) for t, (_, *rest) in zip(times, gaps, strict=True)]


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=40, deadline=None)
@given(gaps=EVENTS, chunk=st.sampled_from([1, 2, 7, 16, 100, 1 << 22]), rows=st.booleans())
def test_encoded_streams_come_back_however_they_are_cut(tmp_path_factory, name, gaps, chunk, rows):
    events = absolute(gaps if name.startswith("es") else [(300 * gap if gap > 4000 else gap, *rest) for gap, *rest in gaps])
    if rows:  # runs that vectors can hold
        events = sorted({(t // 512 * 512, x, y // 10, p) for t, x, y, p in events}, key=lambda e: (e[0], e[2], e[3], e[1]))
    path = write(tmp_path_factory.mktemp("events"), "file", ENCODERS[name](events))
    assert read(path, chunk) == [(t, x, y, bool(p)) for t, x, y, p in events]
    stream = ev.open_events(path)
    assert (stream.width, stream.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(("name", "turn"), [("evt3", 1 << 24), ("dat", 1 << 32), ("evt2", 1 << 34)])
@pytest.mark.parametrize("chunk", [24, 1 << 22])
def test_clocks_that_roll_over_go_on(tmp_path, name, turn, chunk):
    step = turn // 4 if name != "evt3" else 2_000_000
    events = [(i * step + i % 5, i % WIDTH, i % HEIGHT, i % 2) for i in range(40)]
    assert events[-1][0] > 3 * turn
    got = read(write(tmp_path, "file", ENCODERS[name](events)), chunk)
    assert got == [(t, x, y, bool(p)) for t, x, y, p in events]


def test_a_raw_file_may_start_in_the_middle_of_a_stream(tmp_path):
    """What comes before the first full time has none, and is left out."""
    words = struct.pack("<6H", 0x2005, 0x6007, 5, 0x2806, 0x8001, 0x6002) + struct.pack("<H", 0x2807)
    assert read(write(tmp_path, "a.raw", encode.header(WIDTH, HEIGHT, "3.0") + words)) == [(1 << 12 | 2, 7, 5, True)]
    words = struct.pack("<3I", 1 << 28 | 3 << 11 | 4, 8 << 28 | 2, 1 << 28 | 9 << 22 | 3 << 11 | 4)
    assert read(write(tmp_path, "b.raw", encode.header(WIDTH, HEIGHT, "2.0") + words)) == [(2 << 6 | 9, 3, 4, True)]


def test_headers_of_prophesee_files(tmp_path):
    events = [(100, 1, 2, 1), (300, 3, 4, 0)]
    expected = [(t, x, y, bool(p)) for t, x, y, p in events]
    path = write(tmp_path, "format.raw", b"% format EVT3;height=30;width=40\n% end\n" + encode.evt3(events))
    assert read(path) == expected
    assert (ev.open_events(path).width, ev.open_events(path).height) == (40, 30)
    big = np.frombuffer(encode.evt3(events), "<u2").astype(">u2").tobytes()
    assert read(write(tmp_path, "big.raw", b"% evt 3.0\n% endianness big\n" + big)) == expected
    path = write(tmp_path, "unsized.raw", b"% evt 2.0\n" + encode.evt2(events))
    assert ev.open_events(path).width is None
    assert ev.read_events(path).frames.shape == (0, 5, 4)  # as far as there are events
    assert ev.read_events(path, size=(40, 30)).frames.shape == (0, 30, 40)


def columns(events):
    t, x, y, p = (np.array(column) for column in zip(*events, strict=True))
    return {"t": t, "x": x.astype(np.uint16), "y": y.astype(np.uint16), "p": p}


EXAMPLE = [(5, 1, 2, 1), (5, 3, 4, 0), (1_500_000, 39, 29, 1), (2_000_001, 0, 0, 0), (3_000_000, 7, 8, 1)]
EXPECTED = [(t, x, y, bool(p)) for t, x, y, p in EXAMPLE]


def test_numpy_files(tmp_path):
    c = columns(EXAMPLE)
    np.savez(tmp_path / "a.npz", ts=c["t"] * 1e-6, xs=c["x"], ys=c["y"], pol=c["p"] * 2 - 1, width=40, height=[30])
    np.savez_compressed(tmp_path / "b.npz", timestamps=c["t"], x=c["x"], y=c["y"], on=c["p"] > 0)
    np.save(tmp_path / "c.npy", np.stack([c[k].astype(np.int64) for k in "txyp"], axis=1))
    structured = np.empty(len(EXAMPLE), ev.EVENT_DTYPE)
    for name in "txyp":
        structured[name] = c[name]
    np.save(tmp_path / "d.npy", structured)
    np.savez(tmp_path / "e.npz", events=structured)
    for name in ("a.npz", "b.npz", "c.npy", "d.npy", "e.npz"):
        for chunk in (8, 16, 1 << 22):
            assert read(tmp_path / name, chunk) == EXPECTED, name
    assert ev.open_events(tmp_path / "a.npz").width == 40


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("", "{t},{x},{y},{p}"),
        ("# a comment\n\n", "{t} {x} {y} {p}"),
        ("x;y;timestamp;polarity\n", "{x};{y};{t};{p}"),
        ("\ufefft,x,y,p\r\n", "{t},{x},{y},{p}\r"),
        ("\ufeff", "{t},{x},{y},{p}"),
        ("# first\nt\tx\ty\ton\n", "{t}\t{x}\t{y}\t{p}"),
        ("", "{s:.6f}  {x}  {y}  {p}"),
        ("id,time,x,y,p\n", "9,{s:.6e},{x},{y},{p}"),
    ],
)
@pytest.mark.parametrize("chunk", [8, 24, 1 << 22])
def test_text_tables(tmp_path, header, row, chunk):
    lines = [row.format(t=t, s=t / 1e6, x=x, y=y, p=p) for t, x, y, p in EXAMPLE]
    path = write(tmp_path, "events.csv", (header + "\n".join(lines) + "\n").encode())
    got = read(path, chunk)
    if ":.6e" in row:  # seven digits
        assert [e[1:] for e in got] == [e[1:] for e in EXPECTED]
        assert [e[0] for e in got] == [5, 5, 1_500_000, 2_000_001, 3_000_000]
    else:
        assert got == EXPECTED


def test_hdf5_layouts(tmp_path):
    h5py = pytest.importorskip("h5py")
    c = columns(EXAMPLE)
    with h5py.File(tmp_path / "dsec.h5", "w") as file:
        for name in "txyp":
            file.create_dataset(f"events/{name}", data=c[name], chunks=(2,), compression="gzip")
        file["t_offset"], file["ms_to_idx"] = 1_000, np.zeros(3)
    with h5py.File(tmp_path / "deep.hdf5", "w") as file:
        for name, key in (("ts", "t"), ("xs", "x"), ("ys", "y"), ("ps", "p")):
            file[f"davis/left/{name}"] = c[key] * 1e-6 if key == "t" else c[key]
        file["davis/other"] = np.zeros(3)
    with h5py.File(tmp_path / "compound.h5", "w") as file:
        table = np.empty(len(EXAMPLE), [("x", "<u2"), ("y", "<u2"), ("p", "<i2"), ("t", "<i8")])
        for name in "txyp":
            table[name] = c[name]
        file["CD/events"] = table
        file["CD/indexes"] = np.zeros(3)
        file.attrs["geometry"] = "40x30"
    for chunk in (16, 1 << 22):
        assert read(tmp_path / "dsec.h5", chunk) == [(t + 1_000, *rest) for t, *rest in EXPECTED]
        assert read(tmp_path / "deep.hdf5", chunk) == EXPECTED
        assert read(tmp_path / "compound.h5", chunk) == EXPECTED
    assert (ev.open_events(tmp_path / "compound.h5").width, ev.open_events(tmp_path / "compound.h5").height) == (40, 30)
    with h5py.File(tmp_path / "compound.h5", "r+") as file:  # as other languages write text and numbers
        file.attrs["geometry"] = np.bytes_("41x31")
    with h5py.File(tmp_path / "deep.hdf5", "r+") as file:
        file.attrs["width"], file.attrs["height"] = np.array([42]), np.array([[32]])
    sizes = [(stream.width, stream.height) for stream in map(ev.open_events, (tmp_path / "compound.h5", tmp_path / "deep.hdf5"))]
    assert sizes == [(41, 31), (42, 32)]
    assert ev.open_events(tmp_path / "dsec.h5").width is None

    with h5py.File(tmp_path / "two.h5", "w") as file:
        for side in ("left", "right"):
            for name in "txyp":
                file[f"{side}/{name}"] = c[name]
    with pytest.raises(ValueError, match=r"two\.h5: has 2 tables of events \['left', 'right'\]"):
        ev.open_events(tmp_path / "two.h5")
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["images"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"none\.h5: has 0 tables of events \[\] among \['images'\]"):
        ev.open_events(tmp_path / "none.h5")
    whole = (tmp_path / "dsec.h5").read_bytes()
    with pytest.raises(ValueError, match="damaged or cut off"):
        ev.open_events(write(tmp_path, "cut.h5", whole[: len(whole) // 2]))


def test_hdf5_compressed_as_dsec_is_and_damaged_inside(tmp_path):
    h5py, hdf5plugin = pytest.importorskip("h5py"), pytest.importorskip("hdf5plugin")
    c = columns(EXAMPLE * 1000)
    c["t"] = np.arange(len(c["t"]))
    with h5py.File(tmp_path / "blosc.h5", "w") as file:
        for name in "txyp":
            file.create_dataset(f"events/{name}", data=c[name], chunks=(1000,), **hdf5plugin.Blosc(cname="zstd"))
    events = ev.read_events(tmp_path / "blosc.h5").events
    assert all(np.array_equal(events[name], c[name]) for name in "txyp")
    with h5py.File(tmp_path / "gzip.h5", "w") as file:
        for name in "txyp":
            file.create_dataset(f"events/{name}", data=c[name], chunks=(1000,), compression="gzip")
        place = file["events/t"].id.get_chunk_info(3).byte_offset
    data = bytearray((tmp_path / "gzip.h5").read_bytes())
    data[place : place + 100] = bytes(100)
    with pytest.raises(ValueError, match=r"damaged\.h5: events: cannot be read .*either .* or its compression.*uv sync --extra hdf5"):
        ev.read_events(write(tmp_path, "damaged.h5", bytes(data)))


def test_hdf5_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    path = write(tmp_path, "events.h5", b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(ValueError, match=r"needs h5py; run uv sync --extra hdf5"):
        ev.open_events(path)


ES = encode.event_stream(EXAMPLE, WIDTH, HEIGHT)
RAW2 = encode.header(WIDTH, HEIGHT, "2.0") + encode.evt2(EXAMPLE)
RAW3 = encode.header(WIDTH, HEIGHT, "3.0") + encode.evt3(EXAMPLE)
DAT = encode.dat(EXAMPLE, WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.es", ES[:18], "cut off inside its header, 18 bytes"),
        ("a.es", ES[:-2], f"ends at byte {len(ES) - 2} inside the event that starts at byte {len(ES) - 5}"),
        ("a.es", ES[:12] + b"\x03" + ES[13:], "version 3.0.0"),
        ("a.es", ES[:15] + b"\x04" + ES[16:], "kind 4"),
        ("a.raw", RAW2[:-3], f"ends at byte {len(RAW2) - 3} inside a word of 4 bytes"),
        ("a.raw", RAW3[:-1], f"ends at byte {len(RAW3) - 1} inside a word of 2 bytes"),
        ("a.raw", RAW3[:20], "cut off inside its header at byte 20"),
        ("a.raw", RAW3 + struct.pack("<H", 0x1000), f"unknown type 0x1 at byte {len(RAW3)}"),
        ("a.raw", RAW2 + struct.pack("<I", 0x5 << 28), f"unknown type 0x5 at byte {len(RAW2)}"),
        ("a.raw", RAW3.replace(b"evt 3.0", b"evt 2.1"), "encoded as EVT 2.1; expected EVT 2.0 or 3.0"),
        ("a.raw", RAW3.replace(b"40x30", b"40xab"), "size as '40' by 'ab'"),
        ("a.raw", b"% date 2024-01-01\n% end\n", "names no EVT encoding"),
        ("a.dat", DAT[:-1], f"ends at byte {len(DAT) - 1} inside a word of 8 bytes"),
        ("a.dat", DAT.replace(b"Version 2", b"Version 1"), "version 1"),
        ("a.dat", DAT.replace(bytes([0x0C, 8]), bytes([0x0E, 8])), "event type 14"),
        ("a.csv", b"t,x,y\n1,2,3\n", "line 1 is 't,x,y'; expected columns"),
        ("a.csv", b"1,2,3,1\n2,2,3\n", "lines 1 to 2: .*expected 4 numbers a line"),
        ("a.csv", b"1,2,3,1\n2,2,x,1\n", "lines 1 to 2: could not convert string 'x'"),
        ("a.csv", b"1,2,3,1\n2,-2,3,1\n", "x of event 1 is -2.0; expected a whole number from 0 to 65535"),
        ("a.csv", b"1,2,3,1\n2,2.5,3,1\n", "x of event 1 is 2.5"),
        ("a.csv", b"1,2,3,1\n2,2,3,7\n", "p of event 1 is 7.0"),
        ("a.csv", b"1,2,3,1\n2.5,2,3,1\n", "t of event 1 is 2.5; expected whole microseconds"),
        ("a.csv", b"0.1,2,3,1\nnan,2,3,1\n", "t of event 1 is nan"),
        ("a.csv", b"", "line 1 is ''"),
        ("a.npz", b"PK\x03\x04 nothing", "damaged or cut off"),
        ("a.npy", b"\x93NUMPY\x01\x00", "damaged or cut off"),
        ("a.bin", b"something else", "starts with b'something else'; expected AEDAT 4"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, data, words):
    path = write(tmp_path, name, data)
    with pytest.raises(ValueError, match=words) as caught:
        ev.read_events(path)
    assert str(path) in str(caught.value)


def test_wrong_arrays_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", t=[1, 2], x=[1], y=[1, 2], p=[0, 1])
    with pytest.raises(ValueError, match=r"a\.npz"):
        ev.read_events(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", t=[1], x=[1], y=[1])
    with pytest.raises(ValueError, match=r"b\.npz: holds \{'t': \(1,\)"):
        ev.read_events(tmp_path / "b.npz")
    np.save(tmp_path / "c.npy", np.zeros((3, 5)))
    with pytest.raises(ValueError, match=r"c\.npy: holds float64 \(3, 5\)"):
        ev.read_events(tmp_path / "c.npy")
    np.savez(tmp_path / "d.npz", t=[1], x=["a"], y=[1], p=[1])
    with pytest.raises(ValueError, match="column x holds <U1"):
        ev.read_events(tmp_path / "d.npz")


@pytest.mark.parametrize("name", ["evt2", "evt3", "dat", "npy"])
@pytest.mark.parametrize("chunk", [8, 1 << 22])
def test_times_that_decrease_are_named_and_can_be_sorted(tmp_path, name, chunk):
    events = [(5000, 1, 2, 1), (9000, 2, 2, 0), (8000, 3, 2, 1), (9500, 4, 2, 1)]
    if name == "npy":
        path = tmp_path / "a.npy"
        np.save(path, np.array(events))
    else:
        path = write(tmp_path, "file", ENCODERS[name](events))
    with pytest.raises(ValueError, match=r"event 2.*: its time is 8000, before 9000"):
        read(path, chunk)
    assert ev.read_events(path, sort=True).events["x"].tolist() == [1, 3, 2, 4]


@pytest.mark.parametrize("name", ["es", "evt2", "evt3", "evt3 single", "dat"])
def test_events_outside_the_sensor_are_named_with_their_place(tmp_path, name):
    inside, outside = [(10, 1, 2, 1), (20, WIDTH - 1, HEIGHT - 1, 1)], [(30, 2, HEIGHT, 0)]
    data = ENCODERS[name](inside + outside)
    path = write(tmp_path, "file", data)
    with pytest.raises(ValueError, match=rf"event 2 at byte (\d+): y is {HEIGHT}; expected less than {HEIGHT}") as caught:
        ev.read_events(path)
    place = int(str(caught.value).split("at byte ")[1].split(":")[0])
    assert len(ENCODERS[name](inside)) <= place < len(data)
    path = write(tmp_path, "wide", ENCODERS[name]([(10, WIDTH, 0, 1)]))
    with pytest.raises(ValueError, match=f"event 0 at byte .*: x is {WIDTH}"):
        ev.read_events(path)


def test_size_fills_in_and_does_not_contradict(tmp_path):
    np.save(tmp_path / "a.npy", np.array(EXAMPLE))
    with pytest.raises(ValueError, match="y is 29; expected less than 20"):
        ev.read_events(tmp_path / "a.npy", size=(40, 20))
    path = write(tmp_path, "a.dat", DAT)
    assert ev.open_events(path, size=(WIDTH, HEIGHT)).height == HEIGHT
    with pytest.raises(ValueError, match="its sensor has 40x30 pixels, not 30x40"):
        ev.open_events(path, size=(HEIGHT, WIDTH))


def test_empty_recordings(tmp_path):
    for name, encoder in ENCODERS.items():
        recording = ev.read_events(write(tmp_path, name, encoder([])))
        assert len(recording.events) == 0
        assert recording.frames.shape == (0, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match=r"gone\.es: no such file"):
        ev.read_events(tmp_path / "gone.es")


@needs_tumbling
@pytest.mark.parametrize("chunk", [10_000, 1 << 22])
def test_real_event_stream_equals_what_its_authors_decoder_reads(chunk):
    """Sums of what the package ``event-stream`` 1.6.3, run apart from this one, reads from the file."""
    stream = ev.open_events(TUMBLING, chunk=chunk)
    assert (stream.format, stream.width, stream.height) == ("Event Stream 2 (DVS)", 320, 240)
    events = np.concatenate(list(stream.chunks()))
    assert len(events) == 473_225
    assert events[[0, 1, -1]].tolist() == [(0, 0, 239, True), (0, 1, 239, True), (999_000, 38, 46, True)]
    sums = {name: int(events[name].sum(dtype=np.int64)) for name in "txyp"}
    assert sums == {"t": 200_862_071_000, "x": 72_946_016, "y": 57_092_979, "p": 270_001}


@needs_recording
def test_real_aedat4_is_the_same_by_both_readers():
    one, other = ev.read_aedat4(RECORDING), ev.read_events(RECORDING)
    assert np.array_equal(one.events, other.events)
    assert np.array_equal(one.frames, other.frames)
    assert np.array_equal(one.frame_times, other.frame_times)
    assert one.exposures is not None
    assert np.array_equal(one.exposures, other.exposures)
    start, stop = one.exposures.T
    assert ((start <= one.frame_times) & (one.frame_times <= stop)).all()
    assert set(stop - start) == {500}


@needs_recording
def test_real_recording_has_its_frames_and_events():
    recording = ev.read_aedat4(RECORDING)
    assert recording.frames.shape == (59, 260, 346)
    assert recording.frames.dtype == np.uint8
    assert len(recording.events) == 78_830
    assert recording.events.dtype == ev.EVENT_DTYPE
    assert (np.diff(recording.events["t"]) >= 0).all()
    assert set(np.diff(recording.frame_times)) <= {40_000, 40_001}
    windows = ev.frame_windows(recording.events["t"], recording.frame_times)
    assert windows[0] == slice(0, 0)
    assert sum(w.stop - w.start for w in windows) == (recording.events["t"] < recording.frame_times[-1]).sum() > 70_000


@needs_recording
@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "starts with b''"), (10, "starts with"), (16, "cut off inside its header"), (3_000_000, "cut off"), (6_122_000, "cut off")],
)
def test_cut_recording_is_an_error(tmp_path, size, words):
    path = tmp_path / "cut.aedat4"
    path.write_bytes(RECORDING.read_bytes()[:size])
    with pytest.raises(ValueError, match=words) as caught:
        ev.read_aedat4(path)
    assert str(path) in str(caught.value)


@needs_recording
def test_damaged_recording_is_an_error(tmp_path):
    data = bytearray(RECORDING.read_bytes())
    data[2_000_000:2_200_000] = bytes(200_000)  # packets have no checksum: a few wrong pixels go unnoticed, a lost header does not
    path = tmp_path / "damaged.aedat4"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        ev.read_aedat4(path)


@needs_recording
def test_garbled_header_is_an_error(tmp_path):
    """Bytes that are no text in the XML part of the header make the decoder panic instead of raising its own error."""
    data = bytearray(RECORDING.read_bytes())
    at = data.index(b"<attr")
    for garbage in ("\u0104".encode() * 4, b"\xff" * 8, b"<" * 8):
        data[at + 7 : at + 7 + len(garbage)] = garbage
        path = tmp_path / "garbled.aedat4"
        path.write_bytes(data)
        with pytest.raises(ValueError, match="damaged"):
            ev.read_aedat4(path)


def test_missing_and_foreign_files_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.aedat4: no such file"):
        ev.read_aedat4(tmp_path / "gone.aedat4")
    foreign = tmp_path / "foreign.aedat4"
    foreign.write_bytes(b"Event Stream\x02\x00" + bytes(100))
    with pytest.raises(ValueError, match="expected b'#!AER-DAT4"):
        ev.read_aedat4(foreign)
