"""Adaptive augmentation: every transform against torchvision's or by its definition, and the adaptation."""

import math

import pytest
import torch
from test_training import CONFIG, MeanAbsolute, advance, batch_at
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, affine, hflip

from mimic3d.config import override
from mimic3d.losses.adversarial import r1_penalty
from mimic3d.networks.discriminators import resize_antialiased
from mimic3d.training import augmentation
from mimic3d.training.augmentation import (
    AdaptiveProbability,
    Augmentation,
    hue_rotation,
    sample_augmentation,
    warp_images,
)
from mimic3d.training.phases import PhaseContext, Reals
from mimic3d.training.trainer import Trainer

torch.set_num_threads(1)

ADA = override(CONFIG, {"augmentation.mode": "ada", "augmentation.kimg": 0.1, "augmentation.interval": 2})
SIZE = 48


def smooth(batch: int = 2) -> Tensor:
    """Images without detail that resamplers could differ on."""
    coarse = torch.rand(batch, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=SIZE, mode="bicubic")


def by_torchvision(images: Tensor, angle: float = 0, shift: tuple[int, int] = (0, 0), scale: float = 1):
    return affine(images, angle, list(shift), scale, [0.0], InterpolationMode.BILINEAR)


def both(value: float) -> Tensor:
    return torch.full((2,), value)


@pytest.mark.parametrize(
    ("warp", "expected"),
    [
        (augmentation._scaling(both(-1), both(1)), hflip),
        (augmentation._rotation(both(math.pi / 2)), lambda x: torch.rot90(x, -1, (2, 3))),
        (augmentation._rotation(both(math.radians(20))), lambda x: by_torchvision(x, angle=20)),
        (augmentation._scaling(both(1.2), both(1.2)), lambda x: by_torchvision(x, scale=1.2)),
        (
            augmentation._translation(torch.tensor([[6 / SIZE, -4 / SIZE]] * 2)),
            lambda x: by_torchvision(x, shift=(6, -4)),
        ),
        (
            augmentation._translation(torch.tensor([[0.5 / SIZE, 0.0]] * 2)),
            lambda x: (x + x.roll(1, dims=3)) / 2,
        ),
        (augmentation._scaling(both(2), both(1)), lambda x: stretched(x)),
    ],
    ids=["flip", "quarter", "rotation", "scaling", "whole pixels", "half a pixel", "one axis"],
)
def test_a_geometric_transform_is_torchvisions(warp: Tensor, expected) -> None:
    images = smooth()
    inside = (..., slice(12, -12), slice(12, -12))
    found, wanted = warp_images(images, warp)[inside], expected(images)[inside]
    # About a centre that is a twentieth of a pixel off the wavelet's.
    assert (found - wanted).abs().max() < 0.08 * images.std()
    assert (found - images[inside]).abs().mean() > 0.005, "and it does something"


