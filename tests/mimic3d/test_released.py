"""Released checkpoints become our folders, number by number, and nothing in them is ever executed."""

import dataclasses
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import parity
import pytest
import torch
from released_pickles import Call, Persistent, checkpoint, dump

from mimic3d.checkpoints.generator_folder import load_generator
from mimic3d.checkpoints.pickle_parser import RefusedPickle, read_network_pickle
from mimic3d.checkpoints.released import import_released
from mimic3d.config import Config, ModelConfig, RenderingConfig
from mimic3d.export.orbits import front
from mimic3d.networks.generator import Generator
from mimic3d.rendering.patches import crop, patch_uv
from mimic3d_platform.cli import main
from mimic3d_platform.models.rendering import RenderOptions, write_grid

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT.parent / "shared" / "reference" / "mimic3d_256_tiny.pkl"
SUPERRESOLUTION = {128: (64, (8, 4)), 256: (128, (8, 4)), 512: (128, (8, 4))}


def small_generator(architecture: str = "mimic3d", size: int = 128) -> Generator:
    torch.manual_seed(0)
    superresolution_input, channels = SUPERRESOLUTION[size]
    model = ModelConfig(
        image_resolution=size,
        neural_rendering_resolution=8,
        triplane_resolution=16,
        z_dim=12,
        w_dim=16,
        mapping_layers=2,
        channel_base=64,
        channel_max=8,
        superresolution_input=superresolution_input,
        superresolution_channels=channels,
        architecture=architecture,
    )
    generator = Generator(model, RenderingConfig(0.1, 2.6, 1.6, 4, 5, True))
    generator.backbone.mapping.w_avg.normal_()
    return generator.requires_grad_(False)


def imported(file: Path) -> tuple[Generator, Config]:
    """The generator of a network pickle and its config, imported into a new folder beside it."""
    folder = tempfile.mkdtemp(dir=file.parent)
    import_released(file, folder, generator_only=True)
    return load_generator(folder)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def small() -> Generator:
    return small_generator()


@pytest.fixture(scope="module")
def released(small) -> bytes:
    return checkpoint(small)


def refusal(tmp_path: Path, data: bytes) -> str:
    """The one line with which a file of `data` is refused; nothing may be left behind."""
    file, destination = tmp_path / "network.pkl", tmp_path / "out" / "generator"
    file.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        import_released(file, destination)
    assert list(tmp_path.iterdir()) == [file], "something was written or executed"
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and "\n" not in message and len(message) < 400
    return message.removeprefix(f"{file}: ")


# What is read.


@pytest.mark.parametrize("size", SUPERRESOLUTION)
@pytest.mark.parametrize("architecture", ["mimic3d", "eg3d"])
def test_every_tensor_and_size_is_imported(tmp_path, architecture, size) -> None:
    original = small_generator(architecture, size)
    (tmp_path / "network.pkl").write_bytes(checkpoint(original))
    import_released(tmp_path / "network.pkl", tmp_path / "generator")
    generator, config = load_generator(tmp_path / "generator")
    assert config.recipe == "imported"
    assert generator.rendering == original.rendering
    own, wanted = dataclasses.asdict(config.model), dataclasses.asdict(original.config)
    assert {k for k in own if own[k] != wanted[k]} <= {
        "discriminator_channel_base",
        "discriminator_channel_max",
    }
    tensors = generator.state_dict()
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensors[name], tensor), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["generator", "network.pkl"]


@pytest.mark.parametrize("architecture", ["mimic3d", "eg3d"])
def test_an_imported_generator_renders_all_its_branches(tmp_path, architecture) -> None:
    (tmp_path / "network.pkl").write_bytes(checkpoint(small_generator(architecture)))
    generator, config = imported(tmp_path / "network.pkl")
    assert generator.branches == {"mimic3d": ("2d", "3d"), "eg3d": ("2d",)}[architecture]
    camera = front(config.camera).expand(1, -1)
    w = generator.mapping(torch.randn(1, 12), camera)
    planes = generator.planes(w)
    for branch in generator.branches:
        image = generator.view(planes, w, camera, branch).image
        assert image.shape == (1, 3, 128, 128) and image.isfinite().all()
    if architecture == "eg3d":
        with pytest.raises(ValueError, match="branch is '3d', but must be one of 2d for a generator of eg3d"):
            generator.view(planes, w, camera, "3d")
    write_grid(generator, config, tmp_path / "grid.png", RenderOptions(seeds=(0,)), camera)
    assert (tmp_path / "grid.png").stat().st_size > 0


