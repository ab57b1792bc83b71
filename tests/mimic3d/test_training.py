"""The training step: determinism, stages, ranks, resumption, schedules."""

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

from mimic3d.cameras import look_at, on_sphere
from mimic3d.config import (
    Config,
    ConfigError,
    ImitationConfig,
    ModelConfig,
    OutputConfig,
    RegularizationConfig,
    RenderingConfig,
    ScheduleConfig,
    override,
)
from mimic3d.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from mimic3d.training.phases import PhaseContext, Reals, gaussian_blur
from mimic3d.training.sampling import GeneratorInputs
from mimic3d.training.schedules import (
    blur_sigma,
    ema_decay,
    pose_swap_probability,
    pretrained,
    rate_factor,
    stage_at,
)
from mimic3d.training.trainer import Trainer

torch.set_num_threads(1)

# Two steps of stage 1 and three of stage 2, every phase in each stage.
CONFIG = Config(
    model=ModelConfig(32, 8, 8, 8, 8, 2, 64, 8, 128, 8, 16, (8, 8)),
    rendering=RenderingConfig(1.0, 2.4, 1.2, 4, 4, True),
    imitation=ImitationConfig(16, 0.5),
    regularization=RegularizationConfig(density_points=16, r1_interval=2, density_interval=2),
    schedule=ScheduleConfig(batch=4, stage1_kimg=0.008, stage2_kimg=0.012, blur_sigma=1.5, blur_kimg=0.1),
    output=OutputConfig(checkpoint_kimg=0.004, sample_kimg=0.004),
)


