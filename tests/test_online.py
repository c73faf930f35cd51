import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from srft.data.sequence import Sequence
from srft.data.synthetic import render_sequence
from srft.evaluation.follow import track_sequences
from srft.evaluation.metrics import iou, measure
from srft.evaluation.online import BatchTracker, OnlineTracker, hann_window
from srft.model.architecture import PRESETS
from srft.model.head import decode
from srft.model.pretrained import load_tracker
from srft.model.tracker import TrackerOutput
from tests.reference import online as reference


def cut(sequence: Sequence, length: int) -> Sequence:
    return dataclasses.replace(sequence, frames=sequence.frames[:length], boxes=sequence.boxes[:length], absent=sequence.absent[:length])


@pytest.fixture(scope="module")
def network():
    return load_tracker("tiny_rgb", streams=2)


@pytest.fixture(scope="module")
def sequences():
    """Target sequences of different lengths, the shortest of one frame."""
    return [cut(render_sequence("target-val", i, seed=7, length=8), length) for i, length in enumerate((8, 5, 1, 7))]


def followed(network, sequence):
    tracker = OnlineTracker(network)
    tracker.initialize(sequence.frames[0], sequence.boxes[0])
    return [tracker.track(frame) for frame in sequence.frames[1:]]


def test_many_at_once_are_each_followed_alone(network, sequences):
    counted: list[int] = []
    alone = [followed(network, sequence) for sequence in sequences]
    for batch in (1, 3, 16):
        together = track_sequences(network, sequences, batch=batch, on_frames=counted.append)
        assert [t.name for t in together] == [s.name for s in sequences]
        for sequence, trajectory, one_by_one in zip(sequences, together, alone, strict=True):
            assert trajectory.boxes.shape == (len(sequence), 4)
            assert trajectory.boxes.dtype == np.float64
            np.testing.assert_array_equal(trajectory.boxes[0], sequence.boxes[0])
            assert trajectory.scores[0] == 1
            for t, (box, score) in enumerate(one_by_one, 1):
                np.testing.assert_allclose(trajectory.boxes[t] / 160, box / 160, atol=1e-5)  # in widths of the frame
                assert trajectory.scores[t] == pytest.approx(score, abs=1e-5)
    assert sum(counted) == 3 * sum(len(s) - 1 for s in sequences)


def test_targets_join_pause_and_leave_without_disturbing_each_other(network, sequences):
    """Two targets of one video and one of another, in a batch whose members change from frame to frame."""
    video, other = sequences[0], sequences[3]
    second = np.array([20.0, 30, 25, 18])
    plan = [("a",), ("a", "b"), ("b", "a", "c"), ("c", "a"), ("a", "b", "c"), ("c",)]
    starts = {"a": (video, video.boxes[0]), "b": (video, second), "c": (other, other.boxes[0])}
    alone, tracker, seen = {}, BatchTracker(network), dict.fromkeys(starts, 0)
    for name, (sequence, box) in starts.items():
        alone[name] = OnlineTracker(network)
        alone[name].initialize(sequence.frames[0], box)
    for names in plan:
        for name in set(names) - set(tracker.targets):
            tracker.join(name, starts[name][0].frames[0], starts[name][1])
        frames = {}
        for name in names:
            seen[name] += 1
            frames[name] = starts[name][0].frames[seen[name]]
        answers = tracker.track(frames)
        assert tuple(answers) == names
        for name, (box, score) in answers.items():
            expected = alone[name].track(frames[name])
            np.testing.assert_allclose(box / 160, expected.box / 160, atol=1e-5)
            assert score == pytest.approx(expected.score, abs=1e-5)
    tracker.leave("b")
    assert tracker.targets == ("a", "c")
    assert tracker.track({}) == {}
    with pytest.raises(ValueError, match=r"'b' was shown; join\('b', frame, box\) first"):
        tracker.track({"b": video.frames[1]})
    with pytest.raises(ValueError, match="no target 'b' is followed; targets are"):
        tracker.leave("b")
    with pytest.raises(ValueError, match="'a' is already followed"):
        tracker.join("a", video.frames[0], second)


