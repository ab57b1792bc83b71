"""The Python interface loads generators by their URIs, keeps registered ones, and its page's examples run."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mimic3d_platform.errors import UserError
from mimic3d_platform.models import pull as pull_module
from mimic3d_platform.models.generator import Generator
from mimic3d_platform.models.registration import register_generator
from mimic3d_platform.settings import default_home

PAGE = Path(__file__).parents[3] / "docs" / "models.md"


def test_a_generator_draws_interpolates_and_turns(generator_folder: Callable[..., Path]) -> None:
    cars = Generator.load(generator_folder())
    first, second = cars.draw([0, 1], yaw=0.3, truncation=0.8)
    assert first.size == second.size == (16, 16) and first.tobytes() != second.tobytes()
    path = cars.interpolate([0, 1], 4)
    assert torch.allclose(path[0], cars.latents([0])[0]) and torch.allclose(path[2], cars.latents([1])[0])
    view = cars.view(path, cars.camera(yaw=0.1, focal=2.0), "2d")
    assert view.image.shape == (4, 3, 16, 16)
    assert torch.equal(
        cars.camera()[0, 16:25].reshape(3, 3).diag()[:2], torch.full((2,), cars.config.camera.focal)
    )
    with pytest.raises(ValueError, match="branch is '4d'"):
        cars.view(path, cars.camera(), "4d")


@pytest.mark.usefixtures("no_previews")
def test_a_registered_generator_is_downloaded_once_and_again_if_its_files_change(
    run_id: str, name: str, generator_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = generator_folder()
    register_generator(folder, name, run_id, {})
    download, count = pull_module._pull, 0

    def counted(*arguments: object, **options: bool) -> Path:
        nonlocal count
        count += 1
        return download(*arguments, **options)

    monkeypatch.setattr(pull_module, "_pull", counted)
    for _ in range(2):
        loaded = Generator.load(f"models:/{name}/1")
    assert count == 1
    weights = Generator.load(folder).network.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in loaded.network.state_dict().items())
    for config in (default_home() / "models").glob("*/config.yaml"):
        config.write_text("seed: 1\n", encoding="utf-8")
    Generator.load(f"models:/{name}/1")
    assert count == 2


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="known: cars"):
        Generator.load("builtin:boats")
    with pytest.raises(UserError, match=r"holds no config.yaml"):
        Generator.load(tmp_path)


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    runnable = [example for example in examples if "models:/" not in example]
    assert len(runnable) >= 4
    names: dict[str, object] = {}
    for example in runnable:
        exec(compile(example, str(PAGE), "exec"), names)
    assert {"car.png", "turn.mp4", "car.glb"} <= {path.name for path in tmp_path.iterdir()}
