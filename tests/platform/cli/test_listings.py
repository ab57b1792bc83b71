"""What newcomers look for first: the version, short help, lists of recipes, runs and data sets."""

import json
import uuid
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from mimic3d.config import config_from_yaml, override
from mimic3d.config.recipes import RECIPES, get_recipe
from mimic3d_platform import storage
from mimic3d_platform.cli import app
from mimic3d_platform.cluster import jobs
from mimic3d_platform.console import Console
from mimic3d_platform.data.format.dataset_writer import DatasetWriter
from mimic3d_platform.data.format.manifest import MANIFEST
from mimic3d_platform.errors import UserError
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.training import delete
from mimic3d_platform.training.result import TrainingResult, write_result
from mimic3d_platform.training.run_identity import RunOrigin, claim_run


def run(*arguments: object) -> str:
    line = [str(argument) for argument in arguments]
    result = CliRunner().invoke(app, line, prog_name="mimic3d", catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def cells(table: str) -> list[list[str]]:
    """The heads and the rows of a printed table."""
    lines = [line for line in table.splitlines() if line.startswith(("┃", "│"))]
    return [[cell.strip() for cell in line.strip("┃│").replace("┃", "│").split("│")] for line in lines]


@pytest.mark.parametrize("line", ["", "train", "data render", "jobs logs", "submit train", "runs list"])
def test_short_help_is_help(line: str) -> None:
    assert run(*line.split(), "-h") == run(*line.split(), "--help")


def test_version_and_completion() -> None:
    assert run("--version") == f"mimic3d {version('mimic3d')}\n"
    assert "--install-completion" in run("--help")


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("data render", "--colourings"),
        ("data ingest", "--balance"),
        ("evaluate", "--identities"),
        ("data", "verify"),
    ],
)
def test_help_of_a_submission_shows_the_options_of_what_is_submitted(line: str, option: str) -> None:
    for flag in ("--help", "-h"):
        shown = run("submit", *line.split(), flag)
        assert option in shown and "--with-code" in shown and f"mimic3d {line}" in shown


def test_recipes_are_listed_and_printed() -> None:
    heads, *rows = cells(run("recipes"))
    assert [row[0] for row in rows] == list(RECIPES) and all(len(row) == len(heads) for row in rows)
    lengths = {row[0]: row[2] for row in rows}
    assert lengths["cars-demo"] == "0.8 + 3.2" and lengths["cars-demo-eg3d"] == "4 + 0"
    assert config_from_yaml(run("recipes", "cars-demo"), "printed") == get_recipe("cars-demo")


def test_runs_are_listed_with_how_far_they_are(tmp_path: Path) -> None:
    config = get_recipe("cars-demo")
    for name in ("begun", "done", "new"):
        claim_run(str(tmp_path), name, config, RunOrigin("data"))
    for images in (400, 800):
        folder = tmp_path / "begun" / "checkpoints" / f"{images:09d}-abc"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}", encoding="utf-8")
    (tmp_path / "begun" / "checkpoints" / "000001200-abd").mkdir()  # It was not written to its end.
    write_result(str(tmp_path), TrainingResult("done", "id", "uri", {4000: {"fid/3d": 12.5}}, 1.0))
    _, *rows = cells(run("runs", "list", tmp_path))
    assert [(row[0], row[2], row[3]) for row in rows] == [
        ("begun", "800 of 4000", "not finished"),
        ("done", "4000 of 4000", "finished"),
        ("new", "0 of 4000", "not finished"),
    ]
    assert "fid/3d 12.5" in rows[1]
    assert "no runs below" in run("runs", "list", tmp_path / "begun" / "checkpoints")


def refusal(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="mimic3d")
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def test_a_run_is_shown_compared_and_deleted_unless_it_is_needed(tmp_path: Path) -> None:
    runs = str(tmp_path / "runs")
    config = get_recipe("cars-demo")
    claim_run(runs, "first", override(config, {"seed": "3"}), RunOrigin("data"))
    start = f"{runs}/first/checkpoints/000000800-abc"
    second = override(config, {"start": start, "schedule.stage1_kimg": "0"})
    claim_run(runs, "second", second, RunOrigin("data"))
    shown = run("runs", "show", "first", "--runs", runs)
    assert "cars-demo, 4000 images, seed 3" in shown and ["seed", "0", "3"] in cells(shown)
    compared = cells(run("runs", "compare", "first", "second", "--runs", runs))
    assert ["seed", "3", "0"] in compared and ["schedule.stage1_kimg", "0.8", "0.0"] in compared

    assert "needed: the run second starts from it" in refusal("runs", "delete", "first", "--runs", runs)
    run("runs", "delete", "second", "--runs", runs)
    run("runs", "delete", "first", "--runs", runs)
    assert not (tmp_path / "runs" / "first").exists()
    for command in ("show", "delete"):
        assert "there is no run first in" in refusal("runs", command, "first", "--runs", runs)


