"""``srft retrain`` as a script, for cluster jobs from a working directory where the package is not installed.

uv run experiments/retrain.py --study outputs/rgbe_sweep --epochs 12 --workers 2
uv run experiments/retrain.py --model models:/srft-rgbe@champion --tracking-uri http://server:5000 --workers 8 --set optim.precision=bf16
"""

import logging

import tyro

from srft.cli import one_sentence
from srft.commands.retrain import Retrain, run

if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    with one_sentence("the same command with --resume goes on"):
        run(tyro.cli(Retrain))
