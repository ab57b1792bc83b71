"""The length of the demo's stage 2: as many steps as some minutes of this machine allow."""

from __future__ import annotations

from collections.abc import Sequence

from mimic3d.checkpoints.file_names import CONFIG
from mimic3d.config import Config, fingerprint
from mimic3d.config.recipes import get_recipe
from mimic3d.losses.imitation import imitation_distance
from mimic3d_platform import storage
from mimic3d_platform.cluster.connect import join_ray
from mimic3d_platform.cluster.resources import plan_workers
from mimic3d_platform.console import Console
from mimic3d_platform.evaluation.feature_weights import resolve
from mimic3d_platform.settings import DEFAULT_RUNS_URI
from mimic3d_platform.training.config_from_command import resolve_config
from mimic3d_platform.training.dry_run import estimate, measure_cost

RECIPE = "cars-continued"
# Few lengths, so that machines of a kind train the same run.
LENGTHS_KIMG = (0.16, 0.32, 0.48, 0.64, 0.96, 1.28, 2.56)
BUDGET_S = 200.0
_KEYS = ("schedule.stage2_kimg", "schedule.cooldown_kimg")


def run_name(config: Config) -> str:
    """The name of the demo's run with this config; another config gets another run."""
    return f"{config.recipe}-{fingerprint(config)[:8]}"


def stage2_length(data_uri: str, perceptual: str, overrides: Sequence[str], console: Console) -> list[str]:
    """The overrides that set the length of stage 2; none where the user has set it.

    A run that an earlier call has begun keeps its length. Otherwise a step of each stage is timed here.

    Args:
        perceptual: the feature network of the imitation loss.
    """
    if any(each.partition("=")[0].strip() in _KEYS for each in overrides):
        return []
    # The rates cool down from the first step on.
    stage1 = get_recipe(RECIPE).schedule.stage1_kimg
    candidates = [
        [f"{key}={length:g}" for key, length in zip(_KEYS, (kimg, kimg + stage1), strict=True)]
        for kimg in LENGTHS_KIMG
    ]
    configs = [resolve_config(RECIPE, data_uri, [*changes, *overrides]) for changes in candidates]
    for changes, config in zip(candidates, configs, strict=True):
        if storage.exists(storage.join(DEFAULT_RUNS_URI, run_name(config), CONFIG)):
            return changes
    with console.working("timing a step of each stage on this machine"):
        cost = measure_cost(configs[0], imitation_distance(perceptual, resolve))
    join_ray()
    speed = estimate(configs[0], cost, plan_workers(configs[0], None)).images_per_second[2]
    fits = [place for place, kimg in enumerate(LENGTHS_KIMG) if 1000 * kimg / speed <= BUDGET_S]
    place = fits[-1] if fits else 0
    images = 1000 * LENGTHS_KIMG[place]
    console.say(
        f"stage 2 takes {images:.0f} images: at {speed:.1f} images/s on this machine, about "
        f"{images / speed / 60:.0f} minutes"
    )
    return candidates[place]
