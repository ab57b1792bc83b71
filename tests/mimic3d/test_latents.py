"""Latents of seeds and files, the way between them, and camera paths in files; nothing is executed."""

import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mimic3d.cameras import look_at, on_sphere, split_label, yaw_pitch_radius
from mimic3d.config import CameraConfig, ModelConfig, RenderingConfig
from mimic3d.export.camera_files import read_cameras
from mimic3d.export.latents import interpolate, latents_of_seeds, parse_seeds, read_latents
from mimic3d.networks.generator import Generator

torch.set_num_threads(1)

MODEL = ModelConfig(32, 16, 8, 8, 6, 2, 64, 8, 64, 8, 16, (8, 8))
SETTINGS = CameraConfig(radius=1.7, focal=1.1, pivot=(0.0, 0.1, 0.0), pitch=0.3, yaw_range=math.pi)


@pytest.fixture(scope="module")
def G() -> Generator:
    return Generator(MODEL, RenderingConfig())


def refusal(read, path: Path, *arguments) -> str:
    with pytest.raises(ValueError) as caught:
        read(path, *arguments)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 400
    return message


# Seeds.


def test_seeds_are_numbers_and_ranges() -> None:
    assert parse_seeds("3") == (3,)
    assert parse_seeds("0-2, 9,5-5") == (0, 1, 2, 9, 5)
    for text in ("", "a", "1-", "-1", "3-1", "1,,2", "1.5", "0-99999", "0-9999999999999"):
        with pytest.raises(ValueError, match="seeds are"):
            parse_seeds(text)


def test_a_seeds_latent_does_not_depend_on_other_seeds() -> None:
    together, alone = latents_of_seeds(MODEL, (4, 7)), latents_of_seeds(MODEL, (7,))
    assert together.shape == (2, 8) and torch.equal(together[1], alone[0])
    assert not torch.equal(together[0], together[1])


# Latents in files.


def test_latents_are_read_from_both_formats(tmp_path, G) -> None:
    z, w = torch.randn(3, 8), torch.randn(2, G.backbone.mapping.num_ws, 6)
    np.save(tmp_path / "z.npy", z.numpy())
    np.save(tmp_path / "w.npy", w.double().numpy())
    save_file({"z": z}, tmp_path / "z.safetensors")
    save_file({"w": w.half()}, tmp_path / "w.safetensors")
    save_file({"w": w[:, 0].contiguous()}, tmp_path / "one.safetensors")
    assert torch.equal(read_latents(tmp_path / "z.npy", G), z)
    assert torch.equal(read_latents(tmp_path / "z.safetensors", G), z)
    assert torch.allclose(read_latents(tmp_path / "w.npy", G), w)
    assert torch.allclose(read_latents(tmp_path / "w.safetensors", G), w, atol=1e-2)
    assert torch.equal(read_latents(tmp_path / "one.safetensors", G), w[:, :1].expand(-1, w.shape[1], -1))


def test_files_that_hold_no_latents_are_refused(tmp_path, G) -> None:
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    np.save(tmp_path / "pickled.npy", np.array([Hostile()], dtype=object), allow_pickle=True)
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Hostile()))
    (tmp_path / "raw.safetensors").write_bytes(pickle.dumps(Hostile()))
    np.save(tmp_path / "shape.npy", np.zeros((2, 9), np.float32))
    np.save(tmp_path / "none.npy", np.zeros((0, 8), np.float32))
    np.save(tmp_path / "whole.npy", np.zeros((2, 8), np.int64))
    np.save(tmp_path / "nan.npy", np.full((2, 8), np.nan, np.float32))
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 8), }"
    declared = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n"
    (tmp_path / "declared.npy").write_bytes(declared)
    (tmp_path / "short.npy").write_bytes(b"\x93NUMPY")
    np.savez(tmp_path / "archive.npz", z=np.zeros((2, 8), np.float32))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    save_file({"x": torch.zeros(2, 8)}, tmp_path / "named.safetensors")
    for name, message in {
        "pickled.npy": "not an array that can be read",
        "raw.npy": "not an array that can be read",
        "raw.safetensors": "not a safetensors file",
        "shape.npy": "holds z of shape (2, 9), but this generator's is (N, *(8,))",
        "none.npy": "N from 1 to",
        "whole.npy": "not an array of floating-point numbers",
        "nan.npy": "not finite",
        "declared.npy": "not an array that can be read",
        "short.npy": "not an array that can be read",
        "archive.npy": "not an array of floating-point numbers",
        "named.safetensors": "must hold one tensor, z or w",
        "absent.npy": "no such file",
        "latents.pkl": "latents are read from .npy or .safetensors files",
    }.items():
        assert message in refusal(read_latents, tmp_path / name, G), name
    assert not (tmp_path / "executed").exists()


def test_interpolation_passes_the_latents_smoothly_and_closes() -> None:
    w = torch.randn(3, 2, 4)
    way = interpolate(w, 30)
    assert torch.allclose(way[::10], w, atol=1e-6)
    steps = torch.cat([way, way[:1]]).diff(dim=0).flatten(1)
    turns = (steps.roll(-1, dims=0) - steps).norm(dim=1)
    assert turns.max() < 0.5 * steps.norm(dim=1).max(), "no corner at a latent"
    assert torch.allclose(interpolate(w[:1], 4), w[:1].expand(4, -1, -1))


