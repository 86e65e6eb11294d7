"""What a study leaves in MLflow: a reader's window on the ledger, never a second truth."""

from tuner.tracking.fetching import fetch_bundle
from tuner.tracking.location import (
    EXPERIMENT,
    compare_url,
    default_uri,
    located_uri,
    masked,
    study_url,
    ui_address,
    ui_command,
)
from tuner.tracking.projection import SyncReport
from tuner.tracking.tracker import Tracker, check_tracking, sync

__all__ = [
    "EXPERIMENT",
    "SyncReport",
    "Tracker",
    "check_tracking",
    "compare_url",
    "default_uri",
    "fetch_bundle",
    "located_uri",
    "masked",
    "study_url",
    "sync",
    "ui_address",
    "ui_command",
]
