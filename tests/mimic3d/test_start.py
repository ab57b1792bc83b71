"""What a run may begin with: another run's weights, a generator's, and what is refused."""

from pathlib import Path

import pytest
import torch
from test_training import CONFIG, MeanAbsolute, advance, changed, snapshot

from mimic3d.checkpoints.generator_folder import save_generator
from mimic3d.config import Config, ConfigError, override
from mimic3d.networks.generator import build_generator
from mimic3d.training.checkpoint import Progress, save_checkpoint
from mimic3d.training.trainer import Trainer

torch.set_num_threads(1)


def fresh(config: Config = CONFIG, **changes: object) -> Trainer:
    return Trainer(override(config, {"seed": 7, **changes}), MeanAbsolute())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    """A run of three steps, and its checkpoint."""
    trainer = Trainer(CONFIG, MeanAbsolute())
    advance(trainer, 3)
    folder = tmp_path_factory.mktemp("start") / "checkpoint"
    return trainer, save_checkpoint(folder, trainer, Progress(trainer.nimg))


def test_a_generators_folder_lends_its_weights_to_the_average_too(checkpoint, tmp_path: Path) -> None:
    source, folder = checkpoint
    trainer = fresh()
    before = snapshot(trainer.dual)
    assert trainer.start_from(folder / "generator") == ["generator", "ema"]
    for network in (trainer.generator, trainer.ema):
        assert not changed(network, snapshot(source.ema))
    assert not changed(trainer.dual, before)


def test_eg3d_starts_stage_1_and_not_stage_2(tmp_path: Path) -> None:
    eg3d = override(CONFIG, {"model.architecture": "eg3d"})
    generator = build_generator(eg3d)
    save_generator(tmp_path, generator, eg3d)
    trainer = fresh()
    before = snapshot(trainer.generator)
    trainer.start_from(tmp_path)
    kept = {name for name in before if name not in changed(trainer.generator, before)}
    assert {name for name in before if ".b3d" in name} <= kept, "3D-aware blocks keep their initialisation"
    assert torch.equal(trainer.generator.decoder.net["0"].weight, generator.decoder.net["0"].weight)
    with pytest.raises(ValueError, match=r"has no 3D-aware blocks, which stage 2 builds on: train stage 1"):
        fresh(**{"schedule.stage1_kimg": 0}).start_from(tmp_path)


def test_what_is_no_start_is_one_line_and_changes_nothing(checkpoint, tmp_path: Path) -> None:
    trainer = fresh()
    before = snapshot(trainer.generator)
    with pytest.raises(ValueError, match=r"holds neither state.pt nor generator.safetensors"):
        trainer.start_from(tmp_path)
    (tmp_path / "state.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"state.pt is damaged: take an earlier checkpoint$"):
        trainer.start_from(tmp_path)
    (tmp_path / "state.pt").unlink()
    (tmp_path / "generator.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"generator.safetensors is damaged"):
        trainer.start_from(tmp_path)
    assert not changed(trainer.generator, before)
    wider = fresh(**{"model.z_dim": 16})
    with pytest.raises(ValueError, match=r"does not fit the config: generator.*change model\.\*"):
        wider.start_from(checkpoint[1])


def test_float16_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"must be 'fp32' or 'bf16' on a CPU"):
        fresh(**{"model.precision": "mixed"})


def test_bfloat16_trains_close_to_float32() -> None:
    logs = [advance(fresh(**{"model.precision": p}), 3)[-1] for p in ("fp32", "bf16")]
    assert all(value.isfinite() for value in logs[1].values())
    for name in ("loss/discriminator_2d", "loss/discriminator_patch", "loss/r1_patch"):
        assert logs[0][name] != logs[1][name], "it is used"
        assert logs[1][name] == pytest.approx(float(logs[0][name]), rel=0.2, abs=0.02)
    model = fresh(**{"model.precision": "bf16"})
    assert {p.dtype for p in model.dual.parameters()} == {torch.float32}, "weights are kept in full"
