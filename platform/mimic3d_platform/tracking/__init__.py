"""MLflow: the server, its runs, and a logger that waits for outages to end."""

from mimic3d_platform.tracking.inputs import log_dataset
from mimic3d_platform.tracking.runs import (
    EXPERIMENT,
    PARENT_TAG,
    RUN_NAME_TAG,
    children_of,
    closed_after,
    download_artifacts,
    find_run,
    finish_run,
    flat_params,
    run_url,
    start_or_resume_run,
)
from mimic3d_platform.tracking.server import check_tracking

__all__ = [
    "EXPERIMENT",
    "PARENT_TAG",
    "RUN_NAME_TAG",
    "check_tracking",
    "children_of",
    "closed_after",
    "download_artifacts",
    "find_run",
    "finish_run",
    "flat_params",
    "log_dataset",
    "run_url",
    "start_or_resume_run",
]