def test_a_run_in_shared_storage_is_deleted_without_a_cluster_by_force_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another cluster than the one that this machine knows may be training it."""

    def absent() -> None:
        raise UserError("no Ray cluster is named")

    monkeypatch.setattr(delete, "join_ray", absent)
    runs = f"memory://{uuid.uuid4().hex}/runs"
    claim_run(runs, "first", get_recipe("cars-demo"), RunOrigin("data"))
    said = refusal("runs", "delete", "first", "--runs", runs)
    assert "cannot ask the cluster whether first is being trained (no Ray cluster is named); --force" in said
    assert storage.exists(f"{runs}/first/config.yaml")
    run("runs", "delete", "first", "--runs", runs, "--force")
    assert not storage.exists(f"{runs}/first/config.yaml")


def test_a_trial_of_a_sweep_is_deleted_by_force_only(tmp_path: Path) -> None:
    claim_run(str(tmp_path), "scales-000", get_recipe("cars-demo"), RunOrigin("data"))
    (tmp_path / "scales").mkdir()
    (tmp_path / "scales" / "sweep.yaml").write_text("{}", encoding="utf-8")
    assert "a trial of the sweep scales" in refusal("runs", "delete", "scales-000", "--runs", tmp_path)
    run("runs", "delete", "scales-000", "--runs", tmp_path, "--force")
    assert not (tmp_path / "scales-000").exists()


def test_a_data_set_is_deleted_unless_a_run_was_made_of_it(tmp_path: Path) -> None:
    data, runs = tmp_path / "data", tmp_path / "runs"
    with DatasetWriter(str(data / "a"), 32, {}, columns=("image", "identity")) as writer:
        writer.write({"image": b"", "identity": "nobody"})
    used = override(get_recipe("cars-demo"), {"data.uri": str(data / "a")})
    claim_run(str(runs), "user", used, RunOrigin("data"))
    assert "there is no data set at" in refusal("data", "delete", data, "--runs", runs)
    assert "needed: by the run user" in refusal("data", "delete", data / "a", "--runs", runs)
    run("data", "delete", data / "a", "--runs", runs, "--force")
    assert data.exists() and not (data / "a").exists()


def test_data_sets_are_listed_whole_and_half_written(tmp_path: Path) -> None:
    for name in ("a", "deep/b", "half"):
        with DatasetWriter(str(tmp_path / name), 32, {}, columns=("image", "identity")) as writer:
            writer.write({"image": b"", "identity": "nobody"})
    (tmp_path / "half" / MANIFEST).unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / MANIFEST).write_text(json.dumps({"name": "of another program"}), encoding="utf-8")
    (tmp_path / "other" / "table.parquet").write_bytes(b"PAR1")
    heads, *rows = cells(run("data", "list", tmp_path))
    assert [row[0] for row in rows] == [str(tmp_path / name) for name in ("a", "deep/b", "half")]
    assert rows[0][1:3] == ["1", "32×32"] and "half-written" in rows[2][-1] and len(heads) == len(rows[0])
    assert "no data sets below" in run("data", "list", tmp_path / "other")


def test_the_table_of_feature_networks_has_a_head_for_each_cell() -> None:
    heads, *rows = cells(run("weights"))
    assert heads == ["network", "for", "kind", "state", "where"]
    assert {row[0] for row in rows} == {network.name for network in feature_weights.describe()}
    assert all(len(row) == 5 and row[3] in ("ready", "to fetch") for row in rows)


def test_no_cell_is_folded_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    identifier = "train-" + "x" * 150 + "-5b0c6d21"
    Console().table(("job", "state"), [(identifier, "RUNNING")])
    assert identifier in capsys.readouterr().out


def test_a_cluster_without_jobs_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "list_jobs", lambda dashboard: [])
    dashboard = SimpleNamespace(cluster=SimpleNamespace(url="http://127.0.0.1:8265"))
    with pytest.raises(UserError, match=r"no job or run mine at http://\S+: no job was submitted"):
        jobs.find_job(dashboard, "mine")
