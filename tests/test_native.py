import functools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest

from srft.data.events import event_image, read_aedat4
from srft.data.native import FE108_OFFSET, LAYOUTS, Benchmark, infrared_boxes, write_native
from srft.data.synthetic import Capture, record
from srft.data.thermal import thermal_image

LENGTH = 12
ABSENT = 6  # number of a sequence of the test split with absent frames


@functools.cache
def recorded(modality: str) -> tuple[Capture, ...]:
    """Three sequences, the last with absent frames."""
    return tuple(record("target-test", i, seed=7, length=LENGTH, modality=modality) for i in (0, 1, ABSENT))


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Every benchmark on disk: root, captures, folders."""
    out = {}
    for benchmark, layout in LAYOUTS.items():
        root, captures = tmp_path_factory.mktemp(benchmark), recorded(layout.modality)
        out[benchmark] = (root, captures, write_native(benchmark, root, captures))
    return out


def table(path: Path) -> np.ndarray:
    return np.array([[float(v) for v in line.split(",")] for line in path.read_text().splitlines()])


def image(path: Path) -> np.ndarray:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None, path
    return pixels if pixels.ndim == 2 else pixels[..., ::-1]


def test_there_is_a_layout_for_every_benchmark():
    assert set(LAYOUTS) == set(get_args(Benchmark))


def test_the_third_sequence_has_absent_frames(trees):
    for _, captures, _ in trees.values():
        assert captures[2].absent.any()


ANNOTATIONS = {
    "fe108": "groundtruth_rect.txt",
    "visevent": "groundtruth.txt",
    "coesot": "groundtruth.txt",
    "depthtrack": "groundtruth.txt",
    "vot-rgbd2022": "groundtruth.txt",
    "lasher": "visible.txt",
    "rgbt234": "visible.txt",
}


@pytest.mark.parametrize("official", LAYOUTS)
def test_boxes_and_absent_rows_are_as_published(trees, official):
    _, captures, folders = trees[official]
    for capture, folder in zip(captures, folders, strict=True):
        rows = table(folder / ANNOTATIONS[official])
        seen = ~capture.absent
        tolerance = 0.5 * 10.0 ** -LAYOUTS[official].decimals + 1e-9
        np.testing.assert_allclose(rows[seen], capture.boxes[seen], atol=tolerance)
        if official in ("depthtrack", "vot-rgbd2022"):
            assert np.isnan(rows[capture.absent]).all()
        elif official == "rgbt234":
            np.testing.assert_allclose(rows, capture.boxes, atol=tolerance)
        else:
            assert (rows[capture.absent] == 0).all()


@pytest.mark.parametrize(("official", "name"), [("visevent", "absent_label.txt"), ("coesot", "absent.txt")])
def test_absent_flags_are_one_where_the_target_is_present(trees, official, name):
    for capture, folder in zip(*trees[official][1:], strict=True):
        np.testing.assert_array_equal([int(line) for line in (folder / name).read_text().splitlines()], ~capture.absent)


RGB_FOLDERS = {
    "fe108": ("img", ("0001.jpg", "0001.jpg", "0001.jpg")),
    "visevent": ("vis_imgs", ("frame0000.bmp", "frame0017.bmp", "frame0001.bmp")),
    "coesot": ("{name}_aps", ("frame0000.bmp", "frame0000.png", "frame0000.bmp")),
    "depthtrack": ("color", ("00000001.jpg",) * 3),
    "vot-rgbd2022": ("color", ("00000001.jpg",) * 3),
    "lasher": ("visible", ("v000.jpg", "000001.jpg", "v000.jpg")),
    "rgbt234": ("visible", ("00001v.jpg",) * 3),
}


@pytest.mark.parametrize("official", LAYOUTS)
def test_rgb_frames_have_the_official_names_and_show_the_frames(trees, official):
    _, captures, folders = trees[official]
    pattern, first = RGB_FOLDERS[official]
    for capture, folder, name in zip(captures, folders, first, strict=True):
        files = sorted((folder / pattern.format(name=folder.name)).iterdir())
        assert files[0].name == name
        assert len(files) == LENGTH
        for i in (0, LENGTH - 1):
            difference = np.abs(image(files[i]).astype(float) - capture.rgb[i])
            assert difference.max() == 0 if files[i].suffix in (".bmp", ".png") else difference.mean() < 12


def test_depth_is_16_bit_millimetres(trees):
    for benchmark in ("depthtrack", "vot-rgbd2022"):
        for capture, folder in zip(*trees[benchmark][1:], strict=True):
            np.testing.assert_array_equal(image(folder / "depth" / f"{LENGTH:08d}.png"), capture.raw[-1])


def test_thermal_frames_are_8_bit_and_boxes_of_rgbt234_differ(trees):
    for benchmark, names in (("lasher", ("i005.jpg", "000006.jpg", "i005.jpg")), ("rgbt234", ("00006i.jpg",) * 3)):
        for capture, folder, name in zip(*trees[benchmark][1:], names, strict=True):
            frame = image(folder / "infrared" / name)
            assert frame.dtype == np.uint8
            assert np.abs(frame.astype(float) - thermal_image(capture.raw[5])).mean() < 6
    _, captures, folders = trees["rgbt234"]
    differs = np.concatenate([(table(f / "visible.txt") != table(f / "infrared.txt")).any(1) for f in folders])
    assert 0.7 < differs.mean() < 1
    np.testing.assert_array_equal(table(folders[0] / "infrared.txt"), infrared_boxes(captures[0]))
    for _, _, written in (trees["lasher"], trees["rgbt234"]):
        assert all((f / "init.txt").read_bytes() == (f / "visible.txt").read_bytes() for f in written)


def test_event_images_and_recordings_hold_the_events(trees):
    for benchmark in ("visevent", "coesot"):
        for number, (capture, folder) in enumerate(zip(*trees[benchmark][1:], strict=True)):
            shown = sorted((folder / ("event_imgs" if benchmark == "visevent" else f"{folder.name}_dvs")).iterdir())
            assert len(shown) == LENGTH
            wanted = event_image(capture.raw[capture.cuts[3] : capture.cuts[4]], 120, 160)
            np.testing.assert_array_equal(image(shown[3]), wanted)
            path = folder / f"{folder.name}.aedat4"
            assert path.exists() == (benchmark == "coesot" or number != 2)
            if path.exists():
                recording = read_aedat4(path)
                np.testing.assert_array_equal(recording.events, capture.raw)
                inside = np.searchsorted(recording.events["t"], recording.exposures[:, 1])
                np.testing.assert_array_equal(inside, capture.cuts[1:])


def test_the_recording_of_fe108_begins_before_the_annotated_frames(trees):
    root, captures, folders = trees["fe108"]
    assert (root / "test" / "pair.txt").read_text() == "".join(f"{f.name}\t{FE108_OFFSET}\n" for f in folders)
    recording = read_aedat4(folders[0] / "events.aedat4")
    assert len(recording.frames) == LENGTH + FE108_OFFSET
    for k in (1, 7):  # the first frame's window begins with the recording
        before, time = recording.frame_times[FE108_OFFSET + k - 1 : FE108_OFFSET + k + 1]
        window = recording.events[(recording.events["t"] >= before) & (recording.events["t"] < time)]
        wanted = captures[0].raw[captures[0].cuts[k] : captures[0].cuts[k + 1]]
        for name in ("x", "y", "p"):
            np.testing.assert_array_equal(window[name], wanted[name])
    assert (np.diff(recording.frame_times) > 0).all()


def test_a_vot_workspace_has_anchors_on_visible_frames(trees):
    root, captures, folders = trees["vot-rgbd2022"]
    assert (root / "sequences" / "list.txt").read_text().split() == [f.name for f in folders]
    assert "stack: vot2022/rgbd" in (root / "config.yaml").read_text()
    for capture, folder in zip(captures, folders, strict=True):
        anchors = np.array([int(line) for line in (folder / "anchor.value").read_text().splitlines()])
        assert len(anchors) == LENGTH
        assert anchors[0] == 1
        assert (anchors == -1).sum() == 1
        assert not capture.absent[anchors != 0].any()
        properties = dict(line.split("=") for line in (folder / "sequence").read_text().splitlines())
        assert properties["length"] == str(LENGTH)
        assert (folder / (properties["channels.depth"] % 1)).exists()


@pytest.mark.parametrize(
    ("official", "name"), [("visevent", "test/testlist.txt"), ("coesot", "test/list.txt"), ("lasher", "testingsetList.txt")]
)
def test_lists_name_the_sequences(trees, official, name):
    root, captures, _ = trees[official]
    assert (root / name).read_text().split() == [capture.name for capture in captures]


def test_wrong_wishes_are_refused_and_leave_nothing(tmp_path):
    capture = record("target-test", 0, seed=7, length=3, modality="rgbd")
    with pytest.raises(ValueError, match=r"'otb'.*'fe108'"):
        write_native("otb", tmp_path, [capture])
    with pytest.raises(ValueError, match=r"rgbt234 has no split 'train'; expected one of \('test',\)"):
        write_native("rgbt234", tmp_path, [capture], split="train")
    with pytest.raises(ValueError, match="target-test-0000 is rgbd; lasher has rgbt"):
        write_native("lasher", tmp_path, [capture])
    assert list(tmp_path.iterdir()) == []
    write_native("depthtrack", tmp_path, [capture])
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="target-test-0000: exists already"):
        write_native("depthtrack", tmp_path, [capture])
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_lists_keep_what_an_earlier_call_wrote(tmp_path):
    first, second, third = (record("target-train", i, seed=7, length=2, modality="rgbt") for i in range(3))
    for capture in (first, second):
        write_native("lasher", tmp_path, [capture])
    shutil.rmtree(tmp_path / "testingset" / first.name)
    write_native("lasher", tmp_path, [third])
    assert (tmp_path / "testingsetList.txt").read_text().split() == [second.name, third.name]


def test_a_sequence_that_cannot_be_written_leaves_no_folder(tmp_path, monkeypatch):
    capture = record("target-test", 0, seed=7, length=3, modality="rgbd")
    monkeypatch.setattr(cv2, "imwrite", lambda *_: False)
    with pytest.raises(OSError, match=r"00000001\.jpg: the image could not be written"):
        write_native("depthtrack", tmp_path, [capture])
    assert list((tmp_path / "test").iterdir()) == []


def srft(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "srft.cli", *arguments], capture_output=True, text=True)


def test_the_command_writes_both_splits_and_refuses_a_second_time(tmp_path):
    command = ("data", "synth", "lasher", str(tmp_path), "--sequences", "1", "--length", "2")
    done = srft(*command)
    assert done.returncode == 0, done.stderr
    assert "1 sequences of 2 frames" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"trainingset", "testingset", "trainingsetList.txt", "testingsetList.txt"}
    again = srft(*command)
    assert again.returncode == 1
    assert again.stderr.strip().count("\n") == 0
    assert "exists already; choose another root" in again.stderr
