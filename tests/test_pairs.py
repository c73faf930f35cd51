import hashlib

import cv2
import numpy as np
import pytest
import torch

from srft.config import DataConfig
from srft.data.images import ImageFrames
from srft.data.pairs import PairDataset, PairSampler, SampleError
from srft.data.sampling import draw_frames
from srft.data.sequence import Sequence
from srft.data.synthetic import render_sequence
from srft.model.architecture import PRESETS
from tests.reference import pairs as reference


def make(**changes):
    settings = {"arch": PRESETS["tiny"], "seed": 3, "max_gap": 6, "center_jitter": 3.0, "scale_jitter": 0.25}
    if "sequences" not in changes:
        settings["sequences"] = tuple(render_sequence("target-train", i, seed=7, length=10) for i in range(2))
    return PairSampler(**(settings | changes))


@pytest.fixture(scope="module")
def sampler():
    return make()


def test_any_worker_layout_sees_the_same_samples(sampler):
    whole = sampler.batch(1, 2, 8)
    for workers in (2, 4):
        shares = [sampler.batch(1, 2, 8, rank, workers) for rank in range(workers)]
        for part, parts in zip(whole, zip(*shares, strict=True), strict=True):
            torch.testing.assert_close(torch.stack(parts, 1).flatten(0, 1), part, rtol=0, atol=0)


