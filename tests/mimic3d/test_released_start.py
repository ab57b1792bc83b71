"""What a released checkpoint holds for a training: it arrives, a run starts from it, damage is refused."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from released_pickles import Call, Persistent, checkpoint, dump, network, released_tensors
from test_released import small_generator
from torch import Tensor, nn

from mimic3d.cameras import look_at, on_sphere
from mimic3d.checkpoints.file_names import TRAINING_NETWORKS
from mimic3d.checkpoints.generator_folder import load_generator
from mimic3d.checkpoints.pickle_parser import read_network_pickle
from mimic3d.checkpoints.released import import_released
from mimic3d.config import Config, ScheduleConfig
from mimic3d.networks.discriminators import DualDiscriminator, PatchDiscriminator
from mimic3d.training.initial_weights import read_initial_state
from mimic3d.training.trainer import Trainer

torch.set_num_threads(1)

SIZE, WIDTHS = 128, (256, 12)


class Difference(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).abs().mean(dim=(1, 2, 3))


def discriminators() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    return {"D": DualDiscriminator(SIZE, *WIDTHS), "D_patch": PatchDiscriminator(64, *WIDTHS)}


def released(architecture: str = "mimic3d", change: dict | None = None, **others) -> bytes:
    """A pickle with a generator that was not averaged, and discriminators; `change` is to D's tensors."""
    current = small_generator(architecture)
    torch.nn.init.constant_(current.decoder.get_parameter("net.0.bias"), 0.25)
    parts: dict[str, object] = {"G": network(released_tensors(current), {})}
    for name, part in discriminators().items():
        tensors = dict(part.named_parameters()) | (change or {} if name == "D" else {})
        fir = torch.tensor([1.0, 3.0, 3.0, 1.0])
        tensors["b64.conv1.resample_filter"] = fir[:, None] * fir / 64
        parts[name] = network({k: v for k, v in tensors.items() if v is not None}, {})
    return checkpoint(small_generator(architecture), extra=parts | others)


def start_config(config: Config, **schedule) -> Config:
    settings = {"batch": 2, "stage1_kimg": 0.0, "stage2_kimg": 0.004, "blur_sigma": 0.0} | schedule
    output = dataclasses.replace(config.output, checkpoint_kimg=0.002, sample_kimg=0.002)
    return dataclasses.replace(config, start="here", schedule=ScheduleConfig(**settings), output=output)