# Camera paths.


def test_labels_are_read_unchanged(tmp_path) -> None:
    cameras = look_at(on_sphere(torch.linspace(0, 2, 4), torch.full((4,), 0.2), 1.7), focal=1.1)
    (tmp_path / "list.json").write_text(json.dumps(cameras.tolist()), encoding="utf-8")
    (tmp_path / "keyed.json").write_text(json.dumps({"labels": cameras.tolist()}), encoding="utf-8")
    eg3d = {"labels": [[f"{i:03}.png", row] for i, row in enumerate(cameras.tolist())]}
    (tmp_path / "eg3d.json").write_text(json.dumps(eg3d), encoding="utf-8")
    np.savetxt(tmp_path / "rows.csv", cameras.numpy(), delimiter=",", fmt="%.9g")
    for name in ("list.json", "keyed.json", "eg3d.json", "rows.csv"):
        assert torch.allclose(read_cameras(tmp_path / name, SETTINGS), cameras, atol=1e-7), name


def test_an_orbit_is_linear_between_key_frames(tmp_path) -> None:
    path, pivot = tmp_path / "orbit.json", torch.tensor(SETTINGS.pivot)
    path.write_text(
        json.dumps({"yaw": [0, 1, 0], "pitch": 0.1, "frames": 5, "focal": [1, 2]}), encoding="utf-8"
    )
    cameras = read_cameras(path, SETTINGS)
    yaw, pitch, radius = yaw_pitch_radius(cameras, pivot)
    assert yaw.tolist() == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-5)
    assert pitch.tolist() == pytest.approx([0.1] * 5, abs=1e-5)
    assert radius.tolist() == pytest.approx([1.7] * 5, abs=1e-5)
    assert split_label(cameras)[1][:, 0, 0].tolist() == pytest.approx([1, 1.25, 1.5, 1.75, 2])
    (tmp_path / "orbit.csv").write_text("yaw, radius\n0, 1.5\n0.5, 2\n", encoding="utf-8")
    yaw, pitch, radius = yaw_pitch_radius(read_cameras(tmp_path / "orbit.csv", SETTINGS), pivot)
    assert yaw.tolist() == pytest.approx([0, 0.5], abs=1e-5)
    assert radius.tolist() == pytest.approx([1.5, 2], abs=1e-5)
    assert pitch.tolist() == pytest.approx([0.3, 0.3], abs=1e-5)


GOOD = look_at(torch.tensor([0.4, 0.5, 1.5])).tolist()
SCALED = [value * 2 for value in GOOD[:16]] + GOOD[16:]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "it is not JSON"),
        ("a.json", "[" * 100_000, "it is not JSON of a camera path"),
        ("a.json", "3", "neither labels nor an orbit"),
        ("a.json", "[]", "it has 0 cameras"),
        ("a.json", "[[1, 2]]", "camera 0 has 2 numbers; a label has 25 numbers"),
        ("a.json", json.dumps([GOOD, SCALED]), "camera 1 has no valid pose"),
        ("a.json", json.dumps([[*GOOD[:16], -1.0, *GOOD[17:]]]), "camera 0 has no positive focal length"),
        ("a.json", json.dumps([[math.nan, *GOOD[1:]]]), "camera 0: 'nan' is not a number"),
        ("a.json", json.dumps([[10**400, *GOOD[1:]]]), "is not a number"),
        ("a.json", json.dumps([[[1], *GOOD[1:]]]), "'[1]' is not a number"),
        ("a.json", '{"yow": 1}', "unknown key 'yow'; known: yaw, pitch, radius, focal, frames, labels"),
        ("a.json", '{"pitch": 1}', "an orbit needs the key yaw"),
        ("a.json", '{"yaw": 0, "frames": 1e9}', "must be a whole number"),
        ("a.json", '{"yaw": 0, "frames": 1000000000}', "it has 1000000000 cameras"),
        ("a.json", '{"yaw": [0, 1], "pitch": [0, 0, 0]}', "yaw has 2 values, but the path has 3"),
        ("a.json", '{"yaw": 0, "radius": 0}', "radius and focal must be more than 0"),
        ("a.json", '{"yaw": 0, "pitch": 1.6}', "pitch must be between -1.57 and 1.57"),
        ("a.csv", "", "it has 0 cameras"),
        ("a.csv", "1,2,3\n", "camera 0 has 3 numbers"),
        ("a.csv", "yaw,pitch\n1\n", "camera 0 has 1 values, the heading 2"),
        ("a.csv", "yaw\nleft\n", "yaw: 'left' is not a number"),
        ("a.txt", "", "camera paths are read from .json or .csv files"),
    ],
)
def test_a_broken_path_is_one_clear_line(tmp_path, name, text, message) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert message in refusal(read_cameras, tmp_path / name, SETTINGS)


def test_a_missing_or_binary_path_is_one_clear_line(tmp_path) -> None:
    assert "no such file" in refusal(read_cameras, tmp_path / "absent.json", SETTINGS)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x81")
    assert "it is not text" in refusal(read_cameras, tmp_path / "binary.json", SETTINGS)
