"""What a sequence of one's own must be."""

import numpy as np
import pytest

from srft.data.sequence import Sequence

FRAMES, BOXES = np.zeros((3, 8, 8, 3), np.uint8), np.ones((3, 4))


@pytest.mark.parametrize("absent", [np.array([0, 1, 0]), np.array([0.0, 1.0, 0.0]), [False, True, False]])
def test_flags_of_another_type_are_refused(absent):
    """Inverting whole numbers bit by bit gives no zero: every frame would have been one with a visible target."""
    with pytest.raises(ValueError, match=r"sequence a: absent .*expected bool \[3\].*astype\(bool\)"):
        Sequence(name="a", frames=FRAMES, boxes=BOXES, absent=absent)


@pytest.mark.parametrize("boxes", [np.ones((3, 5)), np.ones(3), [[1, 1, 1, 1]] * 3])
def test_boxes_of_another_shape_are_refused(boxes):
    with pytest.raises(ValueError, match=r"sequence a: boxes .*expected .*\[3, 4\]"):
        Sequence(name="a", frames=FRAMES, boxes=boxes, absent=np.zeros(3, bool))


def test_a_sequence_of_one_frame_has_no_gap():
    assert Sequence(name="a", frames=FRAMES[:1], boxes=BOXES[:1], absent=np.zeros(1, bool)).shortest_gap == np.inf
