"""Plain MLflow clients load, query and serve a registered generator."""

import base64
import io
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from mimic3d.checkpoints.generator_folder import load_generator
from mimic3d.config import Config
from mimic3d.export.latents import latents_of_seeds
from mimic3d.export.orbits import at_yaw, front
from mimic3d.rendering.images import to_uint8
from mimic3d_platform.local.services import HOST
from mimic3d_platform.models.pyfunc_files import write_pyfunc
from mimic3d_platform.models.pyfunc_model import TableRenderer
from mimic3d_platform.models.registration import register_generator
from mimic3d_platform.tracking.server import client

# What a client without mimic3d finds: its sources are hidden from the interpreter.
_WITHOUT_MIMIC3D = """
import sys
for place in ({platform!r}, {root!r}, ""):
    sys.path = [path for path in sys.path if path != place]
sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
"""


@pytest.fixture
def folder(generator_folder: Callable[..., Path], tiny: Config) -> Path:
    made = generator_folder()
    write_pyfunc(made, tiny, ("2d", "3d"), run_id="0" * 32, model_id="m-" + "0" * 32, name="cars")
    return made


@pytest.fixture
def renderer(generator_folder: Callable[..., Path]) -> TableRenderer:
    return TableRenderer(*load_generator(generator_folder()))


def pixels(cell: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(cell)))


def test_a_row_is_the_image_that_the_generator_renders(folder: Path, tiny: Config) -> None:
    model = mlflow.pyfunc.load_model(str(folder))
    table = pd.DataFrame({"seed": [3, 3], "yaw": [0.0, 0.5]})
    found = model.predict(table, params={"truncation": 0.7})
    generator, config = load_generator(folder)
    cameras = at_yaw(config.camera, torch.tensor([0.0, 0.5], dtype=torch.float64))
    w = generator.mapping(latents_of_seeds(config.model, [3]), front(config.camera), 0.7)
    for row, camera in zip(found.to_dict(orient="records"), cameras, strict=True):
        view = generator.view(generator.planes(w), w, camera[None])
        expected = to_uint8(view.image)[0].permute(1, 2, 0).numpy()
        assert np.array_equal(pixels(row["image"]), expected)
        assert np.allclose(row["depth"], view.depth[0, 0].numpy())
    assert [column.name for column in model.metadata.signature.inputs] == [
        *("seed", "latent", "yaw", "pitch", "radius", "focal", "label")
    ]
    params = {param.name: param.default for param in model.metadata.signature.params}
    assert params == {"branch": "3d", "truncation": 1.0, "size": 0, "image": "png"}
    assert list(model.input_example.columns) == ["seed", "yaw", "pitch"]


def test_latents_labels_branches_and_sizes(renderer: TableRenderer, tiny: Config) -> None:
    z = latents_of_seeds(tiny.model, [5])[0].tolist()
    label = front(tiny.camera)[0].tolist()
    [by_seed], [by_latent] = (
        renderer.predict(pd.DataFrame(rows))["image"]
        for rows in ([{"seed": 5}], [{"latent": z, "label": label}])
    )
    assert by_seed == by_latent
    for branch, resolution in (("2d", 8), ("3d", 24)):
        found = renderer.predict(pd.DataFrame([{}]), {"branch": branch, "size": 24, "image": "array"})
        assert np.shape(found["image"][0]) == (24, 24, 3)
        assert np.shape(found["depth"][0]) == (resolution, resolution)


@pytest.mark.parametrize(
    ("row", "params", "words"),
    [
        ({"sead": 1}, {}, "column 'sead' is not one of seed, latent"),
        ({"seed": -1}, {}, "row 0: seed is -1"),
        ({"latent": [1.0]}, {}, "row 0: latent has 1 numbers: give 8"),
        ({"label": [0.0] * 25, "yaw": 1.0}, {}, "row 0: it has a label and yaw"),
        ({"radius": -1.0}, {}, "row 0: radius is -1: give a positive number"),
        ({"pitch": 2.0}, {}, "row 0: pitch is 2: give radians"),
        ({"seed": 1}, {"branch": "4d"}, "branch is '4d'"),
        ({"seed": 1}, {"size": 100_000}, "size is 100000"),
        ({"seed": 1}, {"image": "gif"}, "image is 'gif'"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_with_its_row(
    renderer: TableRenderer, row: dict, params: dict, words: str
) -> None:
    with pytest.raises(MlflowException, match=words):
        renderer.predict(pd.DataFrame([row]), params)


@pytest.mark.slow
@pytest.mark.usefixtures("no_previews")
def test_plain_clients_need_nothing_but_the_address_of_mlflow(
    run_id: str, name: str, tmp_path: Path, generator_folder: Callable[..., Path]
) -> None:
    register_generator(generator_folder(), name, run_id, {})
    client().set_registered_model_alias(name, "champion", "1")
    assert client().get_model_version_by_alias(name, "champion").run_id == run_id
    uri = f"models:/{name}@champion"
    root = Path(__file__).parents[3]
    hide = _WITHOUT_MIMIC3D.format(platform=str(root / "platform"), root=str(root))
    sitecustomize = tmp_path / "hidden" / "sitecustomize.py"
    sitecustomize.parent.mkdir()
    sitecustomize.write_text(hide, encoding="utf-8")
    keep = ("PATH", "HOME", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    environment = {key: os.environ[key] for key in keep if key in os.environ}
    environment |= {"PYTHONPATH": str(sitecustomize.parent), "MLFLOW_DISABLE_TELEMETRY": "true"}
    # MLflow starts uvicorn by its name, as in an activated environment.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("mlflow", "artifacts", "download", "-u", uri, "-d", str(tmp_path / "downloaded"))
    assert (tmp_path / "downloaded" / "generator.safetensors").is_file()
    request = {"dataframe_split": {"columns": ["seed", "yaw"], "data": [[1, 0.3]]}, "params": {"size": 12}}
    (tmp_path / "in.json").write_text(json.dumps(request), encoding="utf-8")
    run(*f"mlflow models predict -m {uri} -i in.json -o out.json --env-manager local".split())
    [row] = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["predictions"]
    assert pixels(base64.b64decode(row["image"])).shape == (12, 12, 3)

    port = 5000 + os.getpid() % 1000 + 20_000
    serving = [sys.executable, "-m", *f"mlflow models serve -m {uri} --env-manager local".split()]
    with subprocess.Popen(
        [*serving, "--host", HOST, "--port", str(port)], cwd=tmp_path, env=environment
    ) as server:
        try:
            served = _post(f"http://{HOST}:{port}/invocations", request, seconds=180)
        finally:
            server.terminate()
    assert served["predictions"] == [row]


def _post(url: str, body: dict, seconds: float) -> dict:
    """Posts a request until the server answers."""
    data = json.dumps(body).encode()
    deadline = time.monotonic() + seconds
    while True:
        try:
            request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
