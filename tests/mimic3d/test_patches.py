"""Windows of any scale: the rays, the images' own pixels, and EpiGRAF's annealed distribution."""

import pytest
import torch
from test_training import CONFIG, MeanAbsolute, advance

from mimic3d.config import override
from mimic3d.rendering.patches import PatchWindows, crop, extract_patches, patch_uv
from mimic3d.training.sampling import Sampler, annealed_scales
from mimic3d.training.trainer import Trainer

torch.set_num_threads(1)

RAMP = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij"))[None]


def test_a_window_of_the_patchs_size_is_a_crop() -> None:
    corners = torch.tensor([[3, 5]])
    whole = extract_patches(RAMP, PatchWindows(corners, torch.tensor([8.0])), 8)
    assert torch.equal(whole, RAMP[..., 3:11, 5:13]) and torch.equal(whole, crop(RAMP, corners, 8))
    read = extract_patches(RAMP, PatchWindows(corners.float(), torch.tensor([8.0])), 8)
    torch.testing.assert_close(read, whole)


def test_rays_and_interpolation_of_a_strided_patch_agree() -> None:
    windows = PatchWindows(torch.tensor([[4.0, 2.0]]), torch.tensor([20.0]))
    read = extract_patches(RAMP, windows, 8)
    uv = patch_uv(windows.corners, 8, 32, windows.sides)
    expected = (uv * 32 - 0.5).flip(-1).transpose(1, 2).unflatten(-1, (8, 8))
    torch.testing.assert_close(read, expected)
    assert float(read[0, 0, 1, 0] - read[0, 0, 0, 0]) == pytest.approx(20 / 8)
    label = windows.label(32)[0].tolist()
    assert label == pytest.approx([20 / 16 - 1, (4 + 10) / 16 - 1, (2 + 10) / 16 - 1])


def test_scales_are_annealed_from_the_whole_image_towards_uniform() -> None:
    u = torch.rand(50_000, generator=torch.Generator().manual_seed(0))
    least = torch.full_like(u, 0.25)
    assert (annealed_scales(least, 0.0, u) == 1).all()
    for progress, beta in ((0.5, 0.4), (1.0, 0.8), (7.0, 0.8)):
        scales = annealed_scales(least, progress, u)
        assert scales.min() >= 0.25 and scales.max() <= 1
        share = (scales - 0.25) / 0.75
        assert float(share.mean()) == pytest.approx(1 / (1 + beta), abs=0.01), "the mean of Beta(1, β)"


@pytest.mark.parametrize("scale", [0.25, 0.5, 1])
def test_patches_of_every_scale_train(scale: float) -> None:
    sizes = {"imitation.patch_scale": scale, "imitation.patch_resolution": None}
    config = override(CONFIG, sizes | {"schedule.stage1_kimg": 0})
    trainer = Trainer(config, MeanAbsolute())
    log = advance(trainer, 1)[0]
    assert trainer.patch.resolutions[0] == 32 * scale
    assert all(value.isfinite() for value in log.values())


def test_a_strided_patch_trains_with_a_conditional_discriminator() -> None:
    sizes = {"imitation.patch_scale": 0.75, "imitation.patch_resolution": 16, "schedule.stage1_kimg": 0}
    logs = []
    for label in ("none", "window"):
        trainer = Trainer(override(CONFIG, sizes | {"imitation.patch_label": label}), MeanAbsolute())
        logs.append(advance(trainer, 1)[0])
        assert (trainer.patch.mapping is None) == (label == "none")
        windows = trainer.sampler.windows("generator", 0)
        assert windows.corners.is_floating_point() and (windows.corners + 24 <= 32).all()
    assert all(value.isfinite() for log in logs for value in log.values())


def test_the_3d_branch_trains_alone() -> None:
    alone = {"model.branch_2d": False, "imitation.lpips_weight": 0, "schedule.stage1_kimg": 0}
    config = override(
        CONFIG, alone | {"imitation.patch_anneal_kimg": 0.02, "imitation.patch_label": "window"}
    )
    trainer = Trainer(config, MeanAbsolute())
    before = {name: value.clone() for name, value in trainer.dual.named_parameters()}
    logs = advance(trainer, 3)
    assert not any("2d" in name or "imitation" in name for name in logs[0])
    assert all(value.isfinite() for log in logs for value in log.values())
    assert all(torch.equal(value, before[name]) for name, value in trainer.dual.named_parameters())
    assert trainer.generator.branches == ("3d",)
    sides = [Sampler(config, 0, 1, torch.device("cpu")).windows("r1", nimg).sides for nimg in (0, 40)]
    assert (sides[0] == 32).all() and (sides[1] < 32).any()
