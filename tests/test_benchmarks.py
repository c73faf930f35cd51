"""Readers on trees in the official layouts: those that the synthetic world writes, and small ones with each trap."""

import json
import os
import pickle
import shutil
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from srft.commands.data_check import Check, run
from srft.data.benchmarks import LAYOUTS, DataError, list_split, open_benchmark
from srft.data.benchmarks.check import check_benchmark
from srft.data.benchmarks.images import ImageFiles
from srft.data.benchmarks.splits import held_out, shipped_list
from srft.data.depth import depth_image
from srft.data.events import event_image, read_aedat4, represent
from srft.data.images import StoredFrames, decode_frame
from srft.data.native import FE108_OFFSET, write_native
from srft.data.synthetic import record
from srft.data.thermal import thermal_image

LENGTH = 8
MODALITIES = {
    "fe108": "rgbe",
    "visevent": "rgbe",
    "coesot": "rgbe",
    "depthtrack": "rgbd",
    "vot-rgbd2022": "rgbd",
    "lasher": "rgbt",
    "rgbt234": "rgbt",
}


@pytest.fixture(scope="module")
def captures():
    """By modality, two recordings of the world; the second loses its target in its last two frames."""
    recorded = {}
    for modality in ("rgbe", "rgbd", "rgbt"):
        recorded[modality] = [record("target-test", index, seed=7, length=LENGTH, modality=modality) for index in (0, 1)]
        for capture in recorded[modality]:
            capture.absent[:] = False
        recorded[modality][1].absent[-2:] = True
    return recorded


@pytest.fixture(scope="module")
def trees(captures, tmp_path_factory):
    roots = {}
    for benchmark, modality in MODALITIES.items():
        roots[benchmark] = tmp_path_factory.mktemp(benchmark)
        write_native(benchmark, roots[benchmark], captures[modality])
    return roots


def auxiliary(capture, benchmark):
    if benchmark in ("depthtrack", "vot-rgbd2022"):
        return [depth_image(frame) for frame in capture.raw]
    if benchmark in ("lasher", "rgbt234"):
        return [thermal_image(frame) for frame in capture.raw]
    return [event_image(capture.raw[a:b], *capture.rgb.shape[1:3]) for a, b in pairwise(capture.cuts)]


@pytest.mark.parametrize("named", MODALITIES)
def test_what_was_written_is_read(trees, captures, named):
    read = open_benchmark(named, trees[named])
    expected = captures[MODALITIES[named]]
    assert isinstance(read[0].frames, StoredFrames)
    assert [sequence.name for sequence in read] == [capture.name for capture in expected]
    lossy = named not in ("visevent", "coesot")
    for sequence, capture in zip(read, expected, strict=True):
        keeps_box = named == "rgbt234"  # it has no sign for absence
        assert sequence.absent.tolist() == ([False] * LENGTH if keeps_box else capture.absent.tolist())
        visible = ~capture.absent
        np.testing.assert_allclose(sequence.boxes[visible], capture.boxes[visible], atol=0.5)
        assert (sequence.boxes[~sequence.absent, 2:] > 0).all()
        for i in (0, 3, LENGTH - 1):
            frame = sequence.frames[i]
            assert frame.dtype == np.uint8
            np.testing.assert_array_equal(decode_frame(sequence.frames.stored(i)), frame)
            difference = np.abs(frame[..., :3].astype(int) - capture.rgb[i])
            assert difference.mean() < 4 if lossy else not difference.any()
            if named != "fe108":
                difference = np.abs(frame[..., 3:].astype(int) - auxiliary(capture, named)[i])
                assert difference.mean() < 4 if named in ("lasher", "rgbt234") else not difference.any()


def test_absent_frames_have_the_last_known_box(trees):
    sequence = open_benchmark("depthtrack", trees["depthtrack"])[1]
    assert sequence.absent.tolist() == [False] * (LENGTH - 2) + [True] * 2
    np.testing.assert_array_equal(sequence.boxes[-1], sequence.boxes[LENGTH - 3])