def step(trainer: Trainer) -> dict[str, Tensor]:
    cameras = look_at(on_sphere(torch.tensor([0.3, 2.0]), torch.tensor([0.2, 0.4]), 1.7), focal=1.0254)
    images = torch.randint(256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    return trainer.step(images, cameras, cameras)


def test_all_networks_are_imported_and_start_a_run(tmp_path) -> None:
    (tmp_path / "network.pkl").write_bytes(released())
    config = import_released(tmp_path / "network.pkl", tmp_path / "generator")
    assert config.model.discriminator_channel_base == 256 and config.model.discriminator_channel_max == 12
    states = read_initial_state(tmp_path / "generator").networks
    assert set(states) == {"generator", "ema", "dual", "patch"}
    for name, part in {"dual": "D", "patch": "D_patch"}.items():
        for key, tensor in discriminators()[part].state_dict().items():
            assert torch.equal(states[name][key], tensor), key
    bias = "decoder.net.0.bias"
    assert (states["generator"][bias] == 0.25).all() and not (states["ema"][bias] == 0.25).any()

    trainer = Trainer(start_config(config), Difference())
    taken = trainer.start_from(tmp_path / "generator")
    assert sorted(taken) == ["dual", "ema", "generator", "patch"]
    assert trainer.stage == 2 and trainer.nimg == 0
    log = step(trainer)
    assert all(value.isfinite() for value in log.values())
    drawn, _ = load_generator(tmp_path / "generator")
    assert drawn.branches == ("2d", "3d")


def test_an_eg3d_generator_starts_a_stage_one_of_its_own_kind(tmp_path) -> None:
    (tmp_path / "network.pkl").write_bytes(released("eg3d", D_patch=None))
    config = import_released(tmp_path / "network.pkl", tmp_path / "generator")
    config = start_config(config, stage1_kimg=0.004, stage2_kimg=0.0)
    trainer = Trainer(config, Difference())
    assert sorted(trainer.start_from(tmp_path / "generator")) == ["dual", "ema", "generator"]
    assert all(value.isfinite() for value in step(trainer).values())


def test_generator_only_imports_nothing_else(tmp_path) -> None:
    (tmp_path / "network.pkl").write_bytes(released(change={"b64.conv0.bias": None}))
    import_released(tmp_path / "network.pkl", tmp_path / "generator", generator_only=True)
    assert not (tmp_path / "generator" / TRAINING_NETWORKS).exists()
    assert set(read_initial_state(tmp_path / "generator").networks) == {"generator", "ema"}


def refusal(tmp_path: Path, data: bytes) -> str:
    file = tmp_path / "network.pkl"
    file.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        import_released(file, tmp_path / "generator")
    assert list(tmp_path.iterdir()) == [file]
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"b64.conv0.bias": None}, "in D, its discriminator lacks b64.conv0.bias (to import the generator"),
        ({"b4.fc.extra": torch.zeros(2)}, "in D, its discriminator has the surplus tensor b4.fc.extra"),
        ({"b4.fc.weight": torch.zeros(5, 192)}, "in D, b4 has 5 channels"),
        ({"b4.fc.weight": None}, "in D, the tensor b4.fc.weight is missing"),
        ({"b4.out.bias": torch.full((12,), torch.inf)}, "b4.out.bias must hold finite"),
        ({"b128.fromrgb.weight": torch.zeros(2, 3, 1, 1)}, "has the shape (2, 3, 1, 1), but must have"),
    ],
)
def test_errors_name_tensors_that_do_not_fit_a_discriminator(tmp_path, change, said) -> None:
    assert said in refusal(tmp_path, released(change=change))


def test_values_that_are_not_networks_are_refused(tmp_path) -> None:
    assert "its D is not a network" in refusal(tmp_path, released(D=[1]))
    assert "in G, its mimic3d generator lacks" in refusal(tmp_path, released(G=Persistent("G", {})))


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value, value]
    return value


def test_bombs_take_no_more_memory_than_their_size(tmp_path) -> None:
    # 2 ** 60 lists if each were visited as often as it is named; a chain deeper than Python's stack.
    assert "holds no network G_ema" in refusal(tmp_path, dump({"D": nested(60)}))
    chain = b"\x80\x04" + b"]" * 200_000 + b"a" * 199_999 + b"."
    assert "holds no network G_ema" in refusal(tmp_path, chain)
    tuples = b"\x80\x04)" + b"\x85" * 200_000 + b"."
    assert "holds no network G_ema" in refusal(tmp_path, tuples)
    assert read_network_pickle(b"\x80\x04}\x94(" + b"K\x01h\x00" * 1000 + b"u.") is not None


class Reconstructed:
    """An array as numpy pickles it: by a call that fills memory with whatever shape it is given."""

    def __reduce__(self):
        return np.empty(0).__reduce__()[0], (np.ndarray, (2**30,), b"b")


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Reconstructed(), "_reconstruct"),
        (Call(np.load, "x", None, True), "load"),
        (Call(os.execv, "/bin/true", ["true"]), "execv"),
        (Call(__import__, "os"), "__import__"),
        (Call(bytearray, 2**40), "bytearray"),
        (Call(range, 2**40), "range"),
    ],
)
def test_calls_that_would_run_or_allocate_are_refused_by_name(tmp_path, value, named) -> None:
    for place in ({"G_ema": value}, {"G_ema": Persistent("G", {"_buffers": {"w_avg": value}})}):
        message = refusal(tmp_path, dump(place))
        assert named in message and "nothing was executed" in message
