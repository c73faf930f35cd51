"""Packs give what the benchmark gives, and say what is wrong with them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from srft.commands.data_check import Check
from srft.commands.data_check import run as check
from srft.commands.data_pack import Pack
from srft.commands.data_pack import run as run_pack
from srft.config import ConfigError, DataConfig
from srft.data.benchmarks import DataError, open_benchmark
from srft.data.benchmarks.splits import shipped_list
from srft.data.crops import crop
from srft.data.domain import load_domain
from srft.data.images import StoredFrames
from srft.data.native import write_native
from srft.data.packing import check_pack, crop_context, pack
from srft.data.pairs import PairSampler
from srft.data.shards import MANIFEST, fetch, open_pack, read_manifest, shard_sequences
from srft.data.synthetic import record
from srft.model.architecture import PRESETS

LENGTH = 70  # more than a record batch


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Three sequences of training and one of testing for events and depth, each in its official layout."""
    made = {}
    for benchmark, modality in (("visevent", "rgbe"), ("depthtrack", "rgbd")):
        root = tmp_path_factory.mktemp(benchmark)
        captures = [record("target-train", i, seed=7, length=LENGTH if i == 0 else 12, modality=modality) for i in range(3)]
        write_native(benchmark, root, captures, split="train")
        made[benchmark] = root
    return made


def packed(roots, benchmark, out, **settings):
    settings = {"splits": ("trainval",), "frames_per_shard": 50, "workers": 1, "partial": True} | settings
    return pack(benchmark, roots[benchmark], out, **settings)


def native(roots, benchmark, split="trainval"):
    return open_benchmark(benchmark, roots[benchmark], split=split, partial=True)