def test_fe108_makes_its_images_from_the_recording(trees, captures):
    """The events are found where pair.txt says that the sequence starts in the recording: since the frame before, in thirds."""
    sequence, capture = open_benchmark("fe108", trees["fe108"])[0], captures["rgbe"][0]
    recording = read_aedat4(trees["fe108"] / "test" / sequence.name / "events.aedat4")
    size = capture.rgb.shape[1:3]
    for i in (0, LENGTH - 1):
        start, stop = recording.frame_times[FE108_OFFSET + i - 1 : FE108_OFFSET + i + 1].tolist()
        window = recording.events[(recording.events["t"] >= start) & (recording.events["t"] < stop)]
        assert len(window)
        np.testing.assert_array_equal(sequence.frames[i][..., 3:], represent("three_windows", window, *size, start=start, stop=stop))
    (trees["fe108"] / "test" / "pair.txt").rename(trees["fe108"] / "pair.txt")
    assert open_benchmark("fe108", trees["fe108"])[0].frames.sources[1].first == FE108_OFFSET
    (trees["fe108"] / "pair.txt").rename(trees["fe108"] / "elsewhere.txt")
    with pytest.raises(DataError, match=r"expected pair\.txt"):
        open_benchmark("fe108", trees["fe108"])[0].frames[0]
    (trees["fe108"] / "elsewhere.txt").rename(trees["fe108"] / "test" / "pair.txt")


def test_modality_rgb_leaves_the_auxiliary_frames_out(trees):
    assert open_benchmark("lasher", trees["lasher"], modality="rgb")[0].frames[0].shape[2] == 3
    with pytest.raises(DataError, match="LasHeR has rgbt"):
        open_benchmark("lasher", trees["lasher"], modality="rgbd")


def test_opening_touches_no_frame(trees, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(trees["lasher"], root)
    for folder in root.glob("testingset/*/visible"):
        shutil.rmtree(folder)
    sequence = open_benchmark("lasher", root)[0]
    assert len(sequence) == LENGTH
    with pytest.raises(DataError, match="no frames; expected visible/"):
        sequence.frames[0]


def test_sequences_go_to_other_processes(trees):
    sequence = open_benchmark("visevent", trees["visevent"])[0]
    frame = sequence.frames[2]
    again = pickle.loads(pickle.dumps(sequence))
    np.testing.assert_array_equal(again.frames[2], frame)
    assert len(pickle.dumps(sequence.frames)) < 5_000


# Small trees, written by hand.


def picture(path, value=100, size=(12, 16), dtype=np.uint8):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full(size, value, dtype))


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def lasher(root, name, count=3, boxes=None, visible="v{:03d}.jpg", infrared="i{:03d}.jpg", folder="testingset"):
    place = root / folder / name
    for i in range(count):
        picture(place / "visible" / visible.format(i), 20 * i)
        picture(place / "infrared" / infrared.format(i), 20 * i + 10)
    for file in ("visible.txt", "infrared.txt", "init.txt"):
        text(place / file, boxes or "1,2,3,4\n" * count)
    return place


def levels(sequence):
    return [sequence.frames[i][0, 0, [0, 3]].tolist() for i in range(len(sequence))]


def near(found, expected):
    return np.abs(np.array(found) - expected).max() <= 3


@pytest.mark.parametrize(
    "names", [("{}.jpg", "{}.jpg"), ("v{}.jpg", "{:05d}i.jpg"), ("a{}b.jpg", "000{}.JPG"), ("{:04d}v.jpg", "x{}.jpeg")]
)
def test_frames_are_in_natural_order_and_paired_by_position(tmp_path, names):
    lasher(tmp_path, "s", 12, visible=names[0], infrared=names[1])
    (sequence,) = open_benchmark("lasher", tmp_path)
    assert near(levels(sequence), [[20 * i, 20 * i + 10] for i in range(12)])


def test_names_that_sort_alike_have_one_order_on_every_disk(tmp_path, monkeypatch):
    for folder in ("visible", "infrared"):
        for i, name in enumerate(("01.png", "1.png", "2.PNG", "02.png")):
            picture(tmp_path / "s" / folder / name, 20 * i)
    names = {"visible": ["2.PNG", "1.png", "01.png", "02.png"], "infrared": ["02.png", "01.png", "1.png", "2.PNG"]}
    monkeypatch.setattr(os, "listdir", lambda folder: names[Path(folder).name])
    orders = [[int(image[0, 0, 0]) for image in ImageFiles(tmp_path / "s" / folder, "rgb")] for folder in names]
    assert orders == [[0, 20, 60, 40]] * 2


