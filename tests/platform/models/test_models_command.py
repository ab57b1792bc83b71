"""`mimic3d models …`: each command does what it says, and bad input is one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mimic3d_platform.cli import app
from mimic3d_platform.errors import UserError
from mimic3d_platform.models import alias_claim, registry

pytestmark = pytest.mark.usefixtures("no_previews")


def run(*command: object) -> str:
    """Runs `mimic3d COMMAND` in this process; returns what it prints, raises what it raises."""
    result = CliRunner().invoke(app, list(map(str, command)), catch_exceptions=True)
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    # Progress and MLflow's own lines come when something takes longer.
    lines = [
        line for line in result.output.splitlines() if not line.startswith("[") and "INFO mlflow" not in line
    ]
    return " ".join(" ".join(lines).split())


def test_a_model_from_registration_to_deletion(
    stack,
    name: str,
    tmp_path: Path,
    generator_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alias_claim, "SETTLE_S", 0.1)
    first, second = generator_folder("a", 0), generator_folder("b", 1)
    assert run("register", first, name, "--alias", "champion") == (
        f"registered {name} version 1 version 1 is champion: no version had this alias before"
    )
    with pytest.raises(UserError, match=r"version 1 stays champion, not version 2: .* no Fréchet distance"):
        run("models", "register", second, name, "--alias", "champion")
    assert name in run("models", "list")
    assert "champion" in run("models", "show", name)
    shown = run("models", "show", f"models:/{name}@champion")
    assert f"{name} version 1: champion" in shown and "mimic3d.recipe = cars-demo" in shown
    with pytest.raises(UserError, match="have no metric that was measured on the same data set"):
        run("models", "compare", f"models:/{name}/1", f"models:/{name}/2")

    assert "forced: by hand" in run("models", "promote", name, 2, "--alias", "champion", "--force", "by hand")
    assert registry.aliases_of(name) == {"champion": 2}
    run("models", "pull", f"models:/{name}@champion", tmp_path / "pulled")
    assert "all 4 files" in run("models", "verify", tmp_path / "pulled")
    assert "files are those that were registered" in run("models", "verify", f"models:/{name}/2")

    with pytest.raises(UserError, match="is champion: promote another version first"):
        run("models", "delete", name, 2)
    assert run("models", "delete", name, 1) == f"deleted version 1 of {name}"
    with pytest.raises(UserError, match=r"no version 1; versions: 2 to 2, aliases: champion"):
        run("models", "show", f"models:/{name}/1")


def test_push_registers_in_another_mlflow_with_the_lineage(
    stack, name: str, generator_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("register", generator_folder(), name)
    first = registry.version_of(f"models:/{name}/1")
    address = registry.tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)  # Restored afterwards.
    pushed = run("models", "push", f"models:/{name}/1", f"{name}-pushed", "--to", address)
    assert pushed == f"registered {name}-pushed version 1"
    assert f"registered before from run `{first.run_id}`" in run("models", "show", f"models:/{name}-pushed/1")
    with pytest.raises(UserError, match=r"no MLflow server answers at http://127.0.0.1:9"):
        run("models", "push", f"models:/{name}/1", name, "--to", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("register {folder} cars.v2", "it has '.'"),
        ("register {folder} cars --alias latest", "reserves latest"),
        ("register {folder} cars --force because", "give --alias too"),
        ("models promote cars 1 --alias v2", "reserves latest and v1"),
        ("models show cars@champion", "it has '@'"),
        ("models push {folder} a/b --to http://127.0.0.1:9", "it has '/'"),
        ("models verify {folder}", "has no SHA256SUMS"),
        ("models verify models:/cars", "write models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_bad_input_is_one_line(command: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run(*(part.format(folder=tmp_path) for part in command.split()))
    assert words in str(caught.value) and "\n" not in str(caught.value)
