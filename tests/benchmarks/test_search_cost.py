"""The training that early stopping is measured on: settings matter, and a run is what its seed makes it."""

from pathlib import Path

from srft.settings import from_flat
from srft.training import checkpoint
from tests.benchmarks.search_cost import DIGITS, digits

BASE = from_flat({"optim.epochs": 2, "optim.batch_size": 64, "optim.weight_decay": 1e-4})


def accuracies(directory: Path, **settings: float) -> list[float]:
    seen = []
    config = from_flat({f"optim.{key}": value for key, value in settings.items()}, BASE)
    digits(config, directory=directory, worker=None, on_epoch=lambda report: seen.append(report.metrics["val/accuracy"]), resume=False)
    assert [entry["metrics"]["val/accuracy"] for entry in checkpoint.history(directory)] == seen
    return seen


def test_digits(tmp_path: Path) -> None:
    DIGITS.validate(BASE)
    good, again, slow = (accuracies(tmp_path / str(i), lr=lr) for i, lr in enumerate((0.1, 0.1, 1e-4)))
    assert good == again
    assert good[-1] > 0.85
    assert slow[-1] < 0.6
