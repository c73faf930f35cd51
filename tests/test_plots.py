import cv2
import numpy as np
import pytest

from srft.data.sequence import Sequence
from srft.evaluation.metrics import measure
from srft.evaluation.plots import COLORS, GROUNDTRUTH, picture_strip, success_plot


def sequence(channels: int, length: int = 9) -> Sequence:
    frames = np.full((length, 60, 80, channels), 90, np.uint8)
    frames[..., 3:] = 200
    absent = np.zeros(length, bool)
    absent[-1] = True
    return Sequence(name="s", frames=frames, boxes=np.tile([20.0, 15, 30, 20], (length, 1)), absent=absent)


def read(path) -> np.ndarray:
    picture = cv2.imread(str(path))
    assert picture is not None
    return picture[..., ::-1]


def has(picture: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((picture == color).all(-1).any())


def test_the_success_plot_is_a_picture_of_fixed_size(tmp_path):
    truth = np.tile([10.0, 10, 20, 20], (6, 1))
    results = {name: measure([(truth + shift, truth, np.zeros(6, bool))]) for name, shift in (("good", 1.0), ("bad", 9.0))}
    path = tmp_path / "below" / "plot.png"
    success_plot(results, path, title="Two trackers")
    picture = read(path)
    assert picture.shape == (440, 1100, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    assert [p.name for p in path.parent.iterdir()] == ["plot.png"]
    success_plot(dict(reversed(results.items())), tmp_path / "again.png", title="Two trackers")
    np.testing.assert_array_equal(read(tmp_path / "again.png"), picture)  # sorted by measure, whatever the order given


def test_plotting_leaves_the_callers_figures_and_backend_alone(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("svg", force=True)
    import matplotlib.pyplot as plt

    mine = plt.figure()
    truth = np.tile([10.0, 10, 20, 20], (3, 1))
    success_plot({"one": measure([(truth, truth, np.zeros(3, bool))])}, tmp_path / "p.png", title="t")
    assert plt.get_fignums() == [mine.number]
    assert matplotlib.get_backend() == "svg"
    plt.close(mine)


@pytest.mark.parametrize("channels", [3, 6])
def test_a_strip_has_one_row_per_modality(tmp_path, channels):
    s = sequence(channels)
    shifted = s.boxes + np.array([3, 4, 0, 0])
    picture_strip(s, {"ours": shifted}, tmp_path / "strip.png", frames=4, height=120)
    picture = read(tmp_path / "strip.png")
    assert picture.shape == (26 + 120 * channels // 3, 4 * 160, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["strip.png"]
    legend, rows = picture[:26], picture[26:]
    for part in (legend, *np.split(rows, channels // 3)):
        assert has(part, GROUNDTRUTH)
        assert has(part, COLORS[0])
    assert not has(rows, COLORS[1])
    # The last of the four frames shows no target: its tracked box is drawn, a groundtruth box is not.
    assert not has(rows[:, -160:], GROUNDTRUTH)
    assert has(rows[:, -160:], COLORS[0])
    assert (rows[60 if channels == 3 else 180, 150] == (90 if channels == 3 else 200)).all()


def test_boxes_are_drawn_where_they_are(tmp_path):
    s = sequence(3)
    picture_strip(s, {}, tmp_path / "strip.png", frames=1, height=60)
    ys, xs = np.nonzero((read(tmp_path / "strip.png")[26:] == GROUNDTRUTH).all(-1))
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == pytest.approx((20, 50, 15, 35), abs=1)


def test_a_box_that_is_no_number_is_left_out(tmp_path):
    s = sequence(3)
    picture_strip(s, {"lost": np.full((9, 4), np.nan)}, tmp_path / "strip.png")
    assert not has(read(tmp_path / "strip.png")[26:], COLORS[0])


def test_too_many_trackers_and_missing_boxes_are_named(tmp_path):
    s = sequence(3)
    with pytest.raises(ValueError, match="5 trackers to draw; expected at most 4"):
        picture_strip(s, {str(i): s.boxes for i in range(5)}, tmp_path / "strip.png")
    with pytest.raises(ValueError, match=r"boxes of ours are \(3, 4\); expected \(9, 4\)"):
        picture_strip(s, {"ours": s.boxes[:3]}, tmp_path / "strip.png")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "strip.png"
    path.write_bytes(b"old")

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        picture_strip(sequence(3), {}, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
