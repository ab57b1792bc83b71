"""Generators are registered as data, pulled back bit for bit, and refused if a file has changed."""

import uuid
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mimic3d.checkpoints.generator_folder import load_generator, save_generator
from mimic3d.config.recipes import get_recipe
from mimic3d.networks.generator import build_generator
from mimic3d_platform.errors import UserError
from mimic3d_platform.models import registry
from mimic3d_platform.tracking import start_or_resume_run
from mimic3d_platform.tracking.logger import RunLogger
from mimic3d_platform.tracking.server import client


@pytest.fixture
def run_id(stack) -> str:
    return start_or_resume_run(f"test-{uuid.uuid4().hex[:8]}", "run")


@pytest.fixture
def name() -> str:
    return f"cars-{uuid.uuid4().hex[:8]}"


def _generator(folder: Path, seed: int = 0) -> Path:
    folder.mkdir()
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))
    save_file({"weight": weight}, folder / "generator.safetensors")
    (folder / "config.yaml").write_text("recipe: cars-demo\n")
    return folder


def test_a_pulled_model_equals_the_registered_one(run_id, name, tmp_path):
    folder = _generator(tmp_path / "made")
    logger = RunLogger(run_id)
    logger.log_metrics({"fd_mobilenetv2/3d": 40.0}, 3200)
    logger.flush()
    metrics = {"fd_mobilenetv2/3d": 40.0, "warp_psnr/3d": 31.0}
    assert registry.register_generator(folder, name, run_id, metrics, "champion", step=3200) == 1
    for uri in (f"models:/{name}@champion", f"models:/{name}/1"):
        pulled = registry.pull(uri, tmp_path / "pulled")
        assert torch.equal(
            load_file(pulled / "generator.safetensors")["weight"],
            load_file(folder / "generator.safetensors")["weight"],
        )
        files = {path.name for path in pulled.iterdir()}
        assert files == {"generator.safetensors", "config.yaml", "SHA256SUMS"}
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "generator.safetensors"]

    [version] = client().search_model_versions(f"name = '{name}'")
    model = client().get_logged_model(version.source.removeprefix("models:/"))
    assert model.status == "READY"
    assert {metric.key: metric.value for metric in model.metrics} == metrics
    # The run's own curve has no second point at that step.
    points = client().get_metric_history(run_id, "fd_mobilenetv2/3d")
    assert [(point.step, point.value) for point in points] == [(3200, 40.0)]


def test_the_same_files_are_one_version_and_other_files_another(run_id, name, tmp_path):
    first, second = _generator(tmp_path / "a", 0), _generator(tmp_path / "b", 1)
    assert registry.register_generator(first, name, run_id, {}) == 1
    assert registry.register_generator(first, name, run_id, {}, "champion") == 1
    assert registry.register_generator(second, name, run_id, {}, "challenger") == 2
    assert registry.register_generator(second, name, run_id, {}, "champion") == 2
    assert client().get_model_version_by_alias(name, "champion").version in (2, "2")
    pulled = registry.pull(f"models:/{name}@champion", tmp_path / "pulled")
    expected = (second / "generator.safetensors").read_bytes()
    assert (pulled / "generator.safetensors").read_bytes() == expected
    registry.pull(f"models:/{name}/1", pulled)  # In place of what was there.
    assert (pulled / "generator.safetensors").read_bytes() != expected


def test_a_folder_that_no_run_made_is_registered_with_a_run_of_its_own(stack, name, tmp_path):
    config = get_recipe("cars-demo")
    folder = save_generator(tmp_path / "imported", build_generator(config), config)
    assert registry.register_folder(folder, name, "champion") == 1
    assert registry.register_folder(folder, name) == 1
    pulled = registry.pull(f"models:/{name}@champion", tmp_path / "pulled")
    assert load_generator(pulled)[1] == config
    [version] = client().search_model_versions(f"name = '{name}'")
    run = client().get_run(version.run_id)
    assert run.info.status == "FINISHED" and run.data.params["recipe"] == "cars-demo"
    (folder / "config.yaml").write_text("recipe: other\n")
    with pytest.raises(UserError, match=r"model name 'a/b': it must not be empty"):
        registry.register_folder(pulled, "a/b")
    with pytest.raises(UserError, match=r"generator.safetensors does not fit config.yaml"):
        registry.register_folder(folder, name)


