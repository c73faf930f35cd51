import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from srft.data.sequence import Sequence
from srft.data.synthetic import render_sequence
from srft.evaluation.metrics import iou, measure
from srft.evaluation.online import OnlineTracker, hann_window, track_sequences
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


def test_many_in_lock_step_are_each_followed_alone(network, sequences):
    together = track_sequences(network, sequences)
    assert [t.name for t in together] == [s.name for s in sequences]
    for sequence, trajectory in zip(sequences, together, strict=True):
        alone = followed(network, sequence)
        assert trajectory.boxes.shape == (len(sequence), 4)
        assert trajectory.boxes.dtype == np.float64
        np.testing.assert_array_equal(trajectory.boxes[0], sequence.boxes[0])
        assert trajectory.scores[0] == 1
        for t, (box, score) in enumerate(alone, 1):
            np.testing.assert_allclose(trajectory.boxes[t], box, atol=1e-2)
            assert trajectory.scores[t] == pytest.approx(score, abs=1e-4)


def test_the_number_tracked_at_once_does_not_matter(network, sequences):
    counted: list[int] = []
    whole = track_sequences(network, sequences)
    for batch in (1, 3):
        for a, b in zip(whole, track_sequences(network, sequences, batch=batch, on_frames=counted.append), strict=True):
            np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-2)
    assert sum(counted) == 2 * sum(len(s) - 1 for s in sequences)


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


def test_a_box_without_area_cannot_be_shown(network, sequences):
    with pytest.raises(ValueError, match="positive size"):
        OnlineTracker(network).initialize(sequences[0].frames[0], np.array([10.0, 10, 0, 5]))


@pytest.mark.parametrize("cells", [1, 8, 16])
def test_the_window_is_the_published_one(cells):
    torch.testing.assert_close(hann_window(cells).double(), torch.tensor(reference.hann(cells), dtype=torch.float64), rtol=0, atol=1e-6)


class Scripted(nn.Module):
    """Answers with given maps, whatever it is shown."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.arch = PRESETS["tiny"]
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
