"""Names the data set that metrics were measured against as an input of the run in MLflow."""

from __future__ import annotations

import json

from mimic3d_platform.data.format.manifest import Manifest
from mimic3d_platform.tracking.server import client, tracking_errors

_CONTEXT = "evaluation"
# MLflow's own limit.
_MAX_NAME, _MAX_DIGEST = 500, 36


def log_dataset(run_id: str, uri: str, manifest: Manifest) -> None:
    """Logs a data set as an input of a run; a run that has it already stays as it is.

    Raises:
        UserError: MLflow is away or refuses.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=uri.rstrip("/").rsplit("/", 1)[-1][:_MAX_NAME],
        digest=manifest.fingerprint[:_MAX_DIGEST],
        source_type="mimic3d",
        source=json.dumps({"uri": uri}),
        profile=json.dumps({"images": manifest.count, "resolution": manifest.resolution}),
    )
    tag = InputTag(key="mlflow.data.context", value=_CONTEXT)
    with tracking_errors("log the data set of"):
        client().log_inputs(run_id, [DatasetInput(dataset, [tag])])
