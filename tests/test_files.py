import hashlib

import pytest

from srft.files import aside, sha256, write_json, write_text


def test_what_is_written_is_there_and_nothing_else(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"k": [1, 2.5]})
    assert (tmp_path / "new" / "a.json").read_text() == '{\n "k": [\n  1,\n  2.5\n ]\n}'
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.json"]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail() -> None:
        with aside(path) as temporary:
            assert temporary.suffix == ".txt"
            temporary.write_text("half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_number_do_not_meet(tmp_path):
    """Processes on two machines, or in two containers, may have the same number and one shared folder."""
    path = tmp_path / "a.bin"
    with aside(path) as late:
        with aside(path) as early:
            early.write_bytes(b"early" * 100)
            late.write_bytes(b"half")
        assert path.read_bytes() == b"early" * 100
        late.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_readable_by_others(tmp_path):
    with aside(tmp_path / "a.bin") as temporary:
        temporary.touch(0o600)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o644


def test_checksum(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