def test_numbers_may_start_anywhere_and_junk_is_no_frame(tmp_path):
    place = lasher(tmp_path, "s", 3)
    for i in range(3):
        (place / "visible" / f"v{i:03d}.jpg").rename(place / "visible" / f"frame{i + 98:d}.jpg")
    for junk in ("Thumbs.db", "._v000.jpg", "notes.txt"):
        text(place / "visible" / junk, "?")
    assert near(levels(open_benchmark("lasher", tmp_path)[0]), [[0, 10], [20, 30], [40, 50]])


@pytest.mark.parametrize(("visible", "rows", "message"), [(2, 3, "2 frames, but 3 rows"), (3, 2, "3 frames, but 2 rows")])
def test_counts_must_fit(tmp_path, visible, rows, message):
    lasher(tmp_path, "s", visible, boxes="1,2,3,4\n" * rows)
    with pytest.raises(DataError, match=message):
        open_benchmark("lasher", tmp_path)[0].frames[0]


def test_frames_after_the_annotation_are_left_out_where_the_benchmark_has_such(tmp_path):
    """DepthTrack's toy07_indoor_320 lacks a few rows."""
    place = tmp_path / "test" / "toy07_indoor_320"
    for i in range(1, 6):
        picture(place / "color" / f"{i:08d}.jpg")
        picture(place / "depth" / f"{i:08d}.png", 1000 * i, dtype=np.uint16)
    text(place / "groundtruth.txt", "1,2,3,4\n" * 3)
    (sequence,) = open_benchmark("depthtrack", tmp_path)
    assert len(sequence) == 3
    sequence.frames[2]
    report = check_benchmark("depthtrack", tmp_path)
    assert report.splits["test"].more_frames == {"toy07_indoor_320": 2}
    assert report.problems == []
    text(place / "groundtruth.txt", "1,2,3,4\n" * 6)
    assert [problem.kind for problem in check_benchmark("depthtrack", tmp_path).problems] == ["count", "count"]


def test_an_image_that_one_modality_lacks_is_named_where_more_images_than_boxes_are_tolerated(tmp_path):
    """All boxes after it would be those of the frame before."""
    place = tmp_path / "test" / "toy07_indoor_320"
    for i in range(1, 8):
        picture(place / "color" / f"{i:08d}.jpg")
        picture(place / "depth" / f"{i:08d}.png", 1000, dtype=np.uint16)
    text(place / "groundtruth.txt", "1,2,3,4\n" * 6)
    (sequence,) = open_benchmark("depthtrack", tmp_path, partial=True)
    assert sequence.frames[5].shape == (12, 16, 6)
    (place / "depth" / "00000003.png").unlink()
    (sequence,) = open_benchmark("depthtrack", tmp_path, partial=True)
    with pytest.raises(DataError, match=r"depth/00000002\.png: the image after it is missing"):
        sequence.frames[0]
    assert [p.kind for p in check_benchmark("depthtrack", tmp_path).problems if p.kind != "missing"] == ["count"]
    (place / "color" / "00000003.jpg").unlink()  # a frame that the authors left out
    (sequence,) = open_benchmark("depthtrack", tmp_path, partial=True)
    assert sequence.frames[5].shape == (12, 16, 6)
    picture(place / "color" / "00000003.jpg")
    for i in range(1, 8):
        (place / "color" / f"{i:08d}.jpg").rename(place / "color" / f"{chr(96 + i)}.jpg")
    (place / "depth" / "00000007.png").rename(place / "depth" / "00000003.png")
    (sequence,) = open_benchmark("depthtrack", tmp_path, partial=True)
    assert sequence.frames[5].shape == (12, 16, 6)


def test_leading_absent_frames_are_left_out_and_counted(tmp_path):
    place = tmp_path / "test" / "dvSave-x"
    for i in range(5):
        picture(place / "dvSave-x_aps" / f"frame{i:04d}.png", 20 * i)
        picture(place / "dvSave-x_dvs" / f"frame{i:04d}.bmp", 20 * i + 10)
    text(place / "groundtruth.txt", "0,0,0,0\n9,9,9,9\n1,2,3,4\n0,0,0,0\n5,6,7,8\n")
    text(place / "absent.txt", "0\n0\n1\n0\n1\n")
    (sequence,) = open_benchmark("coesot", tmp_path)
    assert sequence.offset == 2
    assert sequence.absent.tolist() == [False, True, False]
    np.testing.assert_array_equal(sequence.boxes, [[1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8]])
    assert levels(sequence) == [[40, 50], [60, 70], [80, 90]]
    assert check_benchmark("coesot", tmp_path).splits["test"].leading_absent == ["dvSave-x"]
    text(place / "absent.txt", "0\n" * 5)
    with pytest.raises(DataError, match="absent in all 5 frames"):
        open_benchmark("coesot", tmp_path)