def stretched(images: Tensor) -> Tensor:
    middle = images[..., SIZE // 4 : -SIZE // 4]
    return torch.nn.functional.interpolate(middle, size=(SIZE, SIZE), mode="bilinear")


def test_warping_by_nothing_changes_nothing_however_fine_the_image() -> None:
    noise = torch.rand(2, 6, 33, 33, dtype=torch.float64)
    found = warp_images(noise, torch.eye(3).expand(2, 3, 3))
    assert (found - noise).abs().max() < 1e-4
    assert sample_augmentation(2, 0.0, 33, torch.Generator()).apply(noise) is noise, "and at p = 0 not a bit"


def test_the_borders_are_mirrored() -> None:
    images = smooth()
    moved = warp_images(images, augmentation._translation(torch.tensor([[8 / SIZE, 0.0]] * 2)))
    assert (moved[..., 12:-12, 0:3] - images[..., 12:-12, [8, 7, 6]]).abs().max() < 0.05
    assert moved.abs().max() < 1.2 * images.abs().max()


def test_beyond_one_mirrored_copy_an_image_is_black() -> None:
    white = torch.ones(1, 3, SIZE, SIZE)
    moved = warp_images(white, augmentation._translation(torch.tensor([[1.5, 0.0]])))[0, 0, SIZE // 2]
    assert moved[: SIZE // 2 - 8].abs().max() < 0.05 and (moved[SIZE // 2 + 8 :] - 1).abs().max() < 0.05


def test_a_flip_is_about_tap_5_of_the_wavelet() -> None:
    ramp = torch.arange(SIZE, dtype=torch.float64).expand(1, 3, SIZE, SIZE)
    flipped = warp_images(ramp, augmentation._scaling(torch.tensor([-1.0]), torch.ones(1)))
    displaced = (flipped - ramp.flip(3))[..., 12:-12]
    centre_of_mass = sum(place * tap for place, tap in enumerate(augmentation.SYM6)) / sum(augmentation.SYM6)
    assert (displaced - (5 - centre_of_mass)).abs().max() < 1e-4


def test_colour_transforms_are_what_they_are_called() -> None:
    rgb = torch.rand(2, 3, 4, 4) * 2 - 1

    def coloured(matrix: Tensor) -> Tensor:
        identity = torch.eye(3).expand(2, 3, 3)
        colour = torch.cat([matrix, torch.zeros(2, 3, 1)], dim=2)
        size = rgb.shape[-1]
        warp = Augmentation(identity, colour)
        big = torch.nn.functional.interpolate(rgb, size=size * 4)
        return warp.apply(big)[..., 2::4, 2::4]

    third = hue_rotation(torch.full((2,), 2 * math.pi / 3))
    assert torch.allclose(coloured(third), rgb[:, [2, 0, 1]], atol=1e-3), "red becomes green, green blue"
    grey = rgb.mean(dim=1, keepdim=True)
    assert torch.allclose(coloured(hue_rotation(torch.full((2,), math.pi))), 2 * grey - rgb, atol=1e-3)
    drawn = augmentation._sample_colour(20_000, 1.0, torch.Generator().manual_seed(1)).double()
    lightness = drawn[:, :, :3].sum(dim=2)  # what grey becomes
    assert torch.allclose(lightness, lightness[:, :1].expand(-1, 3), atol=1e-4), "grey stays grey"
    contrast = lightness[:, 0].abs().log()
    assert contrast.std() == pytest.approx(0.5 * math.log(2), rel=0.03) and contrast.mean().abs() < 0.02
    assert (lightness[:, 0] < 0).double().mean() == pytest.approx(0.5, abs=0.02), (
        "luma is flipped half the time"
    )
    saturation = torch.linalg.det(drawn[:, :, :3]).abs().div(contrast.exp() ** 3).sqrt().log()
    assert saturation.std() == pytest.approx(math.log(2), rel=0.03)
    assert (drawn[:, 0, 3] / lightness[:, 0]).std() == pytest.approx(0.2, rel=0.03)


def test_each_transform_happens_with_its_probability() -> None:
    warp = augmentation._sample_warp(20_000, 0.3, 64, torch.Generator().manual_seed(2))
    still = (warp == torch.eye(3)).all(dim=(1, 2)).double().mean()
    # Half of the flips and a quarter of the quarter turns are none; the two rotations share one probability.
    assert still == pytest.approx((1 - 0.3 / 2) * (1 - 0.3 * 3 / 4) * 0.7**5, abs=0.01)
    determinant = torch.linalg.det(warp)
    assert (determinant < 0).double().mean() == pytest.approx(0.15, abs=0.01), "mirrored"
    area = determinant.abs().log()[determinant.abs().log().abs() > 1e-5] / 2
    assert area.std() == pytest.approx(0.2 * math.log(2), rel=0.05), "anisotropic scaling keeps the area"


def test_image_and_raw_stay_registered() -> None:
    image = torch.rand(4, 3, SIZE, SIZE)
    drawn = sample_augmentation(4, 0.9, SIZE, torch.Generator().manual_seed(3))
    image_again, raw = drawn.apply(torch.cat([image, image], dim=1)).split(3, dim=1)
    assert torch.equal(image_again, raw) and not torch.allclose(raw, image, atol=0.1)
    part = drawn.part(slice(1, 3)).apply(image[1:3])
    torch.testing.assert_close(part, drawn.apply(image)[1:3], rtol=1e-3, atol=1e-3)


def test_gradients_of_any_order_flow_through() -> None:
    drawn = sample_augmentation(1, 1.0, 8, torch.Generator().manual_seed(4))
    drawn = Augmentation(drawn.warp.double(), drawn.colour.double())
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(3, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: drawn.apply(x)[:, 0, ::3, ::3], x, atol=1e-6)

    def penalty(weight: Tensor) -> Tensor:
        hidden = torch.nn.functional.conv2d(drawn.apply(x), weight).tanh()
        return r1_penalty(hidden.sum(dim=(1, 2, 3))[:, None], [x])

    assert torch.autograd.gradcheck(penalty, weight, atol=1e-5)


def test_the_probability_is_moved_to_the_target() -> None:
    adaptive = AdaptiveProbability(ADA)
    for step in range(1, 9):
        adaptive.observe(torch.tensor(0.9), 1)
        adaptive.adjust(step, False)
    assert adaptive.p == pytest.approx(4 * 4 * 2 / 100), "8 steps of 4 images, of 100 for the whole way"
    adaptive.observe(torch.tensor(-1.0), 1)
    adaptive.adjust(9, False)
    again = AdaptiveProbability(ADA)
    again.load_state_dict(adaptive.state_dict())
    again.observe(torch.tensor(-1.0), 1)
    again.adjust(10, False)
    assert again.p == pytest.approx(0.24), "an overfit judge raises it, a fooled one lowers it"
    for step in range(11, 41):
        again.observe(torch.tensor(0.0), 1)
        again.adjust(step, False)
    assert again.p == 0


def test_the_sign_is_that_of_d_in_its_main_and_its_r1_phases() -> None:
    config = override(ADA, {"augmentation.interval": 100, "regularization.r1_interval": 3})
    trainer = Trainer(config, MeanAbsolute())
    advance(trainer, 4)
    assert len(trainer.state_dict()["augmentation"]["signs"]) == 4 + 2
    without = Trainer(CONFIG, MeanAbsolute())
    advance(without, 1)
    assert not without.augmentation._signs, "nothing piles up where nothing is adjusted"


def test_patches_are_augmented_with_transforms_of_their_own() -> None:
    trainer = Trainer(override(ADA, {"schedule.stage1_kimg": 0}), MeanAbsolute())
    images, patches = trainer.sampler.augmentation("r1", 0, 0.9), trainer.sampler.patch_inputs("r1", 0, 0.9)
    assert not torch.equal(images.warp, patches.augmentation.warp)
    seen = []
    trainer.patch.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    still = patches._replace(augmentation=Augmentation(None, None))
    real, cameras = batch_at(trainer)
    reals = Reals(real / 127.5 - 1, cameras, None)
    for each in (patches, still):
        trainer.phases.patch_discriminator_r1(PhaseContext(2, 0.0), reals, each)
    torch.testing.assert_close(seen[0], patches.augmentation.apply(seen[1]))


def test_with_ada_the_raw_is_resized_to_the_image_and_back() -> None:
    for mode, sharp in (("none", True), ("ada", False)):
        trainer = Trainer(override(ADA, {"augmentation.mode": mode}), MeanAbsolute())
        seen = []
        trainer.dual.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[1]))
        real, cameras = batch_at(trainer)
        reals = Reals(real / 127.5 - 1, cameras, None)
        trainer.phases.discriminator_r1(PhaseContext(1, 0.0), reals, Augmentation(None, None))
        raw = resize_antialiased(reals.image, 8)
        assert seen[0].shape == raw.shape and torch.allclose(seen[0], raw, atol=1e-5) == sharp
        if not sharp:
            again = resize_antialiased(resize_antialiased(raw, 32), 8)
            torch.testing.assert_close(seen[0], again)


def test_a_training_with_augmentation_steps_and_resumes() -> None:
    trainer = Trainer(ADA, MeanAbsolute())
    trainer.augmentation.p = 0.8
    logs = advance(trainer, 3)
    assert all(value.isfinite() for log in logs for value in log.values())
    assert 0.7 < float(logs[-1]["augmentation/probability"]) != 0.8
    resumed = Trainer(ADA, MeanAbsolute())
    resumed.load_state_dict(trainer.state_dict())
    assert resumed.augmentation.p == trainer.augmentation.p
    plain = Trainer(CONFIG, MeanAbsolute())
    same = advance(plain, 1)[0]["loss/discriminator_2d"]
    assert not torch.equal(logs[0]["loss/discriminator_2d"], same)
    at_zero = advance(Trainer(ADA, MeanAbsolute()), 1)[0]["loss/discriminator_2d"]
    assert at_zero == pytest.approx(float(same), rel=0.01) and at_zero != same, "at p = 0 the raw is resized"
