"""Turn the shipped RGB tracker into an RGB+event tracker: search SRFT's settings, compare them with full fine-tuning, test the winner.

    uv run experiments/rgbe_sweep.py                       # 2 baselines, SRFT's default and 6 trials, under 8 minutes on 2 cores
    uv run experiments/rgbe_sweep.py --quick               # the same path in 2 minutes, to see it work
    uv run experiments/rgbe_sweep.py --num-samples 20 --epochs 8 --out outputs/long
    uv run experiments/rgbe_sweep.py --out outputs/long --num-samples 20 --epochs 8 --resume    # after Ctrl-C or a crash
    uv run experiments/rgbe_sweep.py --workers 2           # each trial is a Ray Train run of two workers
    uv run experiments/rgbe_sweep.py --search tpe --num-samples 30 --scheduler hyperband --out outputs/tpe
    uv run experiments/rgbe_sweep.py --search tpe --learn-from outputs/rgbe_sweep --out outputs/informed
    uv run experiments/rgbe_sweep.py --search tpe --objective pareto --num-samples 30 --out outputs/pareto
    uv run experiments/rgbe_sweep.py --search pbt --num-samples 8 --epochs 12 --out outputs/pbt
    uv run experiments/rgbe_sweep.py --search grid --vary srft.rank=4,16 srft.kappa=0.5,1,2 --out outputs/grid

Trains on synthetic event sequences, chooses by synthetic validation sequences, tests once on synthetic test sequences, on cars
recorded with a real DAVIS346 event camera, and on RGB sequences of the source domain (what was forgotten). Everything is written
below --out: mlflow.db and artifacts/ (runs), trials/ (checkpoints), cache/ (rendered data), pictures/,
leaderboard.json and .md, best.json (the winner's settings, for `srft train --config`).
"""

from sweep import command

if __name__ == "__main__":
    command("rgbe", __doc__)
