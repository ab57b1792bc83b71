"""The data set of a run as MLflow's input of it: name, digest, place."""

from __future__ import annotations

import json
from collections.abc import Mapping

from mimic3d_platform.storage.uris import is_local, scheme, without_login
from mimic3d_platform.tracking.server import client, tracking_errors

# MLflow's own limits.
_MAX_NAME, _MAX_DIGEST = 500, 36


def log_dataset(
    run_id: str, uri: str, fingerprint: str, facts: Mapping[str, object], context: str = "training"
) -> None:
    """Logs a data set as an input of a run; a run that has it already stays as it is.

    Args:
        uri: of the data set, by which `mlflow.data.get_source` finds it.
        fingerprint: of the manifest; MLflow keeps its first characters as the digest.
        facts: shown beside it, such as the number of images.
        context: what the run does with it.
    Raises:
        UserError: MLflow is away or refuses.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=uri.rstrip("/").rsplit("/", 1)[-1][:_MAX_NAME],
        digest=fingerprint[:_MAX_DIGEST],
        source_type="local" if is_local(uri) else scheme(uri),
        source=json.dumps({"uri": without_login(uri)}),
        profile=json.dumps({**facts, "fingerprint": fingerprint}),
    )
    with tracking_errors("log the data set of a run to"):
        client().log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