def test_small_targets_are_not_trained_on(tmp_path):
    for split in ("train", "test"):
        place = tmp_path / split / f"{split}_a"
        for i in range(3):
            picture(place / "vis_imgs" / f"{i}.bmp")
            picture(place / "event_imgs" / f"{i}.bmp")
        text(place / "groundtruth.txt", "1,1,5,9\n1,1,6,6\n1,1,9,5\n")
        text(place / "absent_label.txt", "1\n1\n1\n")
    assert open_benchmark("visevent", tmp_path, split="trainval")[0].absent.tolist() == [True, False, True]
    assert open_benchmark("visevent", tmp_path, split="test")[0].absent.tolist() == [False] * 3


def test_three_grey_images_are_one_event_image(tmp_path):
    place = tmp_path / "test" / "mine"
    for i in range(1, 12):
        picture(place / "img" / f"{i:04d}.jpg", 20 * i)
        for part in (1, 2, 3):
            picture(place / "inter3_stack" / f"{i:04d}_{part}.jpg", 20 * i + 5 * part)
    text(place / "groundtruth_rect.txt", "1,2,3,4\n" * 11)
    (sequence,) = open_benchmark("fe108", tmp_path)
    assert near(sequence.frames[10][0, 0], [220, 220, 220, 225, 230, 235])
    (place / "inter3_stack" / "0003_2.jpg").unlink()
    with pytest.raises(DataError, match="32 images; expected 3 a frame"):
        open_benchmark("fe108", tmp_path)[0].frames[0]


def test_lasot_and_got10k(tmp_path):
    for name in ("car-1", "car-2", "bird-10"):
        place = tmp_path / "lasot" / name.split("-")[0] / name
        for i in (1, 2):
            picture(place / "img" / f"{i:08d}.jpg")
        text(place / "groundtruth.txt", "1,2,3,4\n" * 2)
        text(place / "full_occlusion.txt", "0,1")
        text(place / "out_of_view.txt", "0,0")
    with pytest.raises(DataError, match=r"expected one of training_set\.txt"):
        open_benchmark("lasot", tmp_path / "lasot", split="train")
    text(tmp_path / "lasot" / "testing_set.txt", "car-2\n")
    (test,) = open_benchmark("lasot", tmp_path / "lasot")
    assert test.frames[0].shape == (12, 16, 3)
    assert test.absent.tolist() == [False, True]
    assert {s.name for s in open_benchmark("lasot", tmp_path / "lasot", split="trainval")} == {"car-1", "bird-10"}

    for split in ("train", "val"):
        place = tmp_path / "got" / split / f"GOT-10k_{split}_000001"
        picture(place / "00000001.jpg")
        text(place / "groundtruth.txt", "1.0000,2.0000,3.0000,4.0000\n")
        text(place / "absence.label", "0\n")
        text(tmp_path / "got" / split / "list.txt", f"GOT-10k_{split}_000001\n")
    assert [s.name for s in open_benchmark("got10k", tmp_path / "got", split="train")] == ["GOT-10k_train_000001"]
    assert [s.name for s in open_benchmark("got10k", tmp_path / "got", split="val")] == ["GOT-10k_val_000001"]
    shutil.rmtree(tmp_path / "got" / "train")  # 70 GB that who only evaluates does without
    assert [s.name for s in open_benchmark("got10k", tmp_path / "got", split="val")] == ["GOT-10k_val_000001"]
    shutil.rmtree(tmp_path / "got" / "val")
    with pytest.raises(DataError, match="no train sequences of GOT-10k"):
        open_benchmark("got10k", tmp_path / "got", split="val")


