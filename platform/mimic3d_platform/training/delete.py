"""Deletes runs and data sets, unless a registered model, another run or a sweep needs them."""

from __future__ import annotations

from mimic3d.checkpoints.file_names import CONFIG
from mimic3d.config import Config, ConfigError
from mimic3d_platform import storage
from mimic3d_platform.cluster.connect import join_ray
from mimic3d_platform.cluster.named_actors import run_lock
from mimic3d_platform.data.format.list_datasets import list_datasets
from mimic3d_platform.errors import UserError
from mimic3d_platform.models.registry import registered_models, versions_of
from mimic3d_platform.training.result import read_result
from mimic3d_platform.training.run_identity import SWEEP, check_name, read_config_file


def delete_run(runs_uri: str, name: str, *, force: bool = False) -> None:
    """Deletes a run's folder; its runs in MLflow, and models that were registered of it, stay.

    Args:
        force: also if something needs it.
    Raises:
        UserError: there is no such run, it is being trained, or something needs it; says what.
    """
    runs_uri = storage.absolute(runs_uri)
    folder = storage.join(runs_uri, check_name(name))
    if not storage.exists(storage.join(folder, CONFIG)):
        raise UserError(f"there is no run {name} in {runs_uri}: `mimic3d runs list` shows the runs")
    if not force and (needs := _needs_of_run(runs_uri, name)):
        raise UserError(f"{name} is needed: {'; '.join(needs)} (--force deletes it all the same)")
    try:
        join_ray()
    except UserError as error:
        # A cluster that this process does not know may train a run in shared storage.
        if not force and not storage.is_local(runs_uri):
            raise UserError(
                f"cannot ask the cluster whether {name} is being trained ({error}); --force deletes it all "
                "the same"
            ) from error
        storage.delete_tree(folder)
        return
    with run_lock(runs_uri, name):
        storage.delete_tree(folder)


def delete_dataset(uri: str, runs_uri: str, *, force: bool = False) -> None:
    """Deletes a data set, whole or half-written, with all files in its folder.

    Args:
        runs_uri: the folder of the runs that may need it.
        force: also if a run needs it.
    Raises:
        UserError: there is no data set at `uri`, others lie below it, or a run was made of it.
    """
    place = storage.absolute(uri).rstrip("/")
    found = [each.uri.rstrip("/") for each in list_datasets(place)]
    if place not in found:
        raise UserError(f"there is no data set at {uri}: `mimic3d data list` shows those below a folder")
    if below := [each for each in found if each != place]:
        raise UserError(f"{uri} holds other data sets too, such as {below[0]}: delete these first")
    if not force:
        users = [name for name, config in _configs(runs_uri).items() if config.data.uri.rstrip("/") == place]
        if users:
            raise UserError(
                f"{uri} is needed: by the run {', '.join(users[:4])} (--force deletes it all the same)"
            )
    storage.delete_tree(place)


def _needs_of_run(runs_uri: str, name: str) -> list[str]:
    """The reasons why a run is needed, a clause each."""
    root = storage.absolute(runs_uri)
    folder = storage.join(root, name)
    needs = [
        f"the run {other} starts from it"
        for other, config in _configs(runs_uri).items()
        if other != name and f"{config.start}/".startswith(f"{folder}/")
    ]
    sweep = name.rpartition("-")[0]
    if sweep and storage.exists(storage.join(root, sweep, SWEEP)):
        needs.append(f"it is a trial of the sweep {sweep}")
    result = read_result(runs_uri, name)
    if result is not None:
        needs += [
            f"models:/{model.name}/{version.version} was registered of it"
            for model in registered_models()
            for version in versions_of(model.name)
            if version.run_id == result.run_id
        ]
    return needs


def _configs(runs_uri: str) -> dict[str, Config]:
    """The configs of all runs that can be read, by name."""
    root = storage.join(storage.absolute(runs_uri))
    configs = {}
    for place in storage.list_files(root, suffix=f"/{CONFIG}"):
        name = place.removeprefix(f"{root}/").removesuffix(f"/{CONFIG}")
        if "/" in name:  # The config of a checkpoint.
            continue
        try:
            configs[name] = read_config_file(place)
        except ConfigError:
            continue
    return configs