def noise(length=24, channels=6, seed=0, name="noise", size=(90, 120)):
    """A sequence of numbers that are the same on every machine."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (length, *size, channels), np.uint8)
    boxes = np.concatenate([rng.uniform(10, 60, (length, 2)), rng.uniform(8, 40, (length, 2))], 1)
    return Sequence(name=name, frames=frames, boxes=boxes, absent=rng.random(length) < 0.2)


def test_default_samples_are_those_of_recorded_runs():
    """Recorded figures were made with these bytes; whoever changes them makes the figures again."""
    sampler = make(sequences=(noise(), noise(seed=1)))
    digest = hashlib.sha256()
    for epoch, index in [(e, i) for e in range(2) for i in range(12)]:
        for part in sampler.pair(epoch, index):
            digest.update(part.tobytes())
    assert digest.hexdigest()[:16] == "80fcc62a19b145ed"


def test_samples_differ_between_epochs_steps_and_seeds(sampler):
    boxes = [sampler.pair(0, 0).box, sampler.pair(0, 1).box, sampler.pair(1, 0).box, make(seed=4).pair(0, 0).box]
    assert len({tuple(b) for b in boxes}) == 4


def test_the_box_marks_the_target(sampler):
    """A white target on black: the brightest part of the search region is the box."""
    frames = np.zeros((10, 120, 160, 6), np.uint8)
    boxes = np.array([[40.0 + 3 * t, 50, 20, 14] for t in range(10)])
    for frame, (x, y, w, h) in zip(frames, boxes.astype(int), strict=True):
        frame[y : y + h, x : x + w] = 255
    white = make(sequences=(Sequence(name="white", frames=frames, boxes=boxes, absent=np.zeros(10, bool)),), brightness=0.0)
    for index in range(20):
        pair = white.pair(0, index)
        ys, xs = np.nonzero(pair.search[..., 3] > 127)
        if len(xs) and xs.min() > 0 and xs.max() < 127 and ys.min() > 0 and ys.max() < 127:
            seen = np.array([(xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2, np.ptp(xs) + 1, np.ptp(ys) + 1]) / 128
            np.testing.assert_allclose(pair.box, seen, atol=3 / 128)


def test_the_search_frame_is_later_visible_and_near():
    frames = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones((1, 60, 60, 3), np.uint8) * 20
    absent = np.zeros(12, bool)
    absent[5] = True
    numbered = Sequence(name="numbered", frames=frames, boxes=np.tile([20.0, 20, 20, 20], (12, 1)), absent=absent)
    sampler = make(sequences=(numbered,), max_gap=3, brightness=0.0, gray=0.0, center_jitter=0.0, scale_jitter=0.0)
    for index in range(60):
        pair = sampler.pair(0, index)
        first, second = round(pair.template[32, 32, 0] / 20), round(pair.search[64, 64, 0] / 20)
        assert 0 < second - first <= 3
        assert 5 not in (first, second)


def test_a_sequence_without_two_visible_frames_is_named():
    frames = np.zeros((8, 20, 20, 3), np.uint8)
    empty = Sequence(name="gone", frames=frames, boxes=np.ones((8, 4)), absent=np.ones(8, bool))
    with pytest.raises(ValueError, match="gone has 0 visible frames"):
        make(sequences=(empty,))


def test_boxes_flags_and_frames_must_agree():
    with pytest.raises(ValueError, match="8 frames, 7 boxes"):
        Sequence(name="short", frames=np.zeros((8, 4, 4, 3), np.uint8), boxes=np.ones((7, 4)), absent=np.zeros(8, bool))


@pytest.mark.parametrize("index", range(12))
def test_published_augmentation_equals_the_reference_on_whole_frames(index):
    """Boxes exactly; pixels to rounding: grey and brightness before or after interpolation, corners of mirrored frames by a pixel."""
    length, rows, columns = 24, 150, 200
    ys, xs = np.mgrid[:rows, :columns]
    frames = np.stack([128 + 60 * np.sin(xs / (9 + c) + 0.1 * t) + 60 * np.cos(ys / 11 + c) for t in range(length) for c in range(6)])
    frames = frames.reshape(length, 6, rows, columns).transpose(0, 2, 3, 1).clip(0, 255).astype(np.uint8)
    boxes = np.array([[60.0 + t, 50, 21, 17] for t in range(length)])
    smooth = Sequence(name="smooth", frames=frames, boxes=boxes, absent=np.zeros(length, bool))
    sampler = make(sequences=(smooth,), gray=0.5, augmentation="published", rule="published", max_gap=200)
    rng = np.random.default_rng([3, 0, index])
    rng.integers(1)
    first, second = draw_frames(rng, smooth.absent, "published", 200)
    arch = PRESETS["tiny"]
    template, search, box = reference.published_pair(
        frames, boxes, first, second, rng, px=(arch.template_px, arch.search_px), factors=(arch.template_factor, arch.search_factor),
        center_jitter=3.0, scale_jitter=0.25, gray=0.5, brightness=0.2,
    )  # fmt: skip
    got = sampler.pair(0, index)
    np.testing.assert_allclose(got.box, box, atol=1e-6)
    for mine, expected in ((got.template, template), (got.search, search)):
        off = np.abs(mine.astype(float) - expected)
        assert np.median(off) <= 3
        assert np.mean(off > 30) < 0.05
    wrong = reference.published_pair(
        frames, boxes, first, second, np.random.default_rng(99), px=(arch.template_px, arch.search_px),
        factors=(arch.template_factor, arch.search_factor), center_jitter=3.0, scale_jitter=0.25, gray=0.5, brightness=0.2,
    )[1]  # fmt: skip
    assert np.median(np.abs(got.search.astype(float) - wrong)) > 6


def test_crops_are_mirrored_each_for_itself_only_if_asked():
    frames = np.zeros((24, 60, 60, 3), np.uint8)
    frames[:, 20:40, 20:30] = 200  # the left half of the target
    still = Sequence(name="still", frames=frames, boxes=np.tile([20.0, 20, 20, 20], (24, 1)), absent=np.zeros(24, bool))
    calm = {"sequences": (still,), "center_jitter": 0.0, "scale_jitter": 0.0, "gray": 0.0}

    def sides(**changes):
        pairs = [make(**calm, **changes).pair(0, i) for i in range(80)]
        return np.array(
            [[patch[:, :half].sum() > patch[:, half:].sum() for patch, half in ((p.template, 32), (p.search, 64))] for p in pairs]
        )

    together, apart = sides(), sides(augmentation="published")
    assert (together[:, 0] == together[:, 1]).all()
    assert 0.3 < together[:, 0].mean() < 0.7
    assert 0.3 < (apart[:, 0] == apart[:, 1]).mean() < 0.7
    assert 0.3 < apart[:, 1].mean() < 0.7


def test_weights_are_the_shares_of_the_samples():
    marked = []
    for value in (50, 200):
        frames = np.full((24, 60, 60, 3), value, np.uint8)
        marked.append(Sequence(name=str(value), frames=frames, boxes=np.tile([20.0, 20, 20, 20], (24, 1)), absent=np.zeros(24, bool)))
    sampler = make(sequences=tuple(marked), weights=(3.0, 1.0), brightness=0.0)
    second = np.mean([sampler.pair(0, i).template[32, 32, 0] == 200 for i in range(400)])
    assert 0.18 < second < 0.32
    with pytest.raises(ValueError, match="1 weights for 2 sequences"):
        make(sequences=tuple(marked), weights=(1.0,))


def stored(tmp_path, count=24):
    for folder in ("rgb", "x"):
        (tmp_path / folder).mkdir()
    source = noise(length=count, size=(240, 320))
    names = tuple(f"{i:04d}.jpg" for i in range(count))
    for name, frame in zip(names, source.frames, strict=True):
        for folder, part in (("rgb", frame[..., :3]), ("x", frame[..., 3:])):
            cv2.imwrite(str(tmp_path / folder / name), cv2.GaussianBlur(part, (0, 0), 3)[..., ::-1])
    frames = ImageFrames(folders=(tmp_path / "rgb", tmp_path / "x"), names=(names, names))
    boxes = source.boxes + np.array([40, 40, 60, 60])
    return Sequence(name="stored", frames=frames, boxes=boxes, absent=source.absent)


def test_stored_frames_give_the_samples_of_decoded_ones(tmp_path):
    lazy = stored(tmp_path)
    array = np.stack([lazy.frames[i] for i in range(len(lazy))])
    whole = Sequence(name="array", frames=array, boxes=lazy.boxes, absent=lazy.absent)
    reduced = make(sequences=(lazy,), decode="reduced")
    differences = []
    for index in range(10):
        exact = make(sequences=(whole,)).pair(0, index)
        for part, expected in zip(make(sequences=(lazy,)).pair(0, index), exact, strict=True):
            np.testing.assert_array_equal(part, expected)
        near = reduced.pair(0, index)
        np.testing.assert_array_equal(near.box, exact.box)
        differences.append(np.abs(near.search.astype(float) - exact.search).mean())
    assert 0 < max(differences) < 6
    assert min(differences) == 0 or np.median(differences) < 6


def test_a_sample_of_a_damaged_file_is_named(tmp_path):
    lazy = stored(tmp_path)
    for i in range(24):
        path = tmp_path / "x" / f"{i:04d}.jpg"
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(SampleError, match=r"epoch 1, sample 5, sequence stored, frames \(\d+, \d+\): .*x/\d+\.jpg: "):
        make(sequences=(lazy,)).pair(1, 5)
    (tmp_path / "x" / "0000.jpg").rename(tmp_path / "x" / "gone.jpg")
    only = Sequence(name="only", frames=lazy.frames, boxes=lazy.boxes, absent=np.arange(24) > 1)
    with pytest.raises(SampleError, match=r"sequence only, frames \(0, 1\): .*No such file"):
        make(sequences=(only,)).pair(0, 0)


def test_the_map_style_data_set_gives_the_samplers_pairs():
    sampler = make(sequences=(noise(),))
    for part, expected in zip(PairDataset(sampler)[2, 7], sampler.pair(2, 7), strict=True):
        np.testing.assert_array_equal(part, expected)


def test_settings_of_a_run_describe_the_sampler():
    data = DataConfig(pairs="published", augmentation="published", decode="reduced", max_gap=200, center_jitter=4.5, scale_jitter=0.5)
    sampler = PairSampler.of((noise(length=40),), PRESETS["tiny"], data, seed=1)
    assert (sampler.rule, sampler.augmentation, sampler.decode, sampler.max_gap) == ("published", "published", "reduced", 200)
    assert (sampler.center_jitter, sampler.scale_jitter) == (4.5, 0.5)
    assert PairSampler.of((noise(),), PRESETS["tiny"], DataConfig(), seed=1).augmentation == "joint"


def test_a_pool_holds_so_many_pairs_of_frames_under_fresh_augmentation() -> None:
    found = tuple(render_sequence("target-train", i, seed=7, length=8) for i in range(3))
    arch = PRESETS["tiny"]
    pooled = [PairSampler.of(found, arch, DataConfig(pool=5), seed=seed) for seed in (0, 1)]

    def frames(sampler: PairSampler) -> set[tuple[str, tuple[int, int]]]:
        slots = (np.random.default_rng([sampler.seed, slot]) for slot in range(sampler.pool))
        return {(sequence.name, pair) for sequence, pair in map(sampler._drawn, slots)}

    drawn: list[tuple[str, tuple[int, int]]] = []
    for n in range(40):
        before = pooled[0].pair(0, n)
        assert np.array_equal(before.search, pooled[0].pair(0, n).search)
        rng = np.random.default_rng([0, 0, n])
        sequence, pair = pooled[0]._drawn(np.random.default_rng([0, int(rng.integers(5))]))
        drawn.append((sequence.name, pair))
    assert set(drawn) == frames(pooled[0]) != frames(pooled[1])
    assert len({pooled[0].pair(0, n).search.tobytes() for n in range(40)}) == 40


def test_pairs_of_a_pool_are_drawn_independently_and_may_be_the_same() -> None:
    sampler = PairSampler.of((render_sequence("target-train", 0, seed=7, length=8),), PRESETS["tiny"], DataConfig(pool=12), seed=0)
    pairs = [sampler._drawn(np.random.default_rng([0, slot]))[1] for slot in range(12)]
    assert pairs == [(5, 7), (3, 7), (6, 7), (3, 7), (3, 7), (4, 6), (3, 5), (5, 6), (2, 6), (1, 5), (2, 5), (0, 4)]  # As in stored runs.
    assert len(set(pairs)) < len(pairs)
