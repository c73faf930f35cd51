"""What the writers of official layouts write, the readers of official layouts read."""

from itertools import pairwise

import numpy as np
import pytest

from srft.commands.data_preview import Preview, run
from srft.data.benchmarks import open_benchmark
from srft.data.depth import depth_image
from srft.data.events import event_image, represent
from srft.data.native import FE108_OFFSET, LAYOUTS, write_native
from srft.data.synthetic.cameras import FRAME_INTERVAL_US, frame_ends
from srft.data.thermal import thermal_image
from tests.test_native import LENGTH, recorded

JPEG_ERROR = 12.0  # mean over a frame, grey levels; the frames are noisy and small


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    out = {}
    for official, layout in LAYOUTS.items():
        out[official] = tmp_path_factory.mktemp(official)
        write_native(official, out[official], recorded(layout.modality))
    return out


def shown(official, capture, i):
    """Frame i of the auxiliary modality as the reader should show it."""
    events = capture.raw[capture.cuts[i] : capture.cuts[i + 1]] if capture.modality == "rgbe" else None
    if official == "fe108":
        before = FE108_OFFSET * FRAME_INTERVAL_US
        start, stop = list(pairwise(frame_ends(LENGTH + FE108_OFFSET)))[FE108_OFFSET - 1 + i]
        return represent("three_windows", events, 120, 160, start=int(start) - before, stop=int(stop) - before)
    if events is not None:
        return event_image(events, 120, 160)
    return depth_image(capture.raw[i]) if capture.modality == "rgbd" else thermal_image(capture.raw[i])


@pytest.mark.parametrize("official", LAYOUTS)
def test_every_benchmark_comes_back(roots, official):
    layout = LAYOUTS[official]
    read = open_benchmark(official, roots[official])
    assert [s.name for s in read] == [c.name for c in recorded(layout.modality)]
    for sequence, capture in zip(read, recorded(layout.modality), strict=True):
        assert len(sequence) == LENGTH
        np.testing.assert_array_equal(sequence.absent, False if official == "rgbt234" else capture.absent)
        seen = ~capture.absent
        np.testing.assert_allclose(sequence.boxes[seen], capture.boxes[seen], atol=0.5 * 10.0**-layout.decimals + 1e-9)
        for i in (0, 5, LENGTH - 1):
            frame = np.asarray(sequence.frames[i])
            assert frame.shape == (120, 160, 6)
            rgb, aux = (
                np.abs(frame[..., :3].astype(float) - capture.rgb[i]),
                np.abs(frame[..., 3:].astype(float) - shown(official, capture, i)),
            )
            assert rgb.max() == 0 if official in ("visevent", "coesot") else rgb.mean() < JPEG_ERROR
            assert aux.mean() < JPEG_ERROR if layout.modality == "rgbt" else aux.max() == 0


def test_train_and_test_lie_side_by_side_and_are_told_apart(tmp_path):
    for official, layout in LAYOUTS.items():
        if "train" in layout.folders:
            write_native(official, tmp_path / official, recorded(layout.modality)[:1], split="test")
            write_native(official, tmp_path / official, recorded(layout.modality)[1:2], split="train")
            for split, capture in zip(("test", "trainval"), recorded(layout.modality), strict=False):
                assert [s.name for s in open_benchmark(official, tmp_path / official, split=split)] == [capture.name]


def test_a_tree_is_shown(roots, tmp_path, capsys):
    run(Preview(source="depthtrack", root=roots["depthtrack"], first=1, sequences=2, out=tmp_path, frames=3, height=60))
    run(Preview(source="lasher", root=roots["lasher"], name=("target-test-0006",), out=tmp_path, frames=3, height=60))
    assert {p.name for p in tmp_path.iterdir()} == {
        "depthtrack_target-test-0001.png",
        "depthtrack_target-test-0006.png",
        "lasher_target-test-0006.png",
    }
    assert capsys.readouterr().out.count(".png") == 3


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"source": "lasher"}, "srft data preview lasher ROOT"),
        ({"source": "lasher", "name": ("nobody",)}, "--name nobody: not among the 3 sequences of test"),
        ({"source": "lasher", "split": "target-test"}, "--split target-test; expected one of test, train"),
        ({"source": "lasher", "first": 3}, "--first 3 --sequences 1: no such sequence of lasher"),
        ({"source": "rgbd", "split": "test"}, "--split test; expected one of target-test"),
        ({"source": "rgbd", "name": ("a",)}, "rgbd is no benchmark"),
        ({"source": "davis-cars", "split": "test"}, "the recording has none"),
        ({"source": "rgbd", "frames": 0}, "must be at least 1"),
    ],
)
def test_previews_that_cannot_be_drawn_are_refused(roots, tmp_path, wish, words):
    root = None if words.endswith("ROOT") or wish["source"] != "lasher" else roots["lasher"]
    with pytest.raises(ValueError, match=words):
        run(Preview(**wish, root=root, out=tmp_path))
    assert list(tmp_path.iterdir()) == []
