"""The MLflow UI, as the sweep says how to start it, in a real browser."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from srft.config import to_flat
from srft.run_logging import compare_address, open_study, ui_command
from srft.settings import from_flat
from tests.conftest import free_ports
from tests.mlflow_server import Server

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.long


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the program chromium, a browser")
def test_compare_page_in_a_browser_shows_settings_and_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recorded = json.loads((ROOT / "experiments" / "results" / "rgbe_sweep.json").read_text())["trials"]
    known = to_flat(from_flat({}))
    rows = [row for row in recorded if row["config"]["paradigm"] == "srft"][:3]
    trials = {i: from_flat({key: value for key, value in row["config"].items() if key in known}) for i, row in enumerate(rows)}
    with open_study(tmp_path, "rgbe-sweep", trials, digest="d") as log:
        for i, row in enumerate(rows):
            log.start_trial(i)
            log.log_epoch(i, 0, {"val/success_auc": row["val_success_auc"]})
            log.end_trial(i, "FINISHED")
    printed = ui_command(tmp_path).split()  # As the sweep prints it and the README says.
    assert printed[:4] == ["uv", "run", "mlflow", "ui"]
    ui = Server([sys.executable, "-m", "mlflow", *printed[3:]], free_ports(1)[0])
    ui.start()
    try:
        address = compare_address(tmp_path, list(trials), port=ui.port)
        browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
        # The first look compiles the page's scripts, which a busy machine may not finish in the time that the browser gives the page.
        for _ in range(3):
            page = [*browser, "--virtual-time-budget=60000", "--window-size=1500,1250", "--dump-dom", address]
            dom = subprocess.run(page, capture_output=True, text=True, timeout=240, check=True).stdout
            if "srft.kappa" in dom:
                break
        text = html.unescape(re.sub(r"<[^>]*>", "\n", dom))
        for key in ("srft.rank", "srft.kappa", "srft.schedule", "srft.prior_strength", "srft.damping_strength", "val/success_auc"):
            assert key in text
        for config, row in zip(trials.values(), rows, strict=True):
            assert config.name in text
            values = (config.srft.rank, config.srft.kappa, config.srft.schedule, config.srft.prior_strength)
            assert all(f"\n{value}\n" in text for value in values)
            assert f"{row['val_success_auc']:.3f}"[:4] in text
        if folder := os.environ.get("SRFT_SCREENSHOT"):
            taken = [*browser, "--virtual-time-budget=60000", "--window-size=1500,1250", f"--screenshot={folder}", address]
            subprocess.run(taken, capture_output=True, timeout=240, check=True)
    finally:
        ui.stop()
