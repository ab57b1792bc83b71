"""Whether a sweep's trials and their workers fit the cluster at once: arithmetic, before anything starts."""

from __future__ import annotations

from collections.abc import Mapping

from mimic3d_platform.errors import UserError
from mimic3d_platform.tuning.sweep import Sweep

# A trial's own function waits for its workers. A fraction of a CPU for each would cost every node that is
# full of workers a whole one, so it holds a little memory instead; without any resource, Ray Tune would give
# it a CPU.
TRIAL_BUNDLE = {"memory": 2.0**20}


def concurrency(sweep: Sweep, cluster: Mapping[str, float]) -> int:
    """Trials that run at once.

    Args:
        cluster: what Ray says that it has.
    Raises:
        UserError: a trial does not fit at all, or more at once are asked for than have workers: those trials
            would hold what the others wait for.
    """
    gpus, cpus = int(cluster.get("GPU", 0)), int(cluster.get("CPU", 0))
    kind, have = ("GPU", gpus) if gpus else ("CPU", cpus)
    workers, asked = sweep.trials.workers, sweep.trials.concurrency
    most = have // workers
    if most < 1:
        raise UserError(
            f"a trial of {workers} workers needs as many {kind}s, the cluster has {have}: set trials.workers "
            f"to {max(have, 1)} or less"
        )
    if asked is not None and asked > most:
        raise UserError(
            f"{asked} trials of {workers} workers need {asked * workers} {kind}s, the cluster has {have}: "
            f"some would wait for others for ever; set trials.concurrency to {most} or less"
        )
    return asked or most