def test_the_constant_may_have_a_batch_dimension_and_noise_of_s2d_may_be_absent(tmp_path, small) -> None:
    const = "backbone.synthesis.b4.const"
    idle = [n for n in small.state_dict() if n.startswith("superresolution.") and "noise" in n]
    change = {const: small.state_dict()[const][None], **dict.fromkeys(idle)}
    (tmp_path / "network.pkl").write_bytes(checkpoint(small, change=change))
    tensors = imported(tmp_path / "network.pkl")[0].state_dict()
    assert torch.equal(tensors[const], small.state_dict()[const])
    assert all(not tensors[name].any() for name in idle)


def test_a_scaled_or_ignored_label_is_kept_in_the_embedding(tmp_path, small) -> None:
    file, name = tmp_path / "network.pkl", "backbone.mapping.embed.weight"
    for settings, scale in (({"c_scale": 0.5}, 0.5), ({"c_gen_conditioning_zero": True}, 0.0)):
        file.write_bytes(checkpoint(small, rendering=settings))
        assert torch.equal(imported(file)[0].state_dict()[name], small.state_dict()[name] * scale)


def test_half_precision_and_numpy_numbers_are_read() -> None:
    value = {"half": torch.arange(6.0).half().view(2, 3).t(), "gain": np.float64(0.25), "on": [np.int64(3)]}
    found = read_network_pickle(dump(value))
    assert found["half"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["gain"] == 0.25 and found["on"] == [3]


@pytest.mark.skipif(not REFERENCE.is_file(), reason=f"no {REFERENCE}")
def test_the_released_format_itself_reproduces_its_measurements(tmp_path) -> None:
    import_released(REFERENCE, tmp_path / "generator")
    generator, config = load_generator(tmp_path / "generator")
    reference = json.loads(REFERENCE.with_suffix(".json").read_text(encoding="utf-8"))
    assert generator.rendering == parity.config_of(reference).rendering
    assert config.camera.pivot == (0.0, 0.0, 0.2) and config.camera.radius == 2.7
    salt, batch = reference["salt"], reference["config"]["batch"]
    camera = parity.reference_cameras(batch)
    ws = generator.mapping(parity.seeded([batch, 512], salt + "z"), camera)
    planes = generator.planes(ws)
    view = generator.branch_2d(planes, ws, camera)
    corners, size = torch.tensor(reference["config"]["patch_corners_top_left"]), 64
    patch = generator.branch_3d(planes, camera, patch_uv(corners, size, 256)).features
    points = torch.rand(batch, 64, 3, generator=torch.Generator().manual_seed(7)) - 0.5
    found = {
        "ws": ws,
        "plane_coarse": planes.coarse,
        "plane_detail": planes.detail,
        "image": view.image,
        "image_raw": view.raw,
        "image_depth": view.depth,
        "sigma_at_points": generator.field(planes, points)[0],
        "patch_2d": crop(view.image, corners, size),
        "patch_3d": patch.transpose(1, 2).unflatten(-1, (size, size)),
    }
    expected = {name: reference["measured"][name] for name in found}
    errors = parity.errors(expected, found)
    assert {name: error for name, error in errors.items() if not error <= 1e-4} == {}


# What is refused: code.


def legacy_storage(value: object) -> bytes:
    """What stands where a tensor's bytes belong, with a pickle of anything in the place of its storage."""
    file = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(part, file, protocol=2)
    pickle.dump(value, file, protocol=2)
    return file.getvalue()


CALLS = {
    f"{os.system.__module__}.system": (os.system, "touch {}"),
    "builtins.eval": (eval, "open({!r}, 'w')"),
    "builtins.exec": (exec, "open({!r}, 'w')"),
    "subprocess.Popen": (subprocess.Popen, ["touch", "{}"]),
    "torch.hub.load": (torch.hub.load, "{}", "x"),
    "torch.serialization.load": (torch.load, "{}"),
    "torch._utils._rebuild_sparse_tensor": (torch._utils._rebuild_sparse_tensor, torch.strided, ()),
    "builtins.getattr": (getattr, "x", "y"),
    "operator.attrgetter": (__import__("operator").attrgetter, "x"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("place", ["G_ema", "D", "state", "tensor", "storage"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_call_is_refused_by_name_and_not_made(tmp_path, name, place, protocol) -> None:
    def aimed(value: object) -> object:
        if isinstance(value, list):
            return [aimed(item) for item in value]
        return value.format(str(tmp_path / "executed")) if isinstance(value, str) else value

    function, *arguments = CALLS[name]
    call = Call(function, *map(aimed, arguments))
    nested = Call(torch.storage._load_from_bytes, legacy_storage(call))
    value = {
        "G_ema": {"G_ema": call},
        "D": {"G_ema": None, "D": call},
        "state": {"G_ema": Persistent("Generator", {"_modules": {"backbone": call}})},
        "tensor": {"G_ema": Persistent("Generator", {"_buffers": {"w_avg": call}})},
        "storage": {"D": Persistent("D", {"_buffers": {"w_avg": nested}})},
    }[place]
    message = refusal(tmp_path, dump(value, protocol))
    if protocol == 2 and place == "storage":  # before protocol 3 even bytes are made by a call
        name = "_codecs.encode"
    elif protocol == 2 or place == "storage":
        name = name.replace("builtins", "__builtin__").replace("subprocess", "commands")
    assert f"{name}, which network pickles do not use; nothing was executed" in message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"cos\nsystem\n(S'touch executed'\ntR.", "it names os.system"),
        (b"(S'touch executed'\nios\nsystem\n.", "it uses STRING"),
        (b"(ios\nsystem\n.", "it uses INST of os system"),
        (b"(cos\nsystem\no.", "it names os.system"),
        (b"\x80\x02\x82\x01.", "it uses EXT1"),
        (b"\x80\x04\x8c\x09training.\x8c\x03run\x93)R.", "it names training..run"),
        (b"\x80\x04\x8c\x08training\x8c\x03run\x93)R.", "it calls training.run; nothing was executed"),
        (b"\x80\x04\x8c\x08training\x8c\x03run\x93K\x01\x85\x81.", "it makes a training.run from arguments"),
        (b"\x80\x04ctorch.storage\n_load_from_bytes\n}b.", "a Name stands where a Module"),
        (b"\x80\x04ccollections\nOrderedDict\n)R}b.", "a dict stands where a Module"),
        (b"\x80\x04K\x01Q.", "refers to objects outside"),
        (b"\x80\x04}]K\x01s.", "a list stands where a str or int belongs"),
    ],
)
def test_opcodes_that_import_call_or_set_attributes_do_none_of_it(tmp_path, data, said) -> None:
    assert said in refusal(tmp_path, data)


# What is refused: damage and other files.


def test_a_file_cut_short_anywhere_is_refused(tmp_path, released) -> None:
    for part in (1, 2, 11, 300, *(len(released) * k // 17 for k in range(1, 17)), len(released) - 1):
        assert "cut short or not a pickle" in refusal(tmp_path, released[:part])


def test_damaged_bytes_are_refused_or_leave_plain_data(released) -> None:
    source = random.Random(0)
    for _ in range(40):
        data = bytearray(released)
        for _ in range(3):
            data[source.randrange(len(data))] = source.randrange(256)
        try:
            read_network_pickle(bytes(data))
        except RefusedPickle as error:
            assert "\n" not in str(error)


def test_errors_name_the_kind_of_other_files(tmp_path, released) -> None:
    zipped = io.BytesIO()
    torch.save({"G_ema": torch.zeros(3)}, zipped)
    for data, said in {
        b"": "it is empty",
        zipped.getvalue(): "it is a zip file",
        b"training: true\n": "not a pickle",
        b"\x89PNG\r\n\x1a\n": "which network pickles do not use; is it one?",
        released + b"!": "but the file continues",
        dump({"D": None}): "it holds no network G_ema",
        dump({"G_ema": {"weight": torch.zeros(3)}}): "it holds no network G_ema",
        dump([1, 2]): "it holds no network G_ema",
        dump({"G_ema": Persistent("Generator", {})}): "neither an EG3D nor a Mimic3D generator",
    }.items():
        assert said in refusal(tmp_path, data)
    with pytest.raises(ValueError, match="no such file"):
        import_released(tmp_path / "absent.pkl", tmp_path / "generator")


B8, FC0 = "backbone.synthesis.b8.conv1", "backbone.mapping.fc0"
CHANGES = {
    "its mimic3d generator lacks decoder.net.0.bias": {"decoder.net.0.bias": None},
    "the tensor backbone.mapping.embed.weight is missing": {"backbone.mapping.embed.weight": None},
    "generator has the surplus tensor decoder.net.4.weight and 1 more": {
        "decoder.net.4.weight": torch.zeros(2),
        "decoder.net.4.x": torch.zeros(2),
    },
    f"the tensor {B8}.bias has the shape (7,), but must have (8,)": {f"{B8}.bias": torch.zeros(7)},
    f"the tensor {B8}.weight has the shape (8, 3), not 4": {f"{B8}.weight": torch.zeros(8, 3)},
    "b8 has 5 channels, but the other blocks imply 8": {f"{B8}.weight": torch.zeros(5, 8, 3, 3)},
    f"the tensor {FC0}.bias must hold finite": {f"{FC0}.bias": torch.full((16,), torch.nan)},
    f"the tensor {FC0}.bias must hold": {f"{FC0}.bias": torch.full((16,), 1e300, dtype=torch.float64)},
    f"the tensor {FC0}.bias must hold finite floating": {f"{FC0}.bias": torch.zeros(16, dtype=torch.int64)},
    "resample_filter is not the filter [1, 3, 3, 1]": {
        "superresolution.resample_filter": torch.full((4, 4), 1 / 16)
    },
    "the tensor backbone.synthesis.b65536.conv1.weight is missing": {
        "backbone.synthesis.b65536.x": torch.zeros(1)
    },
    "takes labels of 24 numbers": {"backbone.mapping.embed.weight": torch.zeros(16, 24)},
    "its images have size 100": {"superresolution.block1.conv1.noise_const": torch.zeros(100, 100)},
}


@pytest.mark.parametrize("said", CHANGES)
def test_tensors_that_do_not_make_a_generator_are_named(tmp_path, small, said) -> None:
    assert said in refusal(tmp_path, checkpoint(small, change=CHANGES[said]))


def test_tensors_of_an_enormous_network_allocate_nothing(tmp_path, small) -> None:
    blocks = ("backbone.synthesis.b16", "backbone.synthesis.b524288")
    change = {f"{block}.conv1.weight": torch.zeros(8, 8, 3, 3) for block in blocks}
    message = refusal(tmp_path, checkpoint(small, change=change))
    assert message.startswith("its mimic3d generator lacks backbone.synthesis.b1024.conv0.affine.bias and")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ray_start": "auto"}, "ray_start is 'auto', but must be a plain number"),
        ({"ray_end": float("inf")}, "ray_end is inf"),
        ({"ray_start": 3.0}, "rendering.near is 3.0"),
        ({"disparity_space_sampling": True}, "disparity_space_sampling=True"),
        ({"clamp_mode": "relu"}, "clamp_mode='relu', but only clamp_mode='softplus' is supported"),
        ({"superresolution_noise_mode": "random"}, "superresolution_noise_mode='random'"),
        ({"decoder_lr_mul": 0.5}, "decoder_lr_mul=0.5"),
        ({"sr_antialias": False}, "sr_antialias=False"),
        ({"depth_resolution": 10**9}, "depth_resolution is 1000000000"),
        ({"white_back": "yes"}, "white_back is 'yes'"),
        ({"avg_camera_pivot": [0, 0]}, "avg_camera_pivot is [0, 0], not three numbers"),
        ({"c_scale": "x"}, "c_scale is 'x'"),
        ({"c_scale": 10**400}, "c_scale is 1000"),
        ({"ray_start": "a\nb" * 500}, "ray_start is 'a"),
        ({"clamp_mode": torch.zeros(3)}, "clamp_mode=a ndarray"),
        ({"ray_start": [[0.1]]}, "ray_start is a list, but must be a plain number"),
        ({"c_gen_conditioning_zero": 1}, "c_gen_conditioning_zero is 1, not true or false"),
    ],
)
def test_settings_that_are_not_supported_are_named(tmp_path, small, settings, said) -> None:
    assert said in refusal(tmp_path, checkpoint(small, rendering=settings))


def test_attributes_that_are_not_supported_are_named(tmp_path, small) -> None:
    for attributes, said in (
        ({"neural_rendering_resolution": 2**20}, "neural_rendering_resolution is 1048576"),
        ({"depth_guided_sample": 1}, "depth_guided_sample=1"),
        ({"rendering_kwargs": None}, "rendering_kwargs are not a dictionary"),
    ):
        assert said in refusal(tmp_path, checkpoint(small, attributes=attributes))


# What is refused: sizes that are declared and not there.


def storage_of(count: int, held: int) -> bytes:
    """A storage of `held` floats, fewer than 256, that declares `count`."""
    _, (data,) = torch.zeros(held)._typed_storage().__reduce__()
    declared, counted = b"K" + bytes([held]), struct.pack("<q", held)
    assert data.count(declared) == data.count(counted) == 1
    data = data.replace(declared, b"\x8a\x06" + count.to_bytes(6, "little"))
    return data.replace(counted, struct.pack("<q", count))


def test_declared_sizes_beyond_the_file_allocate_nothing(tmp_path) -> None:
    count = 2**44
    bomb = Call(torch.storage._load_from_bytes, storage_of(count, held=77))
    message = refusal(tmp_path, dump({"G_ema": None, "D": bomb}))
    assert f"it declares {4 * count} bytes of numbers, but has 308" in message
    long_bytes = b"\x80\x04\x8e" + struct.pack("<Q", 2**50) + b"x."
    assert "cut short" in refusal(tmp_path, long_bytes)
    memo = b"\x80\x04}r\xff\xff\xff\x7f."  # the memo's two thousand millionth entry
    assert "it holds no network G_ema" in refusal(tmp_path, memo)


def rebuilt(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Call:
    storage = torch.storage.TypedStorage([0.0] * 6, dtype=torch.float32, _internal=True)
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})


@pytest.mark.parametrize(
    "tensor",
    [
        rebuilt((7,), (1,)),
        rebuilt((2, 3), (4, 1)),
        rebuilt((2,), (-1,), 3),
        rebuilt((6,), (1,), 1),
        rebuilt((1,), (1,), -2),
        rebuilt((2**40,), (0,)),
        rebuilt((2**40, 0), (1, 1), 7),
    ],
)
def test_a_tensor_reaches_no_memory_but_its_own(tmp_path, tensor) -> None:
    assert "reaches beyond its storage of 6" in refusal(tmp_path, dump({"G_ema": tensor}))


def test_a_network_that_contains_itself_is_refused(tmp_path) -> None:
    parts: dict[str, object] = {}
    part = Persistent("Part", {"_modules": parts})
    for _ in range(40):  # 2 ** 40 parts, were each visited as often as it is named
        part = Persistent("Part", {"_modules": {"a": part, "b": part}})
    assert "the network is not a tree" in refusal(tmp_path, dump({"G_ema": part}))


# Where it goes.


def test_a_destination_that_is_taken_is_left_alone(tmp_path, released) -> None:
    file = tmp_path / "network.pkl"
    file.write_bytes(released)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("mine", encoding="utf-8")
    for destination in (taken, file):
        with pytest.raises(ValueError, match="exists and is not an empty folder: name another"):
            import_released(file, destination)
    assert [p.name for p in taken.iterdir()] == ["mine"]
    with pytest.raises(ValueError, match="cannot write"):
        import_released(file, file / "below")
    (tmp_path / "empty").mkdir()
    import_released(file, tmp_path / "empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "network.pkl", "taken"]


def test_the_command_reports_its_result_or_error(tmp_path, released, monkeypatch, capsys) -> None:
    (tmp_path / "network.pkl").write_bytes(released)
    (tmp_path / "hostile.pkl").write_bytes(dump({"G_ema": Call(os.system, "touch executed")}))
    monkeypatch.chdir(tmp_path)

    def command(file: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mimic3d", "import-checkpoint", file, "out/generator"])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out + captured.err

    status, said = command("hostile.pkl")
    assert status == 2 and said.count("\n") == 1
    assert said.startswith(f"error: {tmp_path}/hostile.pkl: it names {os.system.__module__}.system")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hostile.pkl", "network.pkl"]
    assert command("network.pkl") == (0, "out/generator: a generator of mimic3d for 128² images\n")
    load_generator(tmp_path / "out" / "generator")
