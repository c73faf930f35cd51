import subprocess
import sys

import cv2
import pytest

from srft.commands.data_preview import Preview, run


@pytest.mark.parametrize(
    ("arguments", "names", "rows"),
    [
        ({"source": "davis-cars", "first": 1}, ["davis-cars_white_sedan.png"], 2),
        ({"source": "rgbd", "sequences": 2, "length": 8}, ["rgbd_target-test-0000.png", "rgbd_target-test-0001.png"], 2),
        ({"source": "rgb", "split": "source-test", "length": 8}, ["rgb_source-test-0000.png"], 1),
    ],
)
def test_strips_of_both_modalities_are_drawn(tmp_path, capsys, arguments, names, rows):
    run(Preview(**arguments, out=tmp_path / "shown", height=60, frames=3))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [str(tmp_path / "shown" / name) for name in names]
    for name in names:
        assert cv2.imread(str(tmp_path / "shown" / name)).shape[:2] == (
            26 + 60 * rows,
            3 * round(60 * (346 / 260 if "cars" in name else 4 / 3)),
        )


def test_a_sequence_that_is_not_there_is_one_sentence(tmp_path):
    command = [sys.executable, "-m", "srft.cli", "data", "preview", "davis-cars", "--first", "3", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: --first 3 --sequences 1: no such sequence of davis-cars; they count from 0"
