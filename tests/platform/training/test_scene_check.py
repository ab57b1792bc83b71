"""A training refuses near, far and box that miss the objects, and can take them from the set's cameras."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mimic3d.cameras import look_at, on_sphere
from mimic3d.config import Config, override
from mimic3d.config.recipes import get_recipe
from mimic3d_platform.data.format.dataset import open_dataset
from mimic3d_platform.data.format.dataset_writer import DatasetWriter
from mimic3d_platform.data.format.image_files import encode_png
from mimic3d_platform.data.inspect.inspect_dataset import inspect_dataset
from mimic3d_platform.errors import UserError
from mimic3d_platform.training.config_from_command import resolve_config
from mimic3d_platform.training.scene_check import check_scene


def data_set(folder: Path, radius: float, focal: float, pivot=(0.0, 0.0, 0.0)) -> str:
    """A set of grey images from cameras around a pivot."""
    random, centre = torch.Generator().manual_seed(0), torch.tensor(pivot)
    yaw, pitch = torch.rand(2, 40, generator=random).mul(torch.tensor([[6.2], [0.8]]))
    labels = look_at(on_sphere(yaw, pitch, radius, centre), centre, focal=focal).numpy()
    image = encode_png(Image.fromarray(np.full((32, 32, 3), 128, np.uint8)))
    with DatasetWriter(str(folder), 32, {}, columns=("image", "camera", "identity")) as writer:
        for label in labels:
            writer.write({"image": image, "camera": label, "identity": "one"})
    return str(folder)


def check(uri: str, **overrides: object) -> str | None:
    config = override(get_recipe("cars-demo"), {"data.uri": uri, **overrides})
    return check_scene(config, open_dataset(uri))


def test_a_set_as_the_recipe_expects_it_passes(tmp_path: Path) -> None:
    assert check(data_set(tmp_path / "set", 1.7, 1.6)) is None


@pytest.mark.parametrize(
    ("radius", "focal", "pivot", "words"),
    [
        (4.0, 1.6, (0.0, 0.0, 0.0), "rendering=auto"),  # behind `far`
        (0.17, 1.6, (0.0, 0.0, 0.0), "rendering=auto"),  # before `near`, in a tenth of the box
        (170.0, 1.6, (0.0, 0.0, 0.0), "rendering=auto"),  # millimetres
        (1.7, 0.5, (0.0, 0.0, 0.0), "rendering=auto"),  # larger than the box
        (1.7, 1.6, (9.0, 0.0, 0.0), "--centre auto"),  # outside it
    ],
)
def test_objects_that_rays_or_box_miss_are_refused_in_one_line(
    tmp_path: Path, radius, focal, pivot, words
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        check(data_set(tmp_path / "set", radius, focal, pivot))
    assert "\n" not in str(caught.value)


def test_small_differences_are_said(tmp_path: Path) -> None:
    said = check(data_set(tmp_path / "set", 1.7, 1.2))
    assert said is not None and "want rendering.near" in said and "rendering=auto" in said
    wide = check(
        tmp_path.joinpath("set").as_posix(),
        **{"rendering.near": 0.8, "rendering.far": 2.6, "rendering.box_warp": 1.4},
    )
    assert wide is not None and "camera.focal" in wide


@pytest.mark.parametrize(("radius", "focal"), [(4.0, 1.6), (0.17, 1.1), (170.0, 3.0)])
def test_auto_takes_them_from_the_set(tmp_path: Path, radius: float, focal: float) -> None:
    uri = data_set(tmp_path / "set", radius, focal)
    config = resolve_config("cars-demo", uri, ["rendering=auto", "rendering.coarse_samples=6"])
    assert check_scene(config, open_dataset(uri)) is None
    assert config.camera.focal == pytest.approx(focal, rel=1e-4) and config.rendering.coarse_samples == 6
    # `data inspect` prints the same values.
    wanted = inspect_dataset(uri)["config"]
    assert override(get_recipe("cars-demo"), wanted).rendering.near == config.rendering.near
    explicit = resolve_config("cars-demo", uri, ["rendering=auto", "rendering.near=0.001"])
    assert explicit.rendering.near == 0.001


def test_auto_needs_a_set_and_is_the_only_short_form() -> None:
    with pytest.raises(UserError, match="no data set is named"):
        resolve_config("cars-demo", None, ["rendering=auto"])
    with pytest.raises(UserError, match="write rendering=auto"):
        resolve_config("cars-demo", "s3://mimic3d/data", ["rendering=wide"])
    assert isinstance(resolve_config("cars-demo", "s3://mimic3d/data", []), Config)