def test_a_model_that_changed_in_storage_is_refused(run_id, name, tmp_path):
    registry.register_generator(_generator(tmp_path / "made"), name, run_id, {}, "champion")
    [version] = client().search_model_versions(f"name = '{name}'")
    (tmp_path / "config.yaml").write_text("recipe: other\n")
    client().log_model_artifact(version.source.removeprefix("models:/"), str(tmp_path / "config.yaml"))
    with pytest.raises(UserError, match=r"config.yaml is not the file that was registered; nothing was kept"):
        registry.pull(f"models:/{name}@champion", tmp_path / "pulled")
    assert list((tmp_path / "pulled").iterdir()) == []


def test_a_name_that_is_not_in_the_registry_is_one_line_that_says_what_is(run_id, name, tmp_path):
    registry.register_generator(_generator(tmp_path / "made"), name, run_id, {}, "champion")
    cases = {
        "models:/nobody@champion": rf"has no model 'nobody'; it has .*{name}",
        f"models:/{name}@winner": "has no alias 'winner'; versions: 1 to 1, aliases: champion",
        f"models:/{name}/7": "has no version 7; versions: 1 to 1",
        f"models:/{name}": "names no registered model; write models:/NAME@ALIAS or models:/NAME/VERSION",
        "runs:/abc/model": "names no registered model",
    }
    for uri, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            registry.pull(uri, tmp_path / "pulled")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize(
    ("name", "alias", "words"),
    [
        ("", None, "must not be empty"),
        (" cars", None, "begin or end with a space"),
        ("my/cars", None, "it has '/'"),
        ("cars:2", None, "it has ':'"),
        ("cars.v2", None, "it has '.'"),
        ("cars@champion", None, "it has '@'"),
        ("car's", None, "'"),
        ("cars?", None, "it has '?'"),
        ("cars#2", None, "it has '#'"),
        ("50%", None, "it has '%'"),
        ("c" * 300, None, "of 300 characters"),
        ("cars", "latest", "reserves latest"),
        ("cars", "Latest", "reserves latest"),
        ("cars", "v1", "reserves latest and v1"),
        ("cars", "best.one", "letters, digits"),
        ("cars", "", "letters, digits"),
        (None, "champion", "give --register NAME too"),
    ],
)
def test_names_that_mlflow_would_refuse_are_refused_without_it(name, alias, words) -> None:
    with pytest.raises(UserError) as caught:
        registry.check_registration(name, alias)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_refused_registration_leaves_nothing(stack, tmp_path, name):
    config = get_recipe("cars-demo")
    folder = save_generator(tmp_path / "imported", build_generator(config), config)
    before = client().search_registered_models()
    for model, alias in {f"{name}.v2": "champion", name: "latest"}.items():
        with pytest.raises(UserError, match=r"model name|alias"):
            registry.register_folder(folder, model, alias)
    assert client().search_registered_models() == before


@pytest.mark.parametrize("odd", ["voitures été", "a & b = c", "x+y (2)", "-_-"])
def test_other_odd_names_are_registered_and_pulled(run_id, tmp_path, odd):
    name = f"{odd} {uuid.uuid4().hex[:8]}"
    folder = _generator(tmp_path / "made")
    assert registry.register_generator(folder, name, run_id, {}, "best-1") == 1
    assert registry.pull(f"models:/{name}@best-1", tmp_path / "pulled").is_dir()


def test_metrics_of_an_evaluation_reach_the_run_and_the_logged_model(run_id, name, tmp_path):
    registry.register_generator(_generator(tmp_path / "made"), name, run_id, {"a/3d": 1.0}, step=8)
    version = registry.version_of(f"models:/{name}/1")
    evaluation = start_or_resume_run(f"test-{uuid.uuid4().hex[:8]}", "evaluation")
    metrics = {"fd_mobilenetv2/3d": 40.0, "a/3d": 2.0}
    for _ in range(2):
        registry.log_model_metrics(evaluation, metrics, version)
    assert client().get_run(evaluation).data.metrics == metrics
    model = client().get_logged_model(version.source.removeprefix("models:/"))
    found = sorted((metric.run_id, metric.key, metric.value) for metric in model.metrics)
    expected = [(run_id, "a/3d", 1.0), *((evaluation, key, value) for key, value in metrics.items())]
    assert found == sorted(expected)
    for key in metrics:
        assert len(client().get_metric_history(evaluation, key)) == 1
    registry.log_model_metrics(evaluation, {"b": 1.0}, None)
    assert client().get_run(evaluation).data.metrics == metrics | {"b": 1.0}


def test_a_folder_without_a_generator_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no generator.safetensors"):
        registry.register_generator(tmp_path, "cars", "run", {})


def test_a_registry_that_is_away_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"no MLflow server answers at http://127.0.0.1:9; start it"):
        registry.pull("models:/cars@champion", tmp_path / "pulled")
