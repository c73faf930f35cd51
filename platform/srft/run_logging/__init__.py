"""Runs in MLflow: a study is a parent run, its trials are child runs. The only part that imports mlflow.

One process writes, the one that started the study, by explicit run ids. Writing happens in a thread behind a queue, so a store that
is slow or away never holds up training: what could not be sent is kept beside the study, sent later and sent once.
"""

from srft.run_logging.origin import Origin, config_of, find_origin
from srft.run_logging.reading import LoggedTrial, compare_address, log_pictures, log_report, logged_trials
from srft.run_logging.store import SETTINGS, SINCE, store_uri, ui_command
from srft.run_logging.writing import RunState, StudyLog, open_study

__all__ = [
    "SETTINGS", "SINCE", "LoggedTrial", "Origin", "RunState", "StudyLog", "compare_address", "config_of", "find_origin",
    "log_pictures", "log_report", "logged_trials", "open_study", "store_uri", "ui_command",
]  # fmt: skip