def test_a_name_that_joins_anew_is_shown_anew(network, sequences):
    tracker, video = BatchTracker(network), sequences[0]
    tracker.join("a", video.frames[0], video.boxes[0])
    first = tracker.track({"a": video.frames[1]})["a"]
    tracker.leave("a")
    tracker.join("a", video.frames[3], video.boxes[3])
    assert not np.array_equal(tracker.track({"a": video.frames[1]})["a"].box, first.box)


def test_a_missing_part_is_a_black_one(network, sequences):
    """Per frame and per target: the pair with None, the pair with zeros and the whole frame with zeros are the same."""
    video, box = sequences[0], sequences[0].boxes[0]
    black, frames = np.zeros_like(video.frames[0][..., :3]), [video.frames[t] for t in range(5)]
    rgb, aux = ([f[..., :3] for f in frames], [f[..., 3:] for f in frames])
    joined = lambda first, second: np.concatenate([first, second], 2)
    shown = {
        "None": [frames[0], (rgb[1], None), (None, aux[2]), frames[3], rgb[4]],
        "zeros": [(rgb[0], aux[0]), (rgb[1], black), (black, aux[2]), (rgb[3], aux[3]), (rgb[4], black)],
        "whole": [frames[0], joined(rgb[1], black), joined(black, aux[2]), frames[3], joined(rgb[4], black)],
        "no aux at first": [rgb[0], frames[1], frames[2], frames[3], frames[4]],
        "black at first": [joined(rgb[0], black), *frames[1:]],
        "events only": [(None, aux[0]), *((None, a) for a in aux[1:])],
        "black RGB": [joined(black, a) for a in aux],
        "all": frames,
    }
    tracker, answers = BatchTracker(network), {name: [] for name in shown}
    for name, parts in shown.items():
        tracker.join(name, parts[0], box)
    for t in range(1, 5):
        for name, (found, _) in tracker.track({name: parts[t] for name, parts in shown.items()}).items():
            answers[name].append(found)
    for one, same in (("None", "zeros"), ("None", "whole"), ("no aux at first", "black at first"), ("events only", "black RGB")):
        np.testing.assert_allclose(answers[one], answers[same], atol=1e-3)
    for one in ("None", "no aux at first", "events only"):
        assert np.abs(np.array(answers[one]) - answers["all"]).max() > 0.1


def test_one_stream_looks_at_rgb_alone(sequences):
    single, video = load_tracker("tiny_rgb"), sequences[0]
    tracker = BatchTracker(single)
    tracker.join("whole", video.frames[0], video.boxes[0])
    tracker.join("rgb", video.frames[0][..., :3], video.boxes[0])
    for frame in video.frames[1:4]:
        answers = tracker.track({"whole": frame, "rgb": (frame[..., :3], None)})
        np.testing.assert_allclose(answers["whole"].box, answers["rgb"].box, atol=1e-3)
    with pytest.raises(ValueError, match="RGB frame is missing, and this tracker looks at nothing else"):
        tracker.join("aux", (None, video.frames[0][..., 3:]), video.boxes[0])
    shown = tracker.track({"whole": (None, video.frames[4][..., 3:]), "rgb": np.zeros_like(video.frames[4])})
    np.testing.assert_allclose(shown["whole"].box, shown["rgb"].box, atol=1e-3)


def test_bfloat16_is_close_and_leaves_the_network_alone(network, sequences):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    half = OnlineTracker(network, device="cpu", precision="bf16")
    full = OnlineTracker(network)
    for tracker in (half, full):
        tracker.initialize(sequences[0].frames[0], sequences[0].boxes[0])
    a, b = half.track(sequences[0].frames[1]), full.track(sequences[0].frames[1])
    assert a.box.tolist() != b.box.tolist()
    np.testing.assert_allclose(a.box, b.box, atol=1.0)
    assert a.score == pytest.approx(b.score, abs=0.03)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.dtype == before[name].dtype


def test_weights_rounded_once_are_what_autocast_rounds(network, sequences):
    tracker, box = BatchTracker(network, precision="bf16"), sequences[0].boxes[0]
    tracker.join(0, sequences[0].frames[0], box)
    rounded = tracker.track({0: sequences[0].frames[1]})[0]
    tracker = BatchTracker(network, precision="bf16")
    tracker._network = network
    tracker.join(0, sequences[0].frames[0], box)
    np.testing.assert_array_equal(tracker.track({0: sequences[0].frames[1]})[0].box, rounded.box)