def test_shipped_lists():
    count = {
        name: len(set(shipped_list(file)))
        for layout in LAYOUTS.values()
        for name, file in layout.shipped.items()
        if layout.name == "visevent"
    }
    assert count == {"test/320": 320, "test/218": 218, "test/172": 172}
    whole = set(shipped_list("visevent_test_320.txt"))
    assert set(shipped_list("visevent_test_218.txt")) < whole
    assert set(shipped_list("visevent_test_172.txt")) < whole
    train, val, test = (set(shipped_list(f"lasher_{split}.txt")) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test), len(val & train), len(train & test)) == (979, 97, 245, 97, 0)
    for benchmark, number in {"coesot": 528, "fe108": 32, "depthtrack": 50, "rgbt234": 234}.items():
        assert len(set(shipped_list(f"{benchmark}_test.txt"))) == number


def test_protocols_of_visevent_are_named(tmp_path):
    for name in ("00141_tank_outdoor2", "traffic_0006"):  # in all three lists, in the 320 alone
        place = tmp_path / "test" / name
        picture(place / "vis_imgs" / "1.bmp")
        picture(place / "event_imgs" / "1.bmp")
        text(place / "groundtruth.txt", "1,2,30,40\n")
        text(place / "absent_label.txt", "1\n")
    for protocol, number in {"320": 2, "218": 1, "172": 1, None: 2}.items():
        assert len(open_benchmark("visevent", tmp_path, protocol=protocol, partial=True)) == number
    with pytest.raises(DataError, match="171 of 172 sequences are missing"):
        open_benchmark("visevent", tmp_path, protocol="172")
    with pytest.raises(DataError, match="no test protocol '300'; expected one of 320, 218, 172"):
        open_benchmark("visevent", tmp_path, protocol="300")


def test_validation_is_carved_from_train(tmp_path):
    published = ["midboy", "truck"]  # of the published validation part
    trained = [*published, *(name for name in shipped_list("lasher_train.txt") if name not in shipped_list("lasher_val.txt"))][:5]
    for name in trained:
        lasher(tmp_path, name, 1, folder="trainingset")
    lasher(tmp_path, "10runone", 1)
    splits = {split: list_split(LAYOUTS["lasher"], tmp_path, split) for split in ("train", "val", "test")}
    assert set(splits["val"].places) == set(published)
    assert set(splits["train"].places) == set(trained) - set(published)
    assert set(splits["test"].places) == {"10runone"}
    assert {len(splits[split].names) for split in splits} == {979 - 97, 97, 245}


def test_hash_holds_out_a_tenth_whatever_else_is_there():
    names = [f"sequence_{i}" for i in range(2000)]
    val = held_out(names)
    assert 150 < len(val) < 250
    assert held_out(names[::2]) == tuple(name for name in names[::2] if name in val)
    assert len(held_out(names[:1])) == 1


def test_the_test_list_is_never_validation(tmp_path):
    """The published code validates on the test list."""
    for name in ("a", "b"):
        lasher(tmp_path, name, 1, folder="trainingset")
    lasher(tmp_path, "t", 1)
    text(tmp_path / "val.txt", "t\n")
    for split in ("train", "val"):
        with pytest.raises(DataError, match=r"1 validation sequences are test sequences \(t"):
            open_benchmark("lasher", tmp_path, split=split)
    assert [s.name for s in open_benchmark("lasher", tmp_path)] == ["t"]
    assert {problem.kind for problem in check_benchmark("lasher", tmp_path).problems} == {"split"}
    text(tmp_path / "val.txt", "b\n")
    assert [s.name for s in open_benchmark("lasher", tmp_path, split="train")] == ["a"]
    assert [s.name for s in open_benchmark("lasher", tmp_path, split="val")] == ["b"]


