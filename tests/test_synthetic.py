import json
from pathlib import Path

import numpy as np
import pytest

from srft.data.synthetic import POOLS, record, render_sequence, sequences


def test_the_same_arguments_give_the_same_bytes():
    first, again = (render_sequence("target-train", 3, seed=5, length=8) for _ in range(2))
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.boxes, again.boxes)
    other = render_sequence("target-train", 3, seed=6, length=8)
    assert not np.array_equal(first.frames, other.frames)


def test_the_world_that_the_shipped_weights_were_trained_in_is_still_the_same():
    """Means of 4 x 4 cells of each frame and channel, recorded when the weights were made. Other processors round single pixels
    differently, so whole bytes are not compared; a single changed draw moves boxes and noise by far more than is allowed here."""
    recorded = json.loads((Path(__file__).parent / "assets" / "synthetic_rgbe.json").read_text())
    conditions = set()
    for name, want in recorded.items():
        split, index = name.split()
        sequence = render_sequence(split, int(index), seed=7, length=12)
        frames = sequence.frames[::5]
        cells = frames.reshape(len(frames), 4, 30, 4, 40, -1).mean((2, 4))
        assert np.quantile(np.abs(cells - want["cells"]), 0.99) < 0.01, name
        np.testing.assert_allclose(sequence.boxes, want["boxes"], atol=1e-4)
        assert np.flatnonzero(sequence.absent).tolist() == want["absent"]
        assert list(sequence.attributes) == want["attributes"]
        conditions |= set(sequence.attributes)
    assert len(conditions) == 3
    assert any(want["absent"] for want in recorded.values())


@pytest.mark.parametrize("modality", ["rgbd", "rgbt"])
def test_the_camera_beside_changes_nothing_of_scene_and_rgb(modality):
    events = render_sequence("target-test", 6, seed=7, length=12)
    other, again = (render_sequence("target-test", 6, seed=7, length=12, modality=modality) for _ in range(2))
    np.testing.assert_array_equal(other.frames, again.frames)
    np.testing.assert_array_equal(other.frames[..., :3], events.frames[..., :3])
    np.testing.assert_array_equal(other.boxes, events.boxes)
    np.testing.assert_array_equal(other.absent, events.absent)
    assert other.attributes[:1] == events.attributes
    assert other.frames.shape == events.frames.shape
    assert not np.array_equal(other.frames[..., 3:], events.frames[..., 3:])


@pytest.mark.parametrize("split", POOLS)
def test_sequences_are_as_the_reader_of_a_benchmark_would_give_them(split):
    sequence = render_sequence(split, 1, seed=7, length=10)
    channels = 6 if split.startswith("target") else 3
    assert sequence.frames.shape == (10, 120, 160, channels)
    assert sequence.frames.dtype == np.uint8
    assert bool(sequence.attributes) == split.startswith("target")
    assert not sequence.absent[0]
    seen = sequence.boxes[~sequence.absent]
    assert (seen[:, 2:] >= 3).all()
    assert (seen[:, :2] >= 0).all()
    assert (seen[:, :2] + seen[:, 2:] <= [160.001, 120.001]).all()


def test_splits_share_neither_objects_nor_backgrounds():
    means = {split: {tuple(render_sequence(split, i, seed=7, length=8).boxes.ravel()[:4]) for i in range(3)} for split in POOLS}
    names = list(means)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert not means[a] & means[b]


def test_the_annotated_box_follows_the_moving_pixels():
    """In a static scene the pixels that change between frames lie in the moving bodies; the target's box must hold its share."""
    hits = 0
    for index in range(6):
        sequence = render_sequence("target-val", index, seed=7, length=12)
        activity = sequence.frames[4:, :, :, 3:].max(3) > 0
        inside = outside = 0.0
        for active, box, gone in zip(activity, sequence.boxes[4:], sequence.absent[4:], strict=True):
            if gone:
                continue
            x, y, w, h = box.astype(int)
            mask = np.zeros_like(active)
            mask[y : y + h, x : x + w] = True
            inside += active[mask].mean()
            outside += active[~mask].mean()
        hits += inside > 1.5 * outside
    assert hits >= 4


def test_low_light_is_dark_and_over_exposure_is_bright():
    level = {}
    for index in range(12):
        sequence = render_sequence("target-test", index, seed=7, length=8)
        level.setdefault(sequence.attributes[0], []).append(sequence.frames[..., :3].mean())
    assert set(level) == {"low light", "motion blur", "over-exposure"}
    assert np.mean(level["low light"]) < 0.6 * np.mean(level["motion blur"]) < 0.6 * np.mean(level["over-exposure"])


def test_the_cache_returns_what_was_rendered_and_leaves_no_partial_file(tmp_path):
    fresh = sequences("target-val", 2, seed=7, length=8, cache=tmp_path)
    cached = sequences("target-val", 2, seed=7, length=8, cache=tmp_path)
    for a, b in zip(fresh, cached, strict=True):
        assert (a.name, a.attributes) == (b.name, b.attributes)
        np.testing.assert_array_equal(a.frames, b.frames)
        np.testing.assert_array_equal(a.boxes, b.boxes)
        np.testing.assert_array_equal(a.absent, b.absent)
    assert {p.suffix for p in tmp_path.iterdir()} == {".npz"}
    depth = sequences("target-val", 2, seed=7, length=8, modality="rgbd", cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    assert not np.array_equal(depth[0].frames, fresh[0].frames)
    source = [sequences("source-test", 1, seed=7, length=8, modality=m, cache=tmp_path)[0] for m in ("rgbe", "rgbt")]
    np.testing.assert_array_equal(source[0].frames, source[1].frames)
    assert len(list(tmp_path.iterdir())) == 5


def test_raw_recordings_are_what_the_sensors_count():
    depth, warmth = (record("target-test", 2, seed=7, length=8, modality=m) for m in ("rgbd", "rgbt"))
    for capture in (depth, warmth):
        assert capture.raw.dtype == np.uint16
        assert capture.raw.shape == (8, 120, 160)
    assert 250_00 < np.median(warmth.raw) < 320_00  # centikelvin of an ordinary day
    assert 400 < np.median(depth.raw[depth.raw > 0]) < 8100  # millimetres
    events = record("target-test", 2, seed=7, length=8)
    assert events.cuts[0] == 0
    assert events.cuts[-1] == len(events.raw)
    assert len(events.cuts) == 9