def test_following_alone_is_repeatable_and_starts_anew(network, sequences):
    tracker = OnlineTracker(network)
    answers = []
    for _ in range(2):
        tracker.initialize(sequences[0].frames[0], sequences[0].boxes[0])
        answers.append([tracker.track(frame) for frame in sequences[0].frames[1:4]])
    for first, second in zip(*answers, strict=True):
        np.testing.assert_array_equal(first.box, second.box)
        assert first.score == second.score


def test_an_answer_is_not_changed_by_the_next_one(network, sequences):
    tracker = OnlineTracker(network)
    tracker.initialize(sequences[0].frames[0], sequences[0].boxes[0])
    box = tracker.track(sequences[0].frames[1]).box
    kept = box.copy()
    box[:] = 1e6
    np.testing.assert_allclose(tracker.track(sequences[0].frames[2]).box[:2], kept[:2], atol=100)


def test_rgb_only_hides_the_auxiliary_channels(network, sequences):
    noise = np.random.default_rng(0)
    scrambled = [dataclasses.replace(s, frames=s.frames.copy()) for s in sequences]
    for sequence in scrambled:
        sequence.frames[..., 3:] = noise.integers(0, 256, sequence.frames[..., 3:].shape, np.uint8)
    for a, b in zip(*(track_sequences(network, s, rgb_only=True) for s in (sequences, scrambled)), strict=True):
        np.testing.assert_array_equal(a.boxes, b.boxes)
    assert any(
        not np.array_equal(a.boxes, b.boxes) for a, b in zip(*(track_sequences(network, s) for s in (sequences, scrambled)), strict=True)
    )


def test_nothing_to_track_is_nothing(network):
    assert track_sequences(network, []) == []


def test_tracking_before_the_target_was_shown_is_an_error(network, sequences):
    with pytest.raises(ValueError, match=r"before initialize\(frame, box\)"):
        OnlineTracker(network).track(sequences[0].frames[0])


FRAME, BOX = np.zeros((120, 160, 6), np.uint8), [10.0, 10, 20, 20]


@pytest.mark.parametrize(
    ("frame", "box", "message"),
    [
        (FRAME, [10.0, 10, 0, 5], "positive width and height"),
        (FRAME, [10.0, 10, 5, -1], "positive width and height"),
        (FRAME, [np.nan, 10, 5, 5], "finite left, top"),
        (FRAME, [10, 10, np.inf, 5], "finite left, top"),
        (FRAME, [10, 10, 5], "finite left, top"),
        (FRAME, [160, 10, 5, 5], "outside the 160x120 frame"),
        (FRAME, [10, 120, 5, 5], "outside the 160x120 frame"),
        (FRAME, [-5, 10, 5, 5], "outside the 160x120 frame"),
        (FRAME, [10, -8.5, 5, 8], "outside the 160x120 frame"),
        (FRAME.astype(np.float32), BOX, r"float32 \[120, 160, 6\]; expected uint8 \[H, W, 3 or 6\]; turn values from 0 to 1"),
        (FRAME[..., 0].astype(np.uint16), BOX, "uint16.*depth_image.*thermal_image"),
        (FRAME[..., 0], BOX, "repeat the one channel"),
        (FRAME[..., :1], BOX, "repeat the one channel"),
        (FRAME[..., :4], BOX, "alpha"),
        (FRAME[:0], BOX, "empty: was the file read"),
        (None, BOX, "NoneType"),
        (FRAME.tolist(), BOX, "frame is a list; expected uint8"),
        ((FRAME[..., :3], FRAME[..., 3].astype(np.uint16)), BOX, "auxiliary image is uint16.*depth_image"),
        ((FRAME, None), BOX, r"RGB frame is uint8 \[120, 160, 6\]; expected uint8 \[H, W, 3\]"),
        ((None, None), BOX, r"expected an RGB frame, an auxiliary image, or both"),
        ((FRAME[..., :3],), BOX, "1 parts; expected"),
        ((FRAME[..., :3], FRAME[1:, :, 3:]), BOX, "160x120 pixels, the auxiliary image 160x119"),
    ],
)
def test_what_cannot_be_shown_is_named(network, frame, box, message):
    with pytest.raises(ValueError, match=f"target 'car', first frame: .*{message}"):
        BatchTracker(network).join("car", frame, box)


