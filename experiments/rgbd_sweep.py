"""Turn the shipped RGB tracker into an RGB+depth tracker, as rgbe_sweep.py does for events: same search, same baselines, same source.

    uv run experiments/rgbd_sweep.py
    uv run experiments/rgbd_sweep.py --quick
    uv run experiments/rgbd_sweep.py --out outputs/depth --num-samples 20 --epochs 8 --resume

The target domain is synthetic throughout (a stereo depth camera, shown as JET; docs/synthetic.md), with holes, absorbing targets and
limited range; no real recording is shipped for it. What is written below --out is listed in rgbe_sweep.py.
"""

from sweep import command

if __name__ == "__main__":
    command("rgbd", __doc__)
