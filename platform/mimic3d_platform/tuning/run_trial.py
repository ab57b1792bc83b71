"""The function that Ray Tune runs for one trial of a sweep: a training run that reports its metrics."""

from __future__ import annotations

from dataclasses import dataclass, field

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from tenacity import Retrying, retry_if_exception_type, stop_after_delay

from mimic3d.config import Config
from mimic3d_platform import storage, tracking
from mimic3d_platform.data.format.dataset import open_dataset
from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import use_services_of
from mimic3d_platform.storage.retries import GrowingPauses
from mimic3d_platform.training.train import train

# Keys of reports. In the last one: that the training has ended, and its measurements by images consumed.
FINISHED, HISTORY = "finished", "history"
# In reports that an earlier process of the sweep has recorded: they are replayed for the scheduler.
REPLAYED = "replayed"


@dataclass(frozen=True)
class Assignment:
    """The assignment of one Ray Tune trial.

    Attributes:
        index: of the sweep's trial.
        name: of its run.
        config: None where the trial has ended: its reports are replayed, and nothing is trained.
        tags: for its run in MLflow.
        replay: its recorded reports, which the scheduler has to see again.
    """

    index: int
    name: str
    config: Config | None = field(default=None, repr=False)
    tags: dict[str, str] = field(default_factory=dict, repr=False)
    replay: tuple[dict[str, float], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class TrialSettings:
    """Settings that all trials' runs share.

    Attributes:
        environment: the services' settings. They hold secrets, and as an object they show on no page of Ray.
    """

    runs_uri: str
    workers: int
    parent_run_id: str
    environment: ray.ObjectRef


def run_trial(config: dict[str, Assignment], settings: TrialSettings) -> None:
    """The function that Ray Tune runs for a trial. It holds no CPU: the trial's Ray Train workers do.

    Every measurement of the run is reported to Tune, and its result in a last report.
    """
    assignment = config["assignment"]
    for report in assignment.replay:
        tune.report({**report, REPLAYED: True})
    if assignment.config is None:
        return
    use_services_of(ray.get(settings.environment))
    _wait_for_services(assignment.config)
    result = train(
        assignment.config,
        assignment.name,
        runs_uri=settings.runs_uri,
        workers=settings.workers,
        parent_run_id=settings.parent_run_id,
        tags=assignment.tags,
        callbacks=[TuneReportCallback()],
    )
    last, metrics = result.last_measurement()
    tune.report(
        {
            FINISHED: True,
            "nimg": last,
            "seconds": result.seconds,
            "checkpoint_uri": result.checkpoint_uri,
            "run_id": result.run_id,
            HISTORY: {str(nimg): measured for nimg, measured in result.metrics.items()},
            **metrics,
        }
    )


def _wait_for_services(config: Config) -> None:
    """Waits while MLflow or storage does not answer, as a training does: a trial that failed is not repeated.

    Raises:
        UserError: one of them still does not answer after `data.patience_s`, or there is no such data set.
    """
    patience_s = config.data.patience_s
    Retrying(
        retry=retry_if_exception_type(UserError),
        wait=GrowingPauses(patience_s),
        stop=stop_after_delay(patience_s),
        reraise=True,
    )(tracking.check_tracking)
    storage.retry(lambda: open_dataset(config.data.uri), patience_s=patience_s)
