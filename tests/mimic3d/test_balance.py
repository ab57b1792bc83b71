"""Camera balancing: how often rare views are sampled, and how much real images of them count."""

import pytest
import torch
from test_training import CONFIG, MeanAbsolute, batch_at, labels

from mimic3d.cameras import look_at, on_sphere
from mimic3d.config import override
from mimic3d.losses.adversarial import discriminator_loss
from mimic3d.training.balance import CameraBalance
from mimic3d.training.camera_rarity import camera_rarity
from mimic3d.training.sampling import Sampler
from mimic3d.training.trainer import Trainer

torch.set_num_threads(1)

FULL = override(CONFIG, {"data.camera_balance": 1, "camera.pivot": "0,0,0"})


def faces() -> torch.Tensor:
    """90 cameras in front, 10 at the side."""
    yaw = torch.cat([torch.full((90,), 0.05), torch.full((10,), 1.2)])
    return look_at(on_sphere(yaw, torch.full_like(yaw, 0.1), 2.7))


def share_of_sides(cameras: torch.Tensor) -> float:
    return float((cameras[:, 3].abs() > 1).double().mean())


@pytest.mark.parametrize(("balance", "share"), [(0, 0.1), (0.5, 0.25), (1, 0.5)])
def test_generated_cameras_are_drawn_as_balanced_as_asked(balance: float, share: float) -> None:
    config = override(FULL, {"data.camera_balance": balance, "schedule.batch": 4})
    weights = CameraBalance(config).of_pool(faces(), None)
    sampler = Sampler(config, 0, 1, torch.device("cpu"))
    cameras = [
        sampler.generator_inputs("generator", nimg, faces(), weights).camera for nimg in range(0, 4000, 4)
    ]
    assert share_of_sides(torch.cat(cameras)) == pytest.approx(share, abs=0.03)


def test_a_set_without_weights_is_trained_on_as_if_ingestion_had_added_them() -> None:
    pool = faces()
    stored = torch.from_numpy(camera_rarity(pool.numpy())).to(torch.float32)
    for balance in (0.5, 1):
        config = override(FULL, {"data.camera_balance": balance})
        computed, read = (CameraBalance(config).of_pool(pool, weights) for weights in (None, stored))
        assert torch.allclose(computed, read)


def test_a_data_set_may_bring_weights_of_its_own() -> None:
    own = torch.cat([torch.zeros(90), torch.ones(10)])
    weights = CameraBalance(FULL).of_pool(faces(), own)
    assert weights.mean() == pytest.approx(1) and not weights[:90].any()
    for wrong in (own - 2, own * 0, own[:5], own * torch.nan):
        with pytest.raises(ValueError, match="the data set's weights"):
            CameraBalance(FULL).of_pool(faces(), wrong)


def test_real_images_count_as_their_cameras_do() -> None:
    balance = CameraBalance(FULL)
    balance.of_pool(faces(), None)
    weights = balance.of_reals(faces()[[0, 95]])
    assert weights[1] / weights[0] == pytest.approx(9)
    logits = torch.tensor([[1.0], [-2.0]])
    softplus = torch.nn.functional.softplus
    expected = softplus(logits).mean() + (softplus(-logits)[:, 0] * weights).mean()
    assert discriminator_loss(logits, logits, weights) == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="is not among the data set's"):
        balance.of_reals(labels()[:1])


def test_rows_that_share_a_camera_weigh_their_mean() -> None:
    """As the views of several objects by the fixed cameras of one rig, whose objects have weights."""
    cameras, balance = faces()[[0, 95]].repeat(3, 1), CameraBalance(FULL)
    weights = balance.of_pool(cameras, torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0, 3.0]))
    assert weights is not None
    assert balance.of_reals(cameras[:2]).tolist() == pytest.approx([1.0, 1.0])
    assert weights.tolist() == pytest.approx([0.5, 0.5, 1.0, 1.0, 1.5, 1.5])


def test_a_balanced_training_steps() -> None:
    trainer = Trainer(FULL, MeanAbsolute())
    log = trainer.step(*batch_at(trainer), labels())
    assert all(value.isfinite() for value in log.values())
    even = Trainer(CONFIG, MeanAbsolute())
    own = trainer.step(*batch_at(trainer), labels(), torch.linspace(0.1, 3, 12))
    assert own["loss/discriminator_2d"] != even.step(*batch_at(even), labels())["loss/discriminator_2d"]
