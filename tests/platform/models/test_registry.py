"""Models are looked up by name, version and alias; names that MLflow would refuse are refused without it."""

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from mimic3d_platform.errors import UserError
from mimic3d_platform.models import registry
from mimic3d_platform.models.pull import pull
from mimic3d_platform.models.registration import register_folder, register_generator
from mimic3d_platform.tracking import start_or_resume_run
from mimic3d_platform.tracking.server import client

Make = Callable[..., Path]


@pytest.mark.usefixtures("no_previews")
def test_a_name_that_is_not_in_the_registry_is_one_line_that_says_what_is(
    run_id: str, name: str, tmp_path: Path, generator_folder: Make
) -> None:
    register_generator(generator_folder(), name, run_id, {})
    client().set_registered_model_alias(name, "champion", "1")
    cases = {
        "models:/nobody@champion": rf"has no model 'nobody'; it has .*{name}",
        f"models:/{name}@winner": "has no alias 'winner'; versions: 1 to 1, aliases: champion",
        f"models:/{name}/7": "has no version 7; versions: 1 to 1",
        f"models:/{name}": "names no registered model; write models:/NAME@ALIAS or models:/NAME/VERSION",
        "runs:/abc/model": "names no registered model",
    }
    for uri, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            pull(uri, tmp_path / "pulled")
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


def test_a_refused_registration_leaves_nothing(stack, name: str, generator_folder: Make) -> None:
    before = client().search_registered_models()
    with pytest.raises(UserError, match="model name"):
        register_folder(generator_folder(), f"{name}.v2")
    assert client().search_registered_models() == before


@pytest.mark.usefixtures("no_previews")
@pytest.mark.parametrize("odd", ["voitures été", "a & b = c+d (2)"])
def test_other_odd_names_are_registered_and_pulled(
    run_id: str, tmp_path: Path, generator_folder: Make, odd: str
) -> None:
    name = f"{odd} {uuid.uuid4().hex[:8]}"
    assert register_generator(generator_folder(), name, run_id, {}) == 1
    pull(f"models:/{name}/1", tmp_path / "pulled")
    assert (tmp_path / "pulled" / "generator.safetensors").is_file()


@pytest.mark.usefixtures("no_previews")
def test_metrics_of_an_evaluation_reach_the_run_and_the_logged_model(
    run_id: str, name: str, generator_folder: Make
) -> None:
    register_generator(generator_folder(), name, run_id, {"a/3d": 1.0}, step=8)
    version = registry.version_of(f"models:/{name}/1")
    evaluation = start_or_resume_run(f"test-{uuid.uuid4().hex[:8]}", "evaluation")
    metrics = {"fd_mobilenetv2/3d": 40.0, "a/3d": 2.0}
    for _ in range(2):
        registry.log_model_metrics(evaluation, metrics, version)
    assert client().get_run(evaluation).data.metrics == metrics
    model = registry.logged_model_of(version)
    assert model is not None
    found = sorted((metric.run_id, metric.key, metric.value) for metric in model.metrics)
    expected = [(run_id, "a/3d", 1.0), *((evaluation, key, value) for key, value in metrics.items())]
    assert found == sorted(expected)
    for key in metrics:
        assert len(client().get_metric_history(evaluation, key)) == 1
    registry.log_model_metrics(evaluation, {"b": 1.0}, None)
    assert client().get_run(evaluation).data.metrics == metrics | {"b": 1.0}


@pytest.mark.usefixtures("no_previews")
def test_a_version_with_an_alias_is_deleted_only_by_force(
    run_id: str, name: str, generator_folder: Make
) -> None:
    register_generator(generator_folder(), name, run_id, {})
    client().set_registered_model_alias(name, "champion", "1")
    with pytest.raises(UserError, match=r"version 1 of '.*' is champion: promote another version first"):
        registry.delete_version(f"models:/{name}@champion")
    assert [int(version.version) for version in registry.versions_of(name)] == [1]
    assert registry.delete_version(f"models:/{name}/1", force=True) == 1
    assert registry.versions_of(name) == [] and registry.aliases_of(name) == {}


def test_a_registry_that_is_away_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"no MLflow server answers at http://127.0.0.1:9; start it"):
        pull("models:/cars@champion", tmp_path / "pulled")
