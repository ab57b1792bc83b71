"""`mimic3d view`: which model it shows, newer checkpoints of a run, and the errors it answers with."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mimic3d.checkpoints.generator_folder import save_generator
from mimic3d.config.recipes import get_recipe
from mimic3d.networks.generator import build_generator
from mimic3d_command import start_mimic3d
from mimic3d_platform import storage
from mimic3d_platform.cli import app
from mimic3d_platform.errors import UserError
from mimic3d_platform.models.checkpoints import CheckpointStore, DamagedCheckpoint, StoredCheckpoint
from mimic3d_platform.viewer import model_source
from mimic3d_platform.viewer.model_source import LoadedModel, find_run
from mimic3d_platform.viewer.server import start_server, stop_server, url_of


def put_checkpoint(runs: Path, nimg: int, bias: float = 0.0) -> StoredCheckpoint:
    """A checkpoint of the run "cars" whose generator has this bias of its density."""
    config = get_recipe("cars-demo")
    generator = build_generator(config)
    with torch.no_grad():
        generator.decoder.net["2"].bias[0] = bias
    folder = runs / f"made-{nimg}"
    save_generator(folder / "generator", generator, config)
    (folder / "state.pt").write_bytes(b"moments")
    store = CheckpointStore(str(runs), "cars")
    return store.put(folder, store.new_name(nimg), nimg, {})


def density_bias(model: LoadedModel) -> float:
    return float(model.generator.decoder.net["2"].bias[0])


def test_a_run_is_named_by_its_name_or_its_folder_and_other_places_are_none(tmp_path: Path) -> None:
    stored = put_checkpoint(tmp_path, 8)
    for uri in (f"{tmp_path}/cars", f"file://{tmp_path}/cars", "cars"):
        run = find_run(uri, str(tmp_path))
        assert run is not None and run.newer() is not None, uri
    folder = storage.local_path(stored.uri)
    for uri in ("builtin:cars", "models:/cars@best", str(folder), str(folder / "generator")):
        assert find_run(uri, str(tmp_path)) is None, uri


def test_a_run_gives_each_newer_checkpoint_once(tmp_path: Path) -> None:
    run = find_run("cars", str(tmp_path))
    assert run is not None and run.newer() is None
    with pytest.raises(UserError, match=r"no checkpoint of a run at .*/cars: give .* with --follow"):
        model_source.first_model(run, None)
    put_checkpoint(tmp_path, 8, bias=1.0)
    first = model_source.first_model(run, None)
    assert density_bias(first) == 1.0 and first.name == "cars at 0.008 kimg"
    seen: list[LoadedModel] = []
    ended = threading.Event()

    def take(model: LoadedModel) -> None:
        seen.append(model)
        ended.set()

    put_checkpoint(tmp_path, 16, bias=2.0)
    model_source.follow(run, take, pytest.fail, ended, every_s=0.01)
    assert [density_bias(model) for model in seen] == [2.0] and run.newer() is None


def test_a_damaged_checkpoint_is_reported_once_and_the_next_is_shown(tmp_path: Path) -> None:
    run = find_run("cars", str(tmp_path))
    assert run is not None
    stored = put_checkpoint(tmp_path, 8)
    storage.write_bytes(f"{stored.uri}/generator/generator.safetensors", b"half")
    with pytest.raises(DamagedCheckpoint, match=r"generator/generator.safetensors is not what was written"):
        run.newer()
    ended, troubles, seen = threading.Event(), [], []

    def trouble(line: str) -> None:
        troubles.append(line)
        put_checkpoint(tmp_path, 16, bias=3.0)

    def take(model: LoadedModel) -> None:
        seen.append(density_bias(model))
        ended.set()

    model_source.follow(run, take, trouble, ended, every_s=0.01)
    assert len(troubles) == 1 and seen == [3.0]


def test_the_command_refuses_what_it_cannot_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error_of(*arguments: str) -> str:
        return str(CliRunner().invoke(app, ["view", "--no-open", *arguments]).exception)

    assert "builtin:cars is no run: --follow takes" in error_of("builtin:cars", "--follow")
    assert "no checkpoint of a run at" in error_of("cars", "--runs", str(tmp_path))
    assert "there is no data set at" in error_of("--data", str(tmp_path / "nowhere"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            UserError, match=rf"cannot serve the viewer on 127.0.0.1:{port}: .* another --port"
        ):
            start_server("127.0.0.1", port)
    monkeypatch.setitem(sys.modules, "viser", None)
    assert error_of() == "the viewer needs viser: pip install 'mimic3d[viewer]'"


def test_a_server_listens_on_loopback_at_a_free_port_and_opens_no_tunnel() -> None:
    server = start_server("127.0.0.1", 0)
    try:
        assert url_of(server).startswith("http://127.0.0.1:") and server.get_port() > 0
        assert server.request_share_url() is None
    finally:
        stop_server(server)


def test_the_command_serves_the_page_until_it_is_interrupted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start_mimic3d("view", "--no-open", log=log)
    try:
        deadline = time.monotonic() + 240
        while "http://" not in log.read_text(encoding="utf-8"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.2)
        line = log.read_text(encoding="utf-8").splitlines()[-1]
        assert line.startswith("builtin:cars is at http://127.0.0.1:")
        url = line.split(" at ")[1].split()[0]
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert b"<html" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert log.read_text(encoding="utf-8").splitlines()[1:] == ["the viewer has ended"]