def test_own_data(tmp_path):
    """Folders or a video, CSV or text."""
    for name in ("a", "b"):
        picture(tmp_path / name / "rgb" / "1.png", 50)
        picture(tmp_path / name / "rgb" / "2.png", 60)
        picture(tmp_path / name / "thermal" / "1.tif", 29_315, dtype=np.uint16)
        picture(tmp_path / name / "thermal" / "2.tif", 29_315, dtype=np.uint16)
    text(tmp_path / "a" / "boxes.csv", "frame,left,top,right,bottom,absent,note\n0,1,2,5,8,0,hi\n1,,,,,1,gone\n")
    text(tmp_path / "b" / "boxes.txt", "1 2 4 6\n1 2 4 6\n")
    text(tmp_path / "b" / "absent.txt", "0\n1\n")
    a, b = open_benchmark("own", tmp_path, split="all", modality="rgbt")
    np.testing.assert_array_equal(a.boxes[0], [1, 2, 4, 6])
    assert a.absent.tolist() == b.absent.tolist() == [False, True]
    assert a.frames[0][0, 0].tolist() == [50, 50, 50, 0, 0, 0]
    with pytest.raises(DataError, match=r"no test sequences of own data; expected one of test\.txt, test/"):
        open_benchmark("own", tmp_path)
    assert len(open_benchmark("own", tmp_path, split="train")) == 1

    video = cv2.VideoWriter(str(tmp_path / "b" / "rgb.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (32, 24))
    for value in (10, 90, 170, 250):
        video.write(np.full((24, 32, 3), value, np.uint8))
    video.release()
    shutil.rmtree(tmp_path / "b" / "rgb")
    text(tmp_path / "b" / "boxes.txt", "1 2 4 6\n" * 4)
    (tmp_path / "b" / "rgb.avi").rename(tmp_path / "b" / "rgb.AVI")
    text(tmp_path / "b" / "absent.txt", "0\n" * 4)
    frames = open_benchmark("own", tmp_path, split="all", modality="rgb")[1].frames
    assert near([frames[i].mean() for i in (0, 1, 3, 2, 0)], [10, 90, 250, 170, 10])


def own(root, name, box="1 2 4 6", value=50):
    for i in range(3):
        picture(root / name / "rgb" / f"{i}.png", value + i)
    text(root / name / "boxes.txt", f"{box}\n" * 3)


def found(root, split):
    return [(s.name, int(s.frames[0][0, 0, 0])) for s in open_benchmark("own", root, split=split, modality="rgb")]


def test_own_splits_may_number_their_sequences_alike(tmp_path):
    for value, (split, name) in enumerate([("train", "1"), ("train", "2"), ("val", "1"), ("test", "1"), ("test", "2")]):
        own(tmp_path / split, name, f"{value} 2 4 6", 50 * value)
    assert found(tmp_path, "train") == [("1", 0), ("2", 50)]
    assert found(tmp_path, "val") == [("1", 100)]
    assert found(tmp_path, "test") == [("1", 150), ("2", 200)]
    for folder in (tmp_path / "train").iterdir():
        folder.rename(tmp_path / folder.name)
    (tmp_path / "train").rmdir()
    assert found(tmp_path, "train") == [("1", 0), ("2", 50)]


@pytest.mark.parametrize("link", [True, False])
def test_own_sequences_that_are_in_two_splits_are_in_one(tmp_path, link):
    own(tmp_path / "train", "a")
    own(tmp_path / "train", "b", "7 2 4 6")
    (tmp_path / "val").mkdir()
    (os.symlink if link else shutil.copytree)(tmp_path / "train" / "a", tmp_path / "val" / "a")
    assert [name for name, _ in found(tmp_path, "train")] == ["b"]
    (tmp_path / "val").rename(tmp_path / "test")
    with pytest.raises(DataError, match=r"1 training sequences are test sequences \(a"):
        open_benchmark("own", tmp_path, split="train", modality="rgb")


def test_names_in_lists_may_have_spaces(tmp_path):
    for value, name in enumerate(("my dog", "a, b", "cat", "größe")):
        own(tmp_path, name, value=value)
    text(tmp_path / "train.txt", "my dog\n\na, b\r\ncat\t3\ngröße,1\n")
    text(tmp_path / "val.txt", "cat\n")
    assert found(tmp_path, "train") == [("my dog", 0), ("a, b", 1), ("größe", 3)]


def test_hidden_folders_are_no_sequences(tmp_path):
    """Such as that of a sequence whose writing was interrupted."""
    lasher(tmp_path, "a", 1)
    lasher(tmp_path, ".b.4711", 1)
    assert list_split(LAYOUTS["lasher"], tmp_path, "all").names == ("a",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "columns , -1 rows"),
        ("left,top,width\n1,2,3\n", "columns left, top, width, 1 rows"),
        ("left,top,width,height\n1,2,3,4\n1,2,x,4\n", "line 3: '1,2,x,4'"),
        ("left,top,width,height\n1,2,3\n", "line 2: '1,2,3'"),
        ("left,top,width,height,absent\n1,2,3,4,0\n1,2,3,4,2\n", "line 3: absent is 2; expected 0 or 1"),
        ("frame,left,top,width,height\n0,1,2,3,4\n2,1,2,3,4\n", r"frames \[0.0, 2.0\]"),
    ],
)
def test_bad_tables_say_where_and_what(tmp_path, content, message):
    picture(tmp_path / "a" / "rgb" / "1.png")
    text(tmp_path / "a" / "boxes.csv", content)
    with pytest.raises(DataError, match=message):
        open_benchmark("own", tmp_path, split="all", modality="rgb")


