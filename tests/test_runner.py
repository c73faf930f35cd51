"""Sequences in tasks of a Ray cluster."""

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srft.data.synthetic import sequences
from srft.evaluation.follow import track_sequences
from srft.evaluation.runner import balanced, follow_in_tasks
from srft.model.pretrained import load_tracker


class Deadly:
    """Frames of which one ends the process that reads it; the first time only, if there is a file to remember it by."""

    def __init__(self, frames, memory=None):
        self.frames, self.memory = frames, memory

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        if index == 3 and not (self.memory and self.memory.exists()):
            if self.memory:
                self.memory.touch()
            os._exit(1)
        return self.frames[index]


class Missing(Deadly):
    """Frames of which one is not there."""

    def __getitem__(self, index):
        if index == 3:
            raise OSError("frame 3 is missing")
        return self.frames[index]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 2000), min_size=1, max_size=60), st.integers(1, 12))
def test_parts_are_balanced(frames, parts):
    shares = balanced(frames, parts)
    assert sorted(number for share in shares for number in share) == list(range(len(frames)))
    assert len(shares) == min(parts, len(frames))
    loads = [sum(frames[number] for number in share) for share in shares]
    assert max(loads) - min(loads) <= max(frames)


def test_no_sequences_have_no_parts():
    assert balanced([], 3) == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_tasks_find_what_one_process_finds_and_a_lost_process_starts_again(tmp_path):
    network = load_tracker("tiny_rgb")
    videos = sequences("target-test", 4, seed=7, length=6, modality="rgb")
    odd = [
        replace(videos[0], frames=Deadly(videos[0].frames, tmp_path / "died")),
        replace(videos[1], frames=Missing(videos[1].frames)),
        *videos[2:],
    ]
    counted = []
    found = {f.number: f for f in follow_in_tasks(network, odd, workers=2, batch=2, on_frames=counted.append)}
    assert (tmp_path / "died").exists()
    assert sorted(found) == [0, 1, 2, 3]
    assert sum(counted) == 4 * 5
    assert "frame 3 is missing" in str(found[1].error)
    for number, expected in enumerate(track_sequences(network, videos)):
        if number != 1:
            assert found[number].error is None
            np.testing.assert_allclose(found[number].trajectory.boxes, expected.boxes, atol=1e-2)
            np.testing.assert_allclose(found[number].trajectory.scores, expected.scores, atol=1e-4)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_sequence_that_ends_every_process_costs_its_part_alone():
    network = load_tracker("tiny_rgb")
    videos = sequences("target-test", 2, seed=7, length=6, modality="rgb")
    found = {
        f.number: f for f in follow_in_tasks(network, [replace(videos[0], frames=Deadly(videos[0].frames)), videos[1]], workers=2, batch=1)
    }
    assert "did not finish" in str(found[0].error)
    assert found[1].error is None
