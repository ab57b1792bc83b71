"""A run of a training, with a run for each stage below it.

MLflow keeps the time at which a run is made as its start, so a stage's run is made when the stage begins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from mimic3d_platform.errors import UserError
from mimic3d_platform.tracking.inputs import log_dataset
from mimic3d_platform.tracking.runs import (
    EXPERIMENT,
    RUN_NAME_TAG,
    children_of,
    finish_run,
    start_or_resume_run,
)


@dataclass(frozen=True)
class StageRun:
    """The MLflow run of a stage, a child of the run's."""

    name: str
    parent_run_id: str
    params: Mapping[str, object]
    tags: Mapping[str, str]
    dataset_uri: str
    dataset_fingerprint: str
    dataset_facts: Mapping[str, object]

    def start(self) -> str:
        """Starts it, or finds the one of an earlier start, which keeps its end; returns its id.

        Raises:
            UserError: MLflow does not answer or refuses.
        """
        run_id = start_or_resume_run(
            EXPERIMENT, self.name, self.params, self.tags, self.parent_run_id, reopen=False
        )
        log_dataset(run_id, self.dataset_uri, self.dataset_fingerprint, self.dataset_facts)
        return run_id

    def finish(self) -> None:
        """Closes it, if it was started and MLflow answers."""
        with contextlib.suppress(UserError):
            for run in children_of(self.parent_run_id):
                if run.data.tags.get(RUN_NAME_TAG) == self.name:
                    finish_run(run.info.run_id)


@dataclass(frozen=True)
class StagedRun:
    """A run and those of its stages, "stage1" and "stage2" as the config has them."""

    run_id: str
    stages: Mapping[str, StageRun]

    def finish(self, status: str) -> None:
        """Closes the run and its stages, if MLflow answers: `FINISHED`, `FAILED` or `KILLED`."""
        with contextlib.suppress(UserError):
            finish_run(self.run_id, status)
            names = {stage.name for stage in self.stages.values()}
            for child in children_of(self.run_id):
                # Evaluations of its models are children too, and close themselves.
                if child.data.tags.get(RUN_NAME_TAG) in names:
                    finish_run(child.info.run_id, status)