def damaged(root):
    """One sequence for each thing that can be wrong."""
    for name in ("good", "truncated", "noimage", "empty", "size", "count", "noinfrared", "noboxes", "words"):
        lasher(root, name, 3)
    base = root / "testingset"
    whole = (base / "truncated" / "visible" / "v002.jpg").read_bytes()
    (base / "truncated" / "visible" / "v002.jpg").write_bytes(whole[:-20])
    (base / "noimage" / "infrared" / "i000.jpg").write_text("<html>404</html>")
    (base / "empty" / "visible" / "v000.jpg").write_bytes(b"")
    for i in range(3):
        picture(base / "size" / "infrared" / f"i{i:03d}.jpg", size=(24, 32))
    (base / "count" / "infrared" / "i001.jpg").unlink()
    shutil.rmtree(base / "noinfrared" / "infrared")
    text(base / "noboxes" / "visible.txt", "")
    text(base / "words" / "infrared.txt", "1,2,3,4\n1;2\n1,2,3,4\n")
    text(root / "testingsetList.txt", "\n".join([*sorted(p.name for p in base.iterdir()), "gone"]))
    return root


def test_check_lists_everything_that_is_wrong(tmp_path):
    report = check_benchmark("lasher", damaged(tmp_path))
    assert {(problem.sequence, problem.kind) for problem in report.problems} == {
        ("gone", "missing"),
        ("truncated", "image"),
        ("noimage", "image"),
        ("empty", "image"),
        ("size", "size"),
        ("count", "count"),
        ("noinfrared", "frames"),
        ("noboxes", "annotation"),
        ("words", "annotation"),
    }
    counts = report.splits["test"]
    assert (counts.sequences, counts.missing, counts.frames) == (10, 1, 7 * 3)
    messages = {problem.sequence: problem.message for problem in report.problems}
    assert "v002.jpg: " in messages["truncated"]
    assert "i000.jpg: " in messages["noimage"]
    assert "v000.jpg: " in messages["empty"]
    assert "16x12 and 32x24 pixels" in messages["size"]
    assert "2 frames, but 3 rows" in messages["count"]


@pytest.mark.parametrize("name", ["truncated", "noimage", "empty", "size", "count", "noinfrared", "noboxes", "words", "gone"])
def test_each_is_an_error_of_the_reader(tmp_path, name):
    damaged(tmp_path)
    text(tmp_path / "testingsetList.txt", name)
    with pytest.raises(ValueError, match=name):
        [sequence.frames[i] for sequence in open_benchmark("lasher", tmp_path) for i in range(3)]


def test_all_images_are_read_when_asked(tmp_path):
    place = lasher(tmp_path, "s", 3)
    (place / "visible" / "v001.jpg").write_bytes(b"junk")
    assert check_benchmark("lasher", tmp_path).problems == []
    assert [problem.kind for problem in check_benchmark("lasher", tmp_path, images=True).problems] == ["image"]


def test_the_command(tmp_path, capsys):
    lasher(tmp_path / "good", "s", 3)
    run(Check(benchmark="lasher", root=tmp_path / "good", json=tmp_path / "report.json"))
    assert json.loads((tmp_path / "report.json").read_text())["splits"]["test"]["frames"] == 3
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit) as ended:
        run(Check(benchmark="lasher", root=damaged(tmp_path / "bad")))
    assert ended.value.code == 1
    assert "9 problems" in capsys.readouterr().out
    with pytest.raises(DataError, match="nowhere: no such folder"):
        run(Check(benchmark="lasher", root=tmp_path / "nowhere"))
