"""Turn the shipped RGB tracker into an RGB+thermal tracker, as rgbe_sweep.py does for events: same search, same baselines, same source.

    uv run experiments/rgbt_sweep.py
    uv run experiments/rgbt_sweep.py --quick
    uv run experiments/rgbt_sweep.py --out outputs/thermal --num-samples 20 --epochs 8 --resume

The target domain is synthetic throughout (a long-wave infrared camera; docs/synthetic.md), with blur and thermal cross-over; no
real recording is shipped for it. What is written below --out is listed in rgbe_sweep.py.
"""

from sweep import command

if __name__ == "__main__":
    command("rgbt", __doc__)