def test_a_box_may_reach_out_of_the_frame(network):
    tracker = OnlineTracker(network)
    tracker.initialize(FRAME, np.array([-10.0, 110, 15, 30]))
    assert np.isfinite(tracker.track(FRAME).box).all()


def test_what_cannot_be_shown_anew_leaves_the_target_that_is_followed(network, sequences):
    tracker, once = OnlineTracker(network), OnlineTracker(network)
    for each in (tracker, once):
        each.initialize(sequences[0].frames[0], sequences[0].boxes[0])
    with pytest.raises(ValueError, match="outside the 160x120 frame"):
        tracker.initialize(sequences[1].frames[0], np.array([500.0, 10, 5, 5]))
    np.testing.assert_array_equal(tracker.track(sequences[0].frames[1]).box, once.track(sequences[0].frames[1]).box)
    tracker.initialize(sequences[1].frames[0], sequences[1].boxes[0])
    once = OnlineTracker(network)
    once.initialize(sequences[1].frames[0], sequences[1].boxes[0])
    np.testing.assert_array_equal(tracker.track(sequences[1].frames[1]).box, once.track(sequences[1].frames[1]).box)


def test_a_wrong_frame_later_on_is_named_and_moves_nobody(network, sequences):
    tracker, once = BatchTracker(network), BatchTracker(network)
    for name in "ab":
        for each in (tracker, once):
            each.join(name, sequences[0].frames[0], sequences[0].boxes[0])
    right, smaller = sequences[0].frames[1], sequences[0].frames[1][:, :-1]
    tracker.track(dict.fromkeys("ab", right))
    once.track(dict.fromkeys("ab", right))
    with pytest.raises(ValueError, match="target 'b', frame 2 after the first: it has 159x120 pixels, the first one 160x120"):
        tracker.track({"a": right, "b": smaller})
    with pytest.raises(ValueError, match="target 'a', frame 2 after the first: frame is float64"):
        tracker.track({"b": right, "a": right / 255})
    frames = dict.fromkeys("ab", sequences[0].frames[2])
    np.testing.assert_array_equal(tracker.track(frames)["a"].box, once.track(frames)["a"].box)


@pytest.mark.parametrize("spoilt", ["box_head.conv5_ctr.bias", "box_head.conv5_size.weight", "backbone.norm.weight"])
def test_weights_that_are_not_numbers_are_named(spoilt):
    broken = load_tracker("tiny_rgb")
    with torch.no_grad():
        broken.get_parameter(spoilt).view(-1)[0] = torch.nan
    tracker = OnlineTracker(broken)
    tracker.initialize(FRAME, np.array(BOX))
    with pytest.raises(ValueError, match=f"frame 1 after the first: .* NaN or infinite; these weights are not finite: {spoilt}"):
        tracker.track(FRAME)


def test_unknown_precision_absent_device_and_empty_batch_are_errors(network, sequences):
    with pytest.raises(ValueError, match="precision is 'fp8'; expected one of fp32, bf16"):
        OnlineTracker(network, precision="fp8")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds no CUDA device"):
            OnlineTracker(network, device="cuda:0")
    with pytest.raises(ValueError, match="batch is 0"):
        track_sequences(network, sequences, batch=0)


@pytest.mark.parametrize("cells", [1, 8, 16])
def test_the_window_is_the_published_one(cells):
    torch.testing.assert_close(hann_window(cells).double(), torch.tensor(reference.hann(cells), dtype=torch.float64), rtol=0, atol=1e-6)