def test_a_pack_is_the_benchmark_with_the_same_samples_to_the_bit(roots, tmp_path):
    reports = []
    for benchmark in roots:
        expected = native(roots, benchmark)
        reports.clear()
        manifest = packed(roots, benchmark, tmp_path / benchmark, on_shard=lambda *figures: reports.append(figures), licence="mine")
        assert (manifest.licence, manifest.source, manifest.context) == ("mine", "not stated", None)
        assert [(s.sequences, s.frames) for s in manifest.shards] == [(1, LENGTH), (2, 24)]
        assert reports == [(LENGTH, LENGTH + 24), (24, LENGTH + 24)]
        assert manifest == read_manifest(tmp_path / benchmark)
        found = open_benchmark(benchmark, tmp_path / benchmark, split="trainval")
        assert [s.name for s in found] == [s.name for s in expected]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.boxes, other.boxes)
            np.testing.assert_array_equal(one.absent, other.absent)
            assert (one.offset, one.attributes) == (other.offset, other.attributes)
            for i in (0, len(one) // 2, len(one) - 1):
                np.testing.assert_array_equal(one.frames[i], other.frames[i])
        samplers = [PairSampler.of(s, PRESETS["tiny"], DataConfig(max_gap=6), seed=3) for s in (expected, found)]
        for index in range(8):
            for part, other in zip(*(sampler.pair(1, index) for sampler in samplers), strict=True):
                np.testing.assert_array_equal(part, other)
        rgb = open_pack(tmp_path / benchmark, split="trainval", modality="rgb")
        np.testing.assert_array_equal(rgb[0].frames[3], expected[0].frames[3][..., :3])


def test_context_keeps_what_crops_show(roots, tmp_path):
    whole = packed(roots, "visevent", tmp_path / "whole")
    manifest = packed(roots, "visevent", tmp_path / "context", context=4.0, splits=("trainval", "all"))
    assert (manifest.context, manifest.quality) == (4.0, 95)
    small, large = (sum(s.bytes for s in m.shards if s.split == "trainval") for m in (manifest, whole))
    assert small < large
    expected = native(roots, "visevent")
    for one, other in zip(open_pack(tmp_path / "context", split="trainval"), expected, strict=True):
        for i in (0, len(one) - 1):
            assert one.frames[i].shape == other.frames[i].shape
            near, exact = (crop(s.frames[i], s.boxes[i], 3.0, 96)[0].astype(float) for s in (one, other))
            assert np.abs(near - exact).mean() < 4
    tracked = open_pack(tmp_path / "context", split="all")  # not trained on: whole
    np.testing.assert_array_equal(tracked[0].frames[0], expected[0].frames[0])


def test_context_beyond_the_border_and_outside_the_frame(roots):
    frames = native(roots, "visevent")[0].frames
    assert isinstance(frames, StoredFrames)
    height, width = frames[0].shape[:2]
    for box in ([-6.0, 2, 12, 10], [width - 8.0, height - 6, 20, 20], [width + 500.0, -400, 9, 9]):
        kept = crop_context(frames.stored(0), np.array(box), 3.0, 95)
        assert kept.size == (height, width)
        assert 0 <= kept.corner[0] < width
        assert 0 <= kept.corner[1] < height


def test_an_interrupted_pack_goes_on(roots, tmp_path):
    out = tmp_path / "pack"

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    with pytest.raises(Stop):
        packed(roots, "visevent", out, on_shard=stop)
    assert not (out / MANIFEST).exists()
    with pytest.raises(DataError, match="not finished"):
        open_benchmark("visevent", out, split="trainval")
    first = out / "trainval-00000.arrow"
    before = first.stat().st_mtime_ns
    (out / ".part-killed").mkdir()
    manifest = packed(roots, "visevent", out, workers=2)
    assert first.stat().st_mtime_ns == before
    assert not list(out.glob(".part-*"))
    assert manifest == packed(roots, "visevent", tmp_path / "straight")
    with pytest.raises(DataError, match="holds another pack"):
        packed(roots, "visevent", out, context=5.0)


@pytest.fixture
def three(tmp_path):
    """The training list of three sequences of six thermal frames, whose levels tell them apart."""
    root = tmp_path / "lasher"
    captures = [record("target-train", i, seed=7, length=6, modality="rgbt") for i in range(3)]
    write_native("lasher", root, captures, split="train")
    return root


def relabel(root, box):
    (folder,) = (root / "trainingset").glob("*-0001")
    for name in ("visible", "infrared", "init"):
        (folder / f"{name}.txt").write_text(f"{box}\n" * 6)


@pytest.mark.parametrize("finished", [True, False])
def test_an_annotation_put_right_is_packed_again(three, tmp_path, finished):
    out = tmp_path / "pack"
    packed({"lasher": three}, "lasher", out, frames_per_shard=6)
    if not finished:
        (out / MANIFEST).unlink()
    relabel(three, "3,4,20,30")
    before = [file.stat().st_mtime_ns for file in sorted(out.glob("*.arrow"))]
    manifest = packed({"lasher": three}, "lasher", out, frames_per_shard=6)
    np.testing.assert_array_equal(open_pack(out, split="trainval")[1].boxes, [[3, 4, 20, 30]] * 6)
    after = [file.stat().st_mtime_ns for file in sorted(out.glob("*.arrow"))]
    assert [a != b for a, b in zip(before, after, strict=True)] == [False, False, True, True, False, False]
    assert not check_pack(out).problems
    assert manifest == read_manifest(out)


def test_a_pack_that_is_written_again_has_no_manifest_meanwhile(three, tmp_path):
    out = tmp_path / "pack"
    packed({"lasher": three}, "lasher", out, frames_per_shard=6)
    relabel(three, "3,4,20,30")
    seen = []
    packed({"lasher": three}, "lasher", out, frames_per_shard=6, on_shard=lambda *_: seen.append((out / MANIFEST).exists()))
    assert seen[-1] is False


@pytest.mark.parametrize(("first", "then"), [({}, {"modality": "rgb"}), ({"context": 5.0}, {"context": 5.0, "quality": 50})])
def test_a_pack_of_another_modality_or_quality_is_not_written_over(three, tmp_path, first, then):
    packed({"lasher": three}, "lasher", tmp_path / "pack", **first)
    with pytest.raises(DataError, match="holds another pack"):
        packed({"lasher": three}, "lasher", tmp_path / "pack", **then)
    assert not check_pack(tmp_path / "pack").problems


def test_a_pack_made_anew_in_the_same_place_is_read_anew(three, tmp_path):
    out = tmp_path / "pack"
    packed({"lasher": three}, "lasher", out)
    old = open_pack(out, split="trainval")
    before = old[0].frames[2]
    shutil.rmtree(out)
    for folder in (three / "trainingset").iterdir():  # the last frame comes first
        for images in (folder / "visible", folder / "infrared"):
            files = sorted(images.iterdir())
            contents = [file.read_bytes() for file in files]
            for file, content in zip(files, reversed(contents), strict=True):
                file.write_bytes(content)
    packed({"lasher": three}, "lasher", out)
    np.testing.assert_array_equal(open_pack(out, split="trainval")[0].frames[3], before)


def test_a_killed_process_leaves_whole_shards(roots, tmp_path):
    out = tmp_path / "pack"
    command = f"""
import time
from srft.data.packing import pack
pack("visevent", {str(roots["visevent"])!r}, {str(out)!r}, splits=("trainval",), partial=True, frames_per_shard=1, workers=1,
     on_shard=lambda *_: (print("one", flush=True), time.sleep(60)))
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent / "platform")}
    process = subprocess.Popen([sys.executable, "-c", command], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "one\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    names = sorted(path.name for path in out.glob("*.arrow"))
    assert names == ["trainval-00000.arrow", "trainval-00000.index.arrow"]
    start = time.time_ns()
    manifest = packed(roots, "visevent", out, frames_per_shard=1)
    assert [(out / s.file).stat().st_mtime_ns > start for s in manifest.shards] == [False, True, True]
    assert not check_pack(out).problems


def test_everything_that_is_wrong_is_listed(roots, tmp_path, capsys):
    manifest = packed(roots, "depthtrack", tmp_path, frames_per_shard=1)
    first, second, third = manifest.shards
    report = check_pack(tmp_path, images=True)
    assert not report.problems
    assert (report.splits["trainval"].sequences, report.splits["trainval"].frames) == (3, LENGTH + 24)
    assert report.splits["trainval"].images == 2 * (LENGTH + 24)
    with (tmp_path / first.file).open("r+b") as file:
        file.seek(5000)
        file.write(b"\0\1\2\3")
    (tmp_path / second.file).write_bytes((tmp_path / second.file).read_bytes()[:-100])
    (tmp_path / third.index).unlink()
    problems = [p.message for p in check_pack(tmp_path).problems]
    assert len(problems) == 3
    assert f"{first.file}: SHA-256 is" in problems[0]
    assert f"{second.file}: SHA-256 is" in problems[1]
    assert f"{third.index}: missing" in problems[2]
    with pytest.raises(SystemExit):
        check(Check(benchmark="depthtrack", root=tmp_path, json=tmp_path / "report.json"))
    assert "3 problems" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "report.json").read_text())["problems"]) == 3
    with pytest.raises(DataError, match=rf"{second.file}: \d+ bytes; expected {second.bytes}"):
        open_pack(tmp_path, split="trainval")
    copied = shutil.copytree(tmp_path, tmp_path / "copy")
    (copied / second.file).write_bytes(bytes(second.bytes))
    with pytest.raises(DataError, match="not an Arrow file"):
        shard_sequences(copied, second)[0].frames[0]
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text('{"format": 99}')
    with pytest.raises(DataError, match="format is 99; expected 1"):
        read_manifest(tmp_path)


def test_a_pack_in_an_object_store_is_fetched_once_and_checked(roots, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("SRFT_CACHE", str(tmp_path / "cache"))
    address = "memory://bucket/visevent"
    manifest = packed(roots, "visevent", address)
    expected = native(roots, "visevent")
    found = open_benchmark("visevent", address, split="trainval")
    kept = lambda: len(list((tmp_path / "cache").rglob("*.arrow")))
    assert kept() == len(manifest.shards)  # annotation alone
    np.testing.assert_array_equal(found[0].frames[5], expected[0].frames[5])
    assert kept() == len(manifest.shards) + 1
    fsspec.filesystem("memory").pipe_file("/bucket/visevent/" + manifest.shards[1].file, b"other")
    with pytest.raises(DataError, match=r"SHA-256 is .* the file is damaged"):
        found[-1].frames[0]
    fsspec.filesystem("memory").rm_file("/bucket/visevent/" + manifest.shards[1].file)
    with pytest.raises(DataError, match="missing; listed in"):
        fetch(address, manifest.shards[1].file, manifest.shards[1].sha256)


def test_a_run_trains_from_a_pack_by_its_address(roots, tmp_path):
    pack("visevent", roots["visevent"], tmp_path, splits=("trainval",), partial=True, workers=1)
    assert DataConfig(benchmark="visevent", root="s3://bucket/visevent").root == "s3://bucket/visevent"
    with pytest.raises(ConfigError, match="an absolute path or an address"):
        DataConfig(benchmark="visevent", root="visevent")
    with pytest.raises(DataError, match=r"no split 'train'; the pack holds trainval"):
        load_domain(DataConfig(benchmark="visevent", root=str(tmp_path)))
    with pytest.raises(DataError, match="a pack of visevent; expected one of lasher"):
        open_benchmark("lasher", tmp_path)
    with pytest.raises(DataError, match="modality is 'rgbt'; the pack holds rgbe"):
        open_pack(tmp_path, split="trainval", modality="rgbt")


@pytest.mark.parametrize("out", ["packs/depth", "memory://bucket/hint"])
def test_the_command_names_a_root_that_training_takes(roots, tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    run_pack(Pack(benchmark="depthtrack", root=roots["depthtrack"], out=out, splits=("trainval",), partial=True, workers=1))
    root = capsys.readouterr().out.strip().rpartition("data.root=")[2]
    assert DataConfig(modality="rgbd", benchmark="depthtrack", root=root).root == root
    assert len(open_pack(root, split="trainval")) == 3


def test_a_protocol_is_that_of_a_pack_too(tmp_path):
    """Published results on other sequences than was said would be compared."""
    listed = shipped_list("visevent_test_172.txt")
    other = next(name for name in shipped_list("visevent_test_320.txt") if name not in listed)
    names = (listed[1], other, listed[0])
    captures = [replace(record("target-train", i, seed=7, length=2), name=name) for i, name in enumerate(names)]
    write_native("visevent", tmp_path / "visevent", captures)
    pack("visevent", tmp_path / "visevent", tmp_path / "pack", splits=("test",), workers=1)
    for root in (tmp_path / "visevent", tmp_path / "pack"):
        assert [s.name for s in open_benchmark("visevent", root)] == list(names)
        found = open_benchmark("visevent", root, protocol="172", partial=True)
        assert [s.name for s in found] == list(listed[:2])
        with pytest.raises(DataError, match=r"170 of 172 sequences are missing"):
            open_benchmark("visevent", root, protocol="172")
        with pytest.raises(DataError, match=r"no test protocol '300'"):
            open_benchmark("visevent", root, protocol="300")


def test_own_thermal_data_are_packed_as_such(tmp_path):
    folder = tmp_path / "own" / "a"
    for kind, step, type_ in (("rgb", 1, np.uint8), ("thermal", 1000, np.uint16)):
        (folder / kind).mkdir(parents=True)
        for i in range(3):
            assert cv2.imwrite(str(folder / kind / f"{i}.png"), np.full((12, 16), step * i, type_))
    (folder / "boxes.txt").write_text("1,2,3,4\n" * 3)
    run_pack(Pack(benchmark="own", root=tmp_path / "own", out=str(tmp_path / "pack"), splits=("all",), workers=1, modality="rgbt"))
    (expected,) = open_benchmark("own", tmp_path / "own", split="all", modality="rgbt")
    (found,) = open_benchmark("own", tmp_path / "pack", split="all", modality="rgbt")
    np.testing.assert_array_equal(found.frames[2], expected.frames[2])


def test_settings_out_of_range_are_refused(roots, tmp_path):
    for wrong in ({"context": 1.0}, {"quality": 0}, {"frames_per_shard": 0}, {"workers": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            packed(roots, "visevent", tmp_path, **wrong)
