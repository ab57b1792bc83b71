"""One training step of either stage, and everything that a run must remember between steps."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mimic3d.config import Config, ConfigError
from mimic3d.losses.adversarial import discriminator_loss, generator_loss, r1_penalty
from mimic3d.losses.density import density_smoothness
from mimic3d.networks.discriminators import DualDiscriminator, PatchDiscriminator, resize_antialiased
from mimic3d.networks.generator import build_generator
from mimic3d.rendering.patches import crop, patch_uv, random_corners
from mimic3d.training.randomness import counter_generator, seed_everything
from mimic3d.training.schedules import blur_sigma, ema_decay, pose_swap_probability, stage_at


class Trainer:
    """The networks, their averages and optimisers, and the step that trains them.

    Stage 1 trains the 2D branch; once `config.stage1_nimg` images have been consumed, stage 2 trains both
    branches, the 3D one by imitation. With an initialised process group every rank holds the same weights
    and a slice of the global batch.

    Args:
        config: of the run.
        perceptual: the imitation's distance between (N, 3, p, p) patches in [-1, 1]: (x, y) -> (N,).
        device: of all networks.
        rank: this worker's place among `world_size`.
    """

    def __init__(
        self,
        config: Config,
        perceptual: nn.Module,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if config.schedule.batch % world_size:
            raise ConfigError(
                f"schedule.batch is {config.schedule.batch}, but must be a multiple of the "
                f"{world_size} workers"
            )
        self.config, self.rank, self.world_size = config, rank, world_size
        self.device = torch.device(device)
        self.local_batch = config.schedule.batch // world_size
        self.nimg = 0
        model = config.model
        widths = (model.discriminator_channel_base, model.discriminator_channel_max)
        seed_everything(config.seed, "init")
        self.generator = self._place(build_generator(config))
        self.dual = self._place(DualDiscriminator(model.image_resolution, *widths))
        self.patch = self._place(PatchDiscriminator(config.imitation.patch_resolution, *widths))
        self.perceptual = perceptual.to(self.device)
        self.ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self._make_optimizers()

    def _place(self, network: nn.Module) -> Any:
        return network.to(self.device, memory_format=torch.channels_last)

    def _make_optimizers(self) -> None:
        settings, regular = self.config.optimizer, self.config.regularization
        self.generator_optimizer = _lazy_adam(
            [self.generator], settings.generator_lr, settings, regular.density_interval
        )
        self.discriminator_optimizer = _lazy_adam(
            [self.dual, self.patch], settings.discriminator_lr, settings, regular.r1_interval
        )

    @property
    def stage(self) -> int:
        """The stage that the next step belongs to."""
        return stage_at(self.config, self.nimg)

    @property
    def finished(self) -> bool:
        return self.nimg >= self.config.total_nimg

    def step(self, images: Tensor, cameras: Tensor, label_pool: Tensor) -> dict[str, Tensor]:
        """Trains on one global batch, of which this rank holds a slice, and moves the clock.

        Args:
            images: (local batch, 3, R, R) uint8, this rank's reals.
            cameras: (local batch, 25), theirs.
            label_pool: (L, 25), the data set's labels, from which the generator's cameras are drawn.
        Returns:
            scalars to log, of this rank.
        """
        if self.nimg == self.config.stage1_nimg and self.nimg > 0:
            self._make_optimizers()  # stage 2 starts from stage 1's weights, not from its moments
        stage, index = self.stage, self.nimg // self.config.schedule.batch
        regular = self.config.regularization
        seed_everything(self.config.seed, f"step/{self.rank}", self.nimg)
        real = images.to(self.device, torch.float32, memory_format=torch.channels_last) / 127.5 - 1
        cameras = cameras.to(self.device)

        log = self._generator_main(stage, label_pool)
        if index % regular.density_interval == 0:
            log |= self._generator_density(stage, label_pool)
        log |= self._discriminator_main(stage, real, cameras, label_pool)
        if index % regular.r1_interval == 0:
            log |= self._discriminator_r1(stage, real, cameras)

        self.nimg += self.config.schedule.batch
        self._update_ema(stage)
        return log

    # Phases. Each draws latents and cameras of its own, and takes an optimiser step of its own.

    def _generator_main(self, stage: int, label_pool: Tensor) -> dict[str, Tensor]:
        imitation = self.config.imitation
        z, camera, conditioning = self._draw("generator", stage, label_pool)
        w = self.generator.mapping(z, conditioning, update_w_avg=True)
        planes = self.generator.planes(w, detail=stage == 2, noise="random")
        view = self.generator.branch_2d(planes, w, camera, stochastic=True)
        logits = self._judge(stage, view.image, view.raw, camera)
        loss = adversarial = generator_loss(logits)
        log = {"loss/generator_2d": adversarial, "logits/fake_2d": logits.mean()}
        if stage == 2:
            corners = self._draw_corners("generator")
            patch = self._render_patch(planes, camera, corners)
            target = crop(view.image.detach(), corners, imitation.patch_resolution)
            perceptual = self.perceptual(patch, target).mean()
            patch_logits = self.patch(patch)
            patch_adversarial = generator_loss(patch_logits)
            loss = (
                adversarial
                + imitation.lpips_weight * perceptual
                + imitation.patch_gan_weight * patch_adversarial
            )
            log |= {
                "loss/imitation": perceptual,
                "loss/generator_patch": patch_adversarial,
                "logits/fake_patch": patch_logits.mean(),
            }
        loss.backward()
        log["gradient/generator"] = self._apply(self.generator_optimizer)
        return _detached(log)

    def _generator_density(self, stage: int, label_pool: Tensor) -> dict[str, Tensor]:
        regular = self.config.regularization
        z, _, conditioning = self._draw("density", stage, label_pool)
        planes = self.generator.planes(
            self.generator.mapping(z, conditioning), detail=stage == 2, noise="random"
        )
        distance = regular.density_distance_stage1 if stage == 1 else regular.density_distance_stage2
        roughness = density_smoothness(self.generator, planes, regular.density_points, distance)
        (roughness * regular.density_weight * regular.density_interval).backward()
        self._apply(self.generator_optimizer)
        return _detached({"loss/density": roughness})

    def _discriminator_main(
        self, stage: int, real: Tensor, cameras: Tensor, label_pool: Tensor
    ) -> dict[str, Tensor]:
        size = self.config.imitation.patch_resolution
        z, camera, conditioning = self._draw("discriminator", stage, label_pool)
        with torch.no_grad():
            w = self.generator.mapping(z, conditioning)
            planes = self.generator.planes(w, detail=stage == 2, noise="random")
            view = self.generator.branch_2d(planes, w, camera, stochastic=True)
        fake_logits = self._judge(stage, view.image, view.raw, camera)
        real_logits = self._judge(stage, real, self._raw_of(real), cameras)
        loss = discriminator_loss(fake_logits, real_logits)
        log = {"loss/discriminator_2d": loss, "logits/real_2d": real_logits.mean()}
        if stage == 2:
            with torch.no_grad():
                patch = self._render_patch(planes, camera, self._draw_corners("discriminator/fake"))
            fake_logits = self.patch(patch)
            real_logits = self.patch(crop(real, self._draw_corners("discriminator/real"), size))
            patch_loss = discriminator_loss(fake_logits, real_logits)
            loss = loss + patch_loss
            log |= {"loss/discriminator_patch": patch_loss, "logits/real_patch": real_logits.mean()}
        loss.backward()
        log["gradient/discriminator"] = self._apply(self.discriminator_optimizer)
        return _detached(log)

    def _discriminator_r1(self, stage: int, real: Tensor, cameras: Tensor) -> dict[str, Tensor]:
        regular = self.config.regularization
        image, raw = real.detach().requires_grad_(), self._raw_of(real).requires_grad_()
        penalty = r1_penalty(self._judge(stage, image, raw, cameras), [image, raw]).mean()
        loss = penalty * (regular.r1_gamma / 2)
        log = {"loss/r1_2d": penalty}
        if stage == 2:
            size = self.config.imitation.patch_resolution
            patch = crop(real, self._draw_corners("r1"), size).requires_grad_()
            patch_penalty = r1_penalty(self.patch(patch), [patch]).mean()
            loss = loss + patch_penalty * (regular.r1_gamma_patch / 2)
            log["loss/r1_patch"] = patch_penalty
        (loss * regular.r1_interval).backward()
        self._apply(self.discriminator_optimizer)
        return _detached(log)

    # What the phases share.

    def _draw(self, phase: str, stage: int, label_pool: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """This rank's latents, cameras and conditioning cameras, of the global batch's."""
        batch, seed = self.config.schedule.batch, self.config.seed
        source = counter_generator(seed, f"latents/{phase}", self.nimg)
        z = torch.randn(batch, self.config.model.z_dim, generator=source)
        source = counter_generator(seed, f"cameras/{phase}", self.nimg)
        camera = label_pool[torch.randint(len(label_pool), (batch,), generator=source)]
        swap = torch.rand(batch, 1, generator=source) < pose_swap_probability(
            self.config.schedule, self.nimg, stage
        )
        conditioning = torch.where(swap, camera.roll(1, dims=0), camera)
        mine = self._mine()
        return tuple(values[mine].to(self.device) for values in (z, camera, conditioning))

    def _draw_corners(self, phase: str) -> Tensor:
        source = counter_generator(self.config.seed, f"corners/{phase}", self.nimg)
        imitation, model = self.config.imitation, self.config.model
        corners = random_corners(
            self.config.schedule.batch, imitation.patch_resolution, model.image_resolution, source
        )
        return corners[self._mine()].to(self.device)

    def _mine(self) -> slice:
        return slice(self.rank * self.local_batch, (self.rank + 1) * self.local_batch)

    def _render_patch(self, planes: Any, camera: Tensor, corners: Tensor) -> Tensor:
        size = self.config.imitation.patch_resolution
        uv = patch_uv(corners, size, self.config.model.image_resolution)
        colours = self.generator.branch_3d(planes, camera, uv, stochastic=True).features
        return colours.transpose(1, 2).unflatten(-1, (size, size))

    def _judge(self, stage: int, image: Tensor, raw: Tensor, camera: Tensor) -> Tensor:
        sigma = blur_sigma(self.config.schedule, self.nimg, stage)
        return self.dual(gaussian_blur(image, sigma), raw, camera)

    def _raw_of(self, real: Tensor) -> Tensor:
        return resize_antialiased(real, self.config.model.neural_rendering_resolution)

    def _apply(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Averages gradients over the ranks, mends non-finite ones, steps; returns the gradient's norm."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        if self.world_size > 1:
            dist.all_reduce(flat)
            flat /= self.world_size
        norm = flat.norm()
        torch.nan_to_num(flat, nan=0.0, posinf=1e5, neginf=-1e5, out=flat)
        mended = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [m.view_as(g) for m, g in zip(mended, gradients, strict=True)])
        optimizer.step()
        for network in (self.generator, self.dual, self.patch):
            network.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def _update_ema(self, stage: int) -> None:
        w_avg = self.generator.backbone.mapping.w_avg
        if self.world_size > 1:
            dist.all_reduce(w_avg)
            w_avg /= self.world_size
        decay = ema_decay(self.config.schedule, self.nimg, stage)
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.generator.parameters()), 1 - decay)
        for average, current in zip(self.ema.buffers(), self.generator.buffers(), strict=True):
            average.copy_(current)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors and plain values."""
        return {"nimg": self.nimg} | {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts a run back where `state_dict` found it."""
        self.nimg = state["nimg"]
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        names = ("generator", "ema", "dual", "patch", "generator_optimizer", "discriminator_optimizer")
        return {name: getattr(self, name) for name in names}


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """(N, C, H, W) convolved with a Gaussian of `sigma` pixels that is cut at 3 sigma."""
    radius = int(sigma * 3)
    if radius == 0:
        return image
    taps = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype).div(sigma)
    taps = taps.square().mul(-0.5).exp()
    taps = taps / taps.sum()
    kernel = taps.expand(image.shape[1], 1, 1, -1)
    image = F.conv2d(image, kernel, padding=(0, radius), groups=image.shape[1])
    return F.conv2d(image, kernel.transpose(2, 3), padding=(radius, 0), groups=image.shape[1])


def _lazy_adam(networks: list[nn.Module], lr: float, settings: Any, interval: int) -> torch.optim.Adam:
    """Adam whose rate and decays allow for a regularisation step every `interval` (StyleGAN2, appendix B)."""
    ratio = interval / (interval + 1)
    parameters = [parameter for network in networks for parameter in network.parameters()]
    betas = (settings.beta1**ratio, settings.beta2**ratio)
    return torch.optim.Adam(parameters, lr=lr * ratio, betas=betas, eps=1e-8, foreach=True)


def _detached(log: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in log.items()}