class Scripted(nn.Module):
    """Answers with given maps, whatever it is shown."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.arch, self.streams = PRESETS["tiny"], 1
        self.anchor = nn.Parameter(torch.zeros(1))
        self.generator = torch.Generator().manual_seed(seed)
        self.last: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def forward(self, template, search):
        cells = self.arch.search_cells
        score, size = (torch.rand(len(search), n, cells, cells, generator=self.generator) for n in (1, 2))
        offset = 3 * torch.randn(len(search), 2, cells, cells, generator=self.generator)
        self.last = score, size, offset
        return TrackerOutput(score, size, offset, decode(score, size, offset))


def test_boxes_come_back_into_the_frame_as_published():
    """Random maps drive the box about, against every edge of the frame and beyond."""
    frame, network = np.zeros((50, 70, 3), np.uint8), Scripted(0)
    tracker, box = OnlineTracker(network), [20.0, 15.0, 18.0, 12.0]
    tracker.initialize(frame, np.array(box))
    touched = set()
    for _ in range(100):
        tracked = tracker.track(frame)
        score, size, offset = (maps[0].tolist() for maps in network.last)
        factor = network.arch.search_px / math.ceil(math.sqrt(box[2] * box[3]) * network.arch.search_factor)
        expected, confidence = reference.locate(score[0], size, offset, box, factor, network.arch.search_px, (70, 50))
        np.testing.assert_allclose(tracked.box, expected, atol=1e-3)
        assert tracked.score == pytest.approx(confidence, abs=1e-6)
        box = tracked.box.tolist()
        assert min(box[2:]) >= 10
        assert box[0] >= 0
        assert box[1] >= 0
        assert box[0] + box[2] <= 70
        assert box[1] + box[3] <= 50
        edges = {"left": box[0] == 0, "top": box[1] == 0, "right": box[0] + box[2] == 70, "bottom": box[1] + box[3] == 50}
        kept = {"kept right": box[0] == 60, "kept bottom": box[1] == 40}
        touched |= {name for name, there in (edges | kept).items() if there}
    assert touched == {"left", "top", "right", "bottom", "kept right", "kept bottom"}


def test_scripted_targets_in_one_batch_keep_their_own_previous_boxes():
    """Two targets in frames of different size: each answer is relative to its own last box."""
    network = Scripted(1)
    still = [
        Sequence(name=f"{w}", frames=np.zeros((6, h, w, 3), np.uint8), boxes=np.tile(box, (6, 1)), absent=np.zeros(6, bool))
        for h, w, box in ((60, 90, [10.0, 20, 20, 10]), (200, 100, [60.0, 150, 14, 30]))
    ]
    trajectories = track_sequences(network, still)
    network = Scripted(1)
    boxes = [s.boxes[0].tolist() for s in still]
    for t in range(1, 6):
        network(None, torch.zeros(2, 3, 1, 1))
        for k, sequence in enumerate(still):
            score, size, offset = (maps[k].tolist() for maps in network.last)
            factor = 128 / math.ceil(math.sqrt(boxes[k][2] * boxes[k][3]) * 4)
            boxes[k], _ = reference.locate(score[0], size, offset, boxes[k], factor, 128, sequence.frames.shape[2:0:-1])
            np.testing.assert_allclose(trajectories[k].boxes[t], boxes[k], atol=1e-3)


@pytest.fixture(scope="module")
def easy():
    return [render_sequence("source-test", i, seed=7, length=24) for i in range(10)]


def success(boxes, sequences):
    return measure([(b, s.boxes, s.absent) for b, s in zip(boxes, sequences, strict=True)]).success_auc


def test_the_shipped_tracker_follows_its_target(easy):
    """Far better than to stay where the target was first seen, for which its motion leaves little overlap."""
    tracked = success([t.boxes for t in track_sequences(load_tracker("tiny_rgb"), easy)], easy)
    stayed = success([np.tile(s.boxes[:1], (len(s), 1)) for s in easy], easy)
    assert tracked > max(0.3, stayed + 0.1)


def test_a_shifted_scene_gives_a_shifted_box(easy):
    """Nothing but the crop around the target is looked at: moving the picture moves the answer."""
    sequence = min(easy, key=lambda s: np.abs(s.boxes[0, :2] + s.boxes[0, 2:] / 2 - [80, 60]).sum())
    network = load_tracker("tiny_rgb")
    wide = np.zeros((2, 520, 560, 3), np.uint8)
    moved = np.zeros_like(wide)
    wide[:, 200:320, 200:360] = sequence.frames[:2]
    moved[:, 217:337, 211:371] = sequence.frames[:2]
    answers = []
    for frames, shift in ((wide, (200, 200, 0, 0)), (moved, (211, 217, 0, 0))):
        tracker = OnlineTracker(network)
        tracker.initialize(frames[0], sequence.boxes[0] + shift)
        answers.append(tracker.track(frames[1]).box - shift)
    # The crop's corner is rounded to whole pixels, half to even, which an odd shift can turn by one pixel.
    np.testing.assert_allclose(answers[0], answers[1], atol=2)
    assert iou(answers[0][None], sequence.boxes[1:2])[0] > 0.2
