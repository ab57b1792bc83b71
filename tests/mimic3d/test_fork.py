"""A run that starts from another's checkpoint: what it takes along, and what is its own."""

from pathlib import Path

import torch
from test_training import CONFIG, MeanAbsolute, advance

from mimic3d.config import override
from mimic3d.training.checkpoint import Progress, save_checkpoint
from mimic3d.training.trainer import Trainer

FORK = override(
    CONFIG,
    {"schedule.stage1_kimg": 0, "optimizer.generator_lr": 0.01, "optimizer.keep_moments": True},
)


def trained(folder: Path) -> Trainer:
    """The end of stage 1, stored in a folder."""
    trainer = Trainer(CONFIG, MeanAbsolute())
    advance(trainer, 2)
    save_checkpoint(folder, trainer, Progress())
    return trainer


def test_a_fork_takes_weights_and_moments_and_keeps_its_own_rates(tmp_path: Path) -> None:
    parent = trained(tmp_path)
    fork = Trainer(override(FORK, {"start": str(tmp_path)}), MeanAbsolute())
    assert fork.start_from(tmp_path) == ["generator", "ema", "dual", "patch"]
    assert fork.nimg == 0 and fork.stage == 2 and not fork.config.joint
    for name in ("generator", "ema", "dual", "patch"):
        own, theirs = getattr(fork, name).state_dict(), getattr(parent, name).state_dict()
        assert all(torch.equal(own[key], theirs[key]) for key in own)
    parents = parent.generator_optimizer.state_dict()
    forks = fork.generator_optimizer.state_dict()
    assert forks["state"].keys() == parents["state"].keys() != set()
    for index, state in parents["state"].items():
        assert torch.equal(forks["state"][index]["exp_avg_sq"], state["exp_avg_sq"])
    assert forks["param_groups"][0]["lr"] == 4 * parents["param_groups"][0]["lr"]
    advance(fork, 1)


def test_a_fork_begins_with_new_moments_unless_they_are_kept(tmp_path: Path) -> None:
    trained(tmp_path)
    fork = Trainer(override(FORK, {"start": str(tmp_path), "optimizer.keep_moments": False}), MeanAbsolute())
    fork.start_from(tmp_path)
    assert not fork.generator_optimizer.state and not fork.discriminator_optimizer.state


def test_a_fork_continues_with_the_augmentation_of_its_start(tmp_path: Path) -> None:
    parent = Trainer(override(CONFIG, {"augmentation.mode": "ada"}), MeanAbsolute())
    advance(parent, 2)
    parent.augmentation.p = 0.25
    save_checkpoint(tmp_path, parent, Progress())
    for mode, p in (("ada", 0.25), ("none", 0.0)):
        fork = Trainer(override(FORK, {"start": str(tmp_path), "augmentation.mode": mode}), MeanAbsolute())
        fork.start_from(tmp_path)
        assert fork.augmentation.p == p
        advance(fork, 1)


def test_a_patch_discriminator_of_another_size_begins_anew(tmp_path: Path) -> None:
    parent = trained(tmp_path)
    whole = override(
        FORK, {"start": str(tmp_path), "imitation.patch_resolution": 32, "imitation.patch_scale": 1}
    )
    fork = Trainer(whole, MeanAbsolute())
    assert fork.start_from(tmp_path) == ["generator", "ema", "dual"]
    old, new = (len(trainer.discriminator_optimizer.state) for trainer in (parent, fork))
    assert 0 < new <= old
    advance(fork, 1)


def test_a_generators_folder_has_no_moments_to_give(tmp_path: Path) -> None:
    trained(tmp_path)
    fork = Trainer(override(FORK, {"start": str(tmp_path / "generator")}), MeanAbsolute())
    assert fork.start_from(tmp_path / "generator") == ["generator", "ema"]
    assert not fork.generator_optimizer.state
    advance(fork, 1)