class MeanAbsolute(nn.Module):
    """A distance of images that needs no weights, with gradients for both."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).abs().mean(dim=(1, 2, 3))


def labels() -> Tensor:
    yaw = torch.linspace(0, 6, 12)
    return look_at(on_sphere(yaw, yaw / 10, 1.7), focal=1.1)


def batch_at(trainer: Trainer) -> tuple[Tensor, Tensor]:
    """This rank's slice of the global batch at the trainer's place in the run."""
    source = torch.Generator().manual_seed(trainer.nimg)
    images = torch.randint(0, 256, (trainer.config.schedule.batch, 3, 32, 32), generator=source)
    picks = torch.randint(0, 12, (trainer.config.schedule.batch,), generator=source)
    mine = slice(trainer.rank * trainer.local_batch, (trainer.rank + 1) * trainer.local_batch)
    return images[mine].to(torch.uint8), labels()[picks][mine]


def advance(trainer: Trainer, steps: int) -> list[dict[str, Tensor]]:
    return [trainer.step(*batch_at(trainer), labels()) for _ in range(steps)]


def leaves(state: object) -> list[object]:
    """All tensors and numbers of a nested state, in order."""
    if isinstance(state, dict):
        return [leaf for value in state.values() for leaf in leaves(value)]
    return [leaf for value in state for leaf in leaves(value)] if isinstance(state, list) else [state]


def same(one: Trainer, other: Trainer) -> bool:
    """Whether two trainers are in the same state, bit for bit."""
    pairs = zip(leaves(one.state_dict()), leaves(other.state_dict()), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def changed(network: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}


def test_every_loss_of_both_stages_is_finite() -> None:
    trainer = Trainer(CONFIG, MeanAbsolute())
    logs = advance(trainer, 4)
    assert all(value.isfinite() for log in logs for value in log.values())
    stage1 = {"loss/generator_2d", "loss/density", "loss/discriminator_2d", "loss/r1_2d"}
    assert stage1 <= logs[0].keys() and not any("patch" in name for name in logs[0] | logs[1])
    stage2 = {"loss/imitation", "loss/generator_patch", "loss/discriminator_patch", "loss/r1_patch"}
    assert stage1 | stage2 <= logs[2].keys()
    assert "loss/r1_2d" not in logs[1] | logs[3], "regularisation is lazy"
    assert trainer.stage == 2 and not trainer.finished
    advance(trainer, 1)
    assert trainer.finished
    tensors = [leaf for leaf in leaves(trainer.state_dict()) if isinstance(leaf, Tensor)]
    assert all(tensor.isfinite().all() for tensor in tensors)


def test_the_same_seed_gives_the_same_weights_and_another_gives_others() -> None:
    runs = [Trainer(config, MeanAbsolute()) for config in (CONFIG, CONFIG, override(CONFIG, {"seed": 1}))]
    for trainer in runs:
        advance(trainer, 3)
        torch.rand(7)  # what others draw meanwhile does not matter
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_restored_run_goes_on_as_if_nothing_had_happened(steps: int, tmp_path: Path) -> None:
    uninterrupted, stopped = Trainer(CONFIG, MeanAbsolute()), Trainer(CONFIG, MeanAbsolute())
    advance(uninterrupted, 4)
    advance(stopped, steps)
    save_checkpoint(tmp_path, stopped, Progress(stopped.nimg, {0: {"fid": 1.0}}, 2.5))
    torch.manual_seed(99)
    resumed = Trainer(CONFIG, MeanAbsolute())
    advance(resumed, 1)  # whatever it did before is overwritten
    progress = load_checkpoint(tmp_path, resumed)
    assert progress == Progress(4 * steps, {0: {"fid": 1.0}}, 2.5)
    advance(resumed, 4 - steps)
    assert same(uninterrupted, resumed)


def test_stage_1_leaves_s3d_and_the_patch_discriminator_alone() -> None:
    trainer = Trainer(CONFIG, MeanAbsolute())
    generator, dual, patch = (snapshot(n) for n in (trainer.generator, trainer.dual, trainer.patch))
    advance(trainer, 2)
    touched = changed(trainer.generator, generator)
    assert not any(".block2." in name or ".block3." in name for name in touched)
    assert any(name.startswith("superresolution.") for name in touched)
    assert any(".b3d8.block." in name for name in touched), "the 3D-aware blocks serve the 2D branch too"
    assert changed(trainer.dual, dual) and not changed(trainer.patch, patch)
    advance(trainer, 1)
    assert changed(trainer.patch, patch)
    touched = changed(trainer.generator, generator)
    assert any(".block2." in name for name in touched) and any(".block3." in name for name in touched)


def test_imitation_teaches_the_3d_branch_and_the_triplane_not_s2d() -> None:
    runs = []
    for weight in (0, 3):
        changes = {"schedule.stage1_kimg": 0, "imitation.lpips_weight": weight}
        changes["imitation.patch_gan_weight"] = weight
        trainer = Trainer(override(CONFIG, changes), MeanAbsolute())
        advance(trainer, 1)
        runs.append(trainer.generator)
    one, other = (dict(network.named_parameters()) for network in runs)
    differing = {name for name in one if not torch.allclose(one[name], other[name], rtol=0, atol=1e-7)}
    assert not any(name.startswith("superresolution.") for name in differing)
    assert any(".block3." in name for name in differing) and any(".b8." in name for name in differing)


def test_gradients_that_are_not_finite_are_mended() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.mean(dim=(1, 2, 3)) * math.inf

    trainer = Trainer(override(CONFIG, {"schedule.stage1_kimg": 0}), Broken())
    log = advance(trainer, 1)[0]
    assert not log["gradient/generator"].isfinite(), "and the log says so"
    assert all(parameter.isfinite().all() for parameter in trainer.generator.parameters())


def test_the_average_follows_the_generator() -> None:
    trainer = Trainer(CONFIG, MeanAbsolute())
    before = [parameter.clone() for parameter in trainer.ema.parameters()]
    advance(trainer, 1)
    decay = ema_decay(CONFIG.schedule, 4, False)
    for old, new, current in zip(
        before, trainer.ema.parameters(), trainer.generator.parameters(), strict=True
    ):
        assert torch.allclose(new, decay * old + (1 - decay) * current, atol=1e-6)
    assert torch.equal(trainer.ema.backbone.mapping.w_avg, trainer.generator.backbone.mapping.w_avg)


def test_the_average_of_w_follows_the_fakes_of_d_after_the_generators_step() -> None:
    trainer = Trainer(CONFIG, MeanAbsolute())
    mapping = trainer.generator.backbone.mapping
    advance(trainer, 3)
    before, fakes = mapping.w_avg.clone(), trainer.sampler.generator_inputs("discriminator", 12, labels())
    advance(trainer, 1)
    # D's phases leave G as it is: these are the weights that the fakes were generated with.
    w = mapping(fakes.z, fakes.conditioning)[:, 0].mean(dim=0)
    torch.testing.assert_close(mapping.w_avg, w.lerp(before, 0.998))
    torch.testing.assert_close(trainer.ema.backbone.mapping.w_avg, mapping.w_avg)


def phases_run(config: Config) -> list[tuple[str, Tensor | None]]:
    """The phases of a step of stage 2 in their order, with the latents that they generate from."""
    trainer, run = Trainer(override(config, {"schedule.stage1_kimg": 0}), MeanAbsolute()), []
    compute = trainer._compute

    def spy(phase, context, *inputs):
        latents = [each.z for each in inputs if isinstance(each, GeneratorInputs)]
        run.append((phase.__name__, latents[0] if latents else None))
        return compute(phase, context, *inputs)

    trainer._compute = spy
    advance(trainer, 1)
    return run


def test_every_phase_generates_from_latents_of_its_own() -> None:
    run = phases_run(CONFIG)
    assert [name for name, _ in run] == [
        "generator_main",
        "generator_density",
        "discriminator_main",
        "discriminator_r1",
        "patch_discriminator_main",
        "patch_discriminator_r1",
    ]
    latents = [z for _, z in run if z is not None]
    assert len(latents) == 4 == len({float(z[0, 0]) for z in latents})


def test_the_discriminators_may_share_their_fakes() -> None:
    run = phases_run(override(CONFIG, {"imitation.share_fakes": True}))
    assert [name for name, _ in run] == [
        "generator_main",
        "generator_density",
        "discriminators_main",
        "discriminator_r1",
        "patch_discriminator_r1",
    ]


def test_shared_fakes_give_the_losses_of_the_separate_phases() -> None:
    trainer = Trainer(override(CONFIG, {"schedule.stage1_kimg": 0}), MeanAbsolute())
    sampler, phases, context = trainer.sampler, trainer.phases, PhaseContext(2, 0.0)
    images, cameras = batch_at(trainer)
    reals = Reals(images / 127.5 - 1, cameras, None)
    fakes = sampler.generator_inputs("discriminator", 0, labels())
    images = [sampler.augmentation(name, 0, 0.0) for name in "ab"]
    patches = [sampler.patch_inputs(name, 0, 0.0) for name in "ab"]
    loss, log = phases.discriminators_main(context, reals, fakes, *images, *patches)
    dual, dual_log = phases.discriminator_main(context, reals, fakes, *images)
    patch, patch_log = phases.patch_discriminator_main(context, reals, fakes, *patches)
    assert log.keys() == dual_log.keys() | patch_log.keys()
    assert float(loss) == pytest.approx(float(dual + patch), rel=0.01), "but for their noise and jitter"


def test_the_density_phase_swaps_the_labels_of_all_samples_or_of_none() -> None:
    sampler = Trainer(CONFIG, MeanAbsolute()).sampler
    swapped = []
    for nimg in range(8, 168, 4):
        inputs = sampler.generator_inputs("density", nimg, labels(), swap_together=True)
        rolled = (inputs.conditioning == inputs.camera.roll(1, dims=0)).all(dim=1)
        assert rolled.all() or torch.equal(inputs.conditioning, inputs.camera)
        swapped.append(bool(rolled.all()))
    assert 10 < sum(swapped) < 30


def test_joint_training_from_scratch_blurs_the_patches_too() -> None:
    trainer = Trainer(override(CONFIG, {"schedule.stage1_kimg": 0}), MeanAbsolute())
    images, cameras = batch_at(trainer)
    reals, patches = Reals(images / 127.5 - 1, cameras, None), trainer.sampler.patch_inputs("r1", 0, 0.0)
    penalties = [
        trainer.phases.patch_discriminator_r1(PhaseContext(2, sigma), reals, patches)[1]["loss/r1_patch"]
        for sigma in (0.0, 2.0)
    ]
    assert penalties[0] != penalties[1]


def test_noise_is_drawn_anew_in_every_step() -> None:
    trainer, seeds = Trainer(CONFIG, MeanAbsolute()), []
    for _ in range(3):
        advance(trainer, 1)
        seeds.append(torch.initial_seed())
    assert len(set(seeds)) == 3


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("resumed_after", [None, 1, 2, 3])
def test_stage_2_begins_with_new_moments_unless_they_are_kept(
    keep: bool, resumed_after: int | None, tmp_path: Path
) -> None:
    config = override(CONFIG, {"optimizer.keep_moments": keep})
    trainer = Trainer(config, MeanAbsolute())

    def steps(name: str) -> float:
        [parameter] = [p for own, p in trainer.generator.named_parameters() if own.endswith(name)]
        state = trainer.generator_optimizer.state
        return state[parameter]["step"].item() if parameter in state else 0

    for done in range(1, 4):
        advance(trainer, 1)
        if done == 2:
            assert steps("decoder.net.0.weight") == 3, "two of the GAN loss, one of density smoothness"
            assert steps("block3.conv0.weight") == 0
        if done == resumed_after:
            save_checkpoint(tmp_path, trainer, Progress(trainer.nimg))
            trainer = Trainer(config, MeanAbsolute())
            load_checkpoint(tmp_path, trainer)
    assert steps("decoder.net.0.weight") == (5 if keep else 2) and steps("block3.conv0.weight") == 2


def test_lazy_regularisation_slows_adam_down() -> None:
    trainer = Trainer(override(CONFIG, {"regularization.r1_interval": 16}), MeanAbsolute())
    generator = trainer.generator_optimizer.param_groups[0]
    assert generator["lr"] == pytest.approx(0.0025 * 2 / 3)
    assert generator["betas"] == pytest.approx((0, 0.99 ** (2 / 3))) and generator["eps"] == 1e-8
    discriminator = trainer.discriminator_optimizer.param_groups[0]
    assert discriminator["lr"] == pytest.approx(0.002 * 16 / 17)
    assert discriminator["betas"] == pytest.approx((0, 0.99 ** (16 / 17)))


def test_moments_that_come_in_another_memory_format_mean_the_same() -> None:
    as_stored, laid_anew = Trainer(CONFIG, MeanAbsolute()), Trainer(CONFIG, MeanAbsolute())
    advance(as_stored, 3)
    state = copy.deepcopy(as_stored.state_dict())
    for name in ("generator_optimizer", "discriminator_optimizer"):
        for moments in state[name]["state"].values():
            moments |= {key: moments[key].contiguous() for key in ("exp_avg", "exp_avg_sq")}
    laid_anew.load_state_dict(state)
    advance(as_stored, 1)
    advance(laid_anew, 1)
    assert same(as_stored, laid_anew)


def test_a_cool_down_brings_the_rates_to_nothing() -> None:
    config = override(CONFIG, {"schedule.cooldown_kimg": 0.008})
    assert [rate_factor(config, nimg) for nimg in (0, 12, 16, 18, 20)] == [1, 1, 0.5, 0.25, 0]
    assert [rate_factor(CONFIG, nimg) for nimg in (0, 20)] == [1, 1]
    longer = override(CONFIG, {"schedule.cooldown_kimg": 1})
    assert [rate_factor(longer, nimg) for nimg in (0, 10, 20)] == [1, 0.5, 0]
    trainer, kept = Trainer(config, MeanAbsolute()), Trainer(CONFIG, MeanAbsolute())
    advance(trainer, 4)
    advance(kept, 4)
    assert same(trainer, kept)
    advance(trainer, 1)
    assert trainer.generator_optimizer.param_groups[0]["lr"] == pytest.approx(0.0025 * 2 / 3 / 2)
    assert trainer.discriminator_optimizer.param_groups[0]["lr"] == pytest.approx(0.002 * 2 / 3 / 2)


# Several ranks.


def test_ranks_draw_slices_of_what_one_rank_would_draw() -> None:
    whole = Trainer(CONFIG, MeanAbsolute())
    halves = [Trainer(CONFIG, MeanAbsolute(), rank=rank, world_size=2) for rank in (0, 1)]
    for nimg in (0, 8):
        parts = [rank.sampler.generator_inputs("generator", nimg, labels()) for rank in halves]
        for together, one, other in zip(
            whole.sampler.generator_inputs("generator", nimg, labels()), *parts, strict=True
        ):
            assert torch.equal(together, torch.cat([one, other]))
    corners = torch.cat([rank.sampler.windows("generator", 0).corners for rank in halves])
    assert torch.equal(whole.sampler.windows("generator", 0).corners, corners)
    phases = [whole.sampler.generator_inputs(phase, 0, labels()).z for phase in ("generator", "density")]
    assert not torch.equal(*phases)


def test_a_batch_that_the_workers_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be a multiple of the 3 workers"):
        Trainer(CONFIG, MeanAbsolute(), world_size=3)


def one_of_two_ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    trainer = Trainer(CONFIG, MeanAbsolute(), rank=rank, world_size=2)
    for step in range(4):
        advance(trainer, 1)
        torch.save(trainer.state_dict(), f"{folder}/{step}-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_hold_the_same_weights_after_every_step(tmp_path: Path) -> None:
    import test_training  # by the name that the new processes find it under

    torch.multiprocessing.spawn(test_training.one_of_two_ranks, (str(tmp_path),), nprocs=2)
    alone = Trainer(CONFIG, MeanAbsolute())
    for step in range(4):
        one, other = (leaves(torch.load(tmp_path / f"{step}-{rank}.pt")) for rank in (0, 1))
        assert all(
            torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(one, other, strict=True)
        )
        advance(alone, 1)
    assert torch.load(tmp_path / "3-0.pt")["nimg"] == alone.nimg == 16


# Schedules.


def test_the_average_ramps_up_from_scratch_only() -> None:
    schedule = ScheduleConfig(batch=32, ema_half_life_kimg=10, ema_ramp_up=0.05)
    assert ema_decay(schedule, 200_000, False) == ema_decay(schedule, 10**7, False) == 0.5 ** (32 / 10_000)
    assert ema_decay(schedule, 1000, False) == pytest.approx(0.5 ** (32 / 50))
    assert ema_decay(schedule, 1000, True) == 0.5 ** (32 / 10_000)
    assert ema_decay(schedule, 0, False) == 0, "at the start the average is the generator"


def test_the_blur_fades_out_from_scratch() -> None:
    schedule = ScheduleConfig(blur_sigma=10, blur_kimg=200)
    assert [blur_sigma(schedule, nimg, False) for nimg in (0, 100_000, 200_000, 10**6)] == [10, 5, 0, 0]
    assert blur_sigma(schedule, 0, True) == 0
    assert blur_sigma(ScheduleConfig(blur_kimg=0), 0, False) == 0


def test_the_pose_is_swapped_less_and_less() -> None:
    schedule = ScheduleConfig(pose_swap_kimg=1000, pose_swap_final=0.5)
    probabilities = [pose_swap_probability(schedule, nimg, False) for nimg in (0, 500_000, 10**6, 10**7)]
    assert probabilities == [1, 0.75, 0.5, 0.5]
    assert pose_swap_probability(schedule, 0, True) == 0.5


def test_swapped_poses_are_the_neighbours_in_the_batch() -> None:
    trainer = Trainer(CONFIG, MeanAbsolute())
    _, camera, conditioning = trainer.sampler.generator_inputs("generator", 0, labels())
    assert torch.equal(conditioning, camera.roll(1, dims=0)), "always at the start of stage 1"


def test_stage_2_begins_when_stage_1s_images_are_consumed() -> None:
    assert [stage_at(CONFIG, nimg) for nimg in (0, 4, 8, 12)] == [1, 1, 2, 2]
    assert [pretrained(CONFIG, nimg) for nimg in (0, 4, 8, 12)] == [False, False, True, True]


def test_joint_training_has_stage_2s_losses_and_stage_1s_schedules() -> None:
    joint = override(CONFIG, {"schedule.stage1_kimg": 0})
    assert joint.joint and stage_at(joint, 0) == 2 and not pretrained(joint, 0)
    alone = override(joint, {"start": "somewhere"})
    assert not alone.joint and stage_at(alone, 0) == 2 and pretrained(alone, 0), "stage 2 of another run"


def test_the_gaussian_blur_keeps_the_mean_and_has_its_sigma() -> None:
    image = torch.zeros(1, 2, 41, 41)
    image[:, :, 20, 20] = 1
    found = gaussian_blur(image, 2.0)
    assert found.sum(dim=(2, 3)).tolist() == [pytest.approx([1, 1], abs=1e-5)]
    offset = torch.arange(41.0) - 20
    variance = (found[0, 0].sum(dim=0) * offset.square()).sum().item()
    assert variance == pytest.approx(4 / (2 * math.log(2)), rel=0.01), "2^(-(x/σ)²)"
    profile = found[0, 0].sum(dim=0)
    assert float(profile[22] / profile[20]) == pytest.approx(0.5) and not profile[27]
    assert gaussian_blur(image, 0.2) is image, "a blur of less than a pixel is none"
