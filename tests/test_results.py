"""Files of boxes in every notation, whole folders and zips, and messages about bad ones."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.evaluation.results import Files, parse_columns, read_results, to_ltwh


@settings(max_examples=60, deadline=None)
@given(
    tables=st.lists(
        st.lists(st.lists(st.floats(-1e6, 1e6).map(lambda v: round(v, 4)), min_size=4, max_size=4), min_size=1, max_size=5),
        min_size=1,
        max_size=4,
    ),
    separators=st.lists(st.sampled_from([",", "\t", " ", "  ", ", ", ";", " , "]), min_size=4, max_size=4),
    end=st.sampled_from(["", "\n", "\r\n", "\n\n \n"]),
    newline=st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_all_notations_give_the_same_numbers(tables, separators, end, newline):
    contents = {
        str(i): (newline.join(separators[i].join(map(repr, row)) for row in table) + end).encode() for i, table in enumerate(tables)
    }
    parsed = parse_columns(contents, where="here")
    assert {name: table.tolist() for name, table in parsed.items()} == {str(i): table for i, table in enumerate(tables)}


def test_equals_loadtxt_and_keeps_nan_infinity_and_whole_numbers():
    text = b"1,2,3,4\nnan,NaN,nan,nan\n-1.5e2,+3,inf,.5\n"
    parsed = parse_columns({"a": text, "b": b"7\t8\t9\t10"}, where="here")
    np.testing.assert_array_equal(parsed["a"], np.loadtxt(io.BytesIO(text), delimiter=","))
    assert parsed["b"].tolist() == [[7, 8, 9, 10]]
    assert parse_columns({"a": b" \n\n"}, where="here")["a"].shape == (0, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"1,2,3,4\n1,2,x,4\n", r"MyTracker, sequence car, line 2: '1,2,x,4'; expected numbers"),
        (b"1,2,3,4\n\n1,2,3\n", r"MyTracker, sequence car, line 3: 3 numbers; expected 4"),
        (b"1,2,3,4\n1,2,,4\n", r"MyTracker, sequence car, line 2: '1,2,,4'; expected numbers"),
        (b"1 2 3 4\n1 2 3 4 5\n", r"MyTracker, sequence car, line 2: 5 numbers; expected 4"),
        (b"hello world\n", r"MyTracker, sequence car, line 1: 'hello world'"),
    ],
)
def test_a_bad_file_is_named_with_its_line(text, message):
    good = {f"good{i}": b"1,2,3,4\n" * 5 for i in range(3)}
    with pytest.raises(ValueError, match=message):
        parse_columns({**good, "car": text}, where="MyTracker")


def test_notations_of_boxes():
    ltwh = np.array([[10.0, 20, 5, 6]])
    for table, kind, pixel in [
        (ltwh, None, True),
        (np.array([[10.0, 20, 14, 25]]), "ltrb", True),
        (np.array([[10.0, 20, 15, 26]]), "ltrb", False),
        (np.array([[10.0, 20, 14, 20, 14, 25, 10, 25]]), None, True),
        (np.array([[10.0, 26, 10, 20, 15, 20, 15, 26]]), "corners", False),
        (np.array([[10.0, 20, 5, 6, 0.9]]), None, True),
    ]:
        assert to_ltwh(table, kind, source="x", corner_pixel=pixel).tolist() == ltwh.tolist()
    with pytest.raises(ValueError, match="tracker, sequence a: 6 columns; expected 4"):
        to_ltwh(np.zeros((1, 6)), None, source="tracker, sequence a")


def test_folders_zips_prefixes_and_side_files(tmp_path):
    for form, name in {
        "plain": "{}.txt",
        "prefixed": "Mine_RGBT_{}.txt",
        "numbered": "{}_001.txt",
        "deep": "baseline/{}/{}_001.txt",
    }.items():
        for i, sequence in enumerate(("car", "redcar", "car_2")):
            path = tmp_path / form / name.format(sequence, sequence)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{i},1,2,3\n")
            path.with_name(f"{path.stem}_time.txt").write_text("0.1\n")
        with zipfile.ZipFile(tmp_path / f"{form}.zip", "w") as archive:
            for path in (tmp_path / form).rglob("*.txt"):
                archive.write(path, path.relative_to(tmp_path))
        for place in (tmp_path / form, tmp_path / f"{form}.zip"):
            files = Files(place)
            assert files.name == form
            results = read_results(files, ["car", "redcar", "car_2", "bus"], tracker=form)
            assert {n: r.runs[0][0, 0] for n, r in results.items()} == {"car": 0, "redcar": 1, "car_2": 2}


@pytest.mark.parametrize("names", [("car",), ("car", "car2")])
def test_a_prefix_of_few_files_is_found(names, tmp_path):
    for name in names:
        (tmp_path / f"Mine_{name}.txt").write_text("1,2,3,4\n")
    assert list(read_results(Files(tmp_path), names, tracker="x")) == list(names)


def test_a_file_of_one_sequence_is_no_prefixed_file_of_another(tmp_path):
    for name in ("woman2", "woman3"):
        (tmp_path / f"{name}.txt").write_text("1,2,3,4\n")
    assert list(read_results(Files(tmp_path), ["man2", "woman2", "woman3"], tracker="x")) == ["woman2", "woman3"]


def test_a_file_belongs_to_the_longest_name_that_it_ends_in(tmp_path):
    for name in ("redcar", "redbus"):
        (tmp_path / f"Mine_{name}.txt").write_text("1,2,3,4\n")
    assert sorted(read_results(Files(tmp_path), ["car", "redbus", "redcar"], tracker="x")) == ["redbus", "redcar"]
    (tmp_path / "Mine_redbus.txt").unlink()
    (tmp_path / "Mine_redcar.txt").rename(tmp_path / "redcar.txt")
    assert read_results(Files(tmp_path), ["car"], tracker="x") == {}


def test_a_folder_of_several_trackers_is_refused(tmp_path):
    for tracker, names in {"fft": ("car",), "mine": ("car", "bus")}.items():
        for name in names:
            path = tmp_path / tracker / f"{name}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text("1,2,3,4\n")
    with pytest.raises(ValueError, match=r"x, sequence car: both fft/car\.txt and mine/car\.txt; expected the results of one tracker"):
        read_results(Files(tmp_path), ["bus", "car"], tracker="x")
    assert list(read_results(Files(tmp_path), ["bus"], tracker="x")) == ["bus"]


def test_the_last_confidence_may_be_blank(tmp_path):
    (tmp_path / "car_001.txt").write_text("1\n5,5,2,2\n0\n")
    (tmp_path / "car_001_confidence.value").write_text("\n0.5\n")  # vot-toolkit writes blank for none, and no end of line
    assert read_results(Files(tmp_path), ["car"], tracker="x")["car"].confidences.tolist() == [0, 0.5, 0]


def test_a_long_term_result_has_states_and_confidences(tmp_path):
    (tmp_path / "car_001.txt").write_text("1\n5,5,2,2\n0\n5,6,2,2\n")
    (tmp_path / "car_001_confidence.value").write_text("\n0.5\nnan\n0.25\n")
    (tmp_path / "bus_001.txt").write_text("1\n5,5,2,2\n")
    (tmp_path / "bus_001_confidence.value").write_text("0.5\n")
    results = read_results(Files(tmp_path), ["car", "bus"], tracker="x")
    assert np.isnan(results["car"].runs[0][[0, 2]]).all()
    np.testing.assert_array_equal(results["car"].confidences, [0, 0.5, np.nan, 0.25])
    assert results["bus"].confidences.tolist() == [0, 0.5]
    (tmp_path / "bus_001_confidence.value").write_text("0.5\n1\n2\n3\n")
    with pytest.raises(ValueError, match=r"x, sequence bus, bus_001_confidence.value: 4 confidences; expected 2"):
        read_results(Files(tmp_path), ["bus"], tracker="x")


def test_runs_from_anchors_in_text_and_binary(tmp_path):
    (tmp_path / "car_00000000.txt").write_text("1\n5,5,2,2\n")
    rows = [struct.pack("<BI", 0, 1), struct.pack("<Bffff", 1, 1, 2, 3, 4)]
    (tmp_path / "car_00000007.bin").write_bytes(struct.pack("<hI", 1, 2) + b"".join(rows))
    runs = read_results(Files(tmp_path), ["car"], tracker="x", anchors=True)["car"].runs
    assert sorted(runs) == [0, 7]
    assert runs[0][1].tolist() == [5, 5, 2, 2]
    assert np.isnan(runs[7][0]).all()
    assert runs[7][1].tolist() == [1, 2, 3, 4]
    (tmp_path / "car_00000007.bin").write_bytes(struct.pack("<hI", 1, 3) + b"".join(rows))
    with pytest.raises(ValueError, match="x, sequence car from frame 7: the file ends in row 3"):
        read_results(Files(tmp_path), ["car"], tracker="x", anchors=True)


def test_what_is_no_folder_and_no_zip_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder or zip"):
        Files(tmp_path / "nothing")
    (tmp_path / "a.txt").write_text("1,2,3,4")
    with pytest.raises(ValueError, match="neither a folder nor a zip"):
        Files(tmp_path / "a.txt")
