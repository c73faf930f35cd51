import threading

import pytest

from srft.data.frames import read_ahead


def test_reading_ahead_changes_nothing_but_when():
    read, started = [], threading.Event()

    def slow(index):
        read.append(index)
        if index == 6:
            started.set()
        return index * index

    frames = read_ahead(slow, range(5, 9))
    assert next(frames) == 25
    assert started.wait(5)  # the next one is read while nobody asks for it
    assert 8 not in read  # and no more than that
    assert list(frames) == [36, 49, 64]
    assert read == [5, 6, 7, 8]
    assert list(read_ahead(slow, [])) == []


def test_a_frame_that_cannot_be_read_is_an_error_in_its_turn():
    frames = read_ahead([10, 20].__getitem__, range(5))
    assert [next(frames), next(frames)] == [10, 20]
    with pytest.raises(IndexError):
        next(frames)
