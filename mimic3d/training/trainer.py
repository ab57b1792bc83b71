"""The training step of both stages, and the state of a run between steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mimic3d.config import Config, ConfigError
from mimic3d.networks.discriminators import DualDiscriminator, PatchDiscriminator
from mimic3d.networks.generator import build_generator
from mimic3d.networks.precision import allow_tf32
from mimic3d.randomness import seed_everything
from mimic3d.training.accumulation import BatchParts
from mimic3d.training.augmentation import AdaptiveProbability, Augmentation
from mimic3d.training.balance import CameraBalance
from mimic3d.training.graphs import PhaseGraphs
from mimic3d.training.initial_weights import (
    NETWORKS,
    OPTIMIZERS,
    load_moments,
    load_networks,
    read_initial_state,
)
from mimic3d.training.optimizers import apply_gradients, lazy_adam, set_rate
from mimic3d.training.phases import Losses, PhaseContext, Phases, Reals
from mimic3d.training.sampling import GeneratorInputs, PatchInputs, Sampler
from mimic3d.training.schedules import blur_sigma, ema_decay, pretrained, rate_factor, stage_at

# The inputs of a phase, which can be cut into parts of the batch.
Inputs = GeneratorInputs | PatchInputs | Augmentation | Reals


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
        graphs: records the phases as CUDA graphs, which makes small networks faster and changes no result;
            needs a GPU, `schedule.accumulate` 1 and no augmentation, whose padding depends on its samples.
    """

    def __init__(
        self,
        config: Config,
        perceptual: nn.Module,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        graphs: bool = False,
    ) -> None:
        if graphs and (config.schedule.accumulate > 1 or config.augmentation.mode != "none"):
            raise ConfigError("CUDA graphs need schedule.accumulate 1 and augmentation.mode none")
        if config.schedule.batch % world_size:
            raise ConfigError(
                f"schedule.batch is {config.schedule.batch}, but must be a multiple of the "
                f"{world_size} workers"
            )
        self.config, self.rank, self.world_size = config, rank, world_size
        self.device = torch.device(device)
        self.local_batch = config.schedule.batch // world_size
        self.nimg = 0
        self._batch_parts = BatchParts(
            config.schedule.batch, rank, world_size, config.schedule.accumulate, self.device
        )
        model = config.model
        allow_tf32(model.allow_tf32)
        widths = (model.discriminator_channel_base, model.discriminator_channel_max)
        seed_everything(config.seed, "init")
        self.generator = self._place(build_generator(config))
        require_precision(model.precision, self.device)
        self.dual = self._place(DualDiscriminator(model.image_resolution, *widths, model.precision))
        label_size = 3 if config.imitation.patch_label == "window" else 0
        self.patch = self._place(
            PatchDiscriminator(config.patch_resolution, *widths, model.precision, label_size)
        )
        self.perceptual = perceptual.to(self.device)
        self.ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.phases = Phases(config, self.generator, self.dual, self.patch, self.perceptual)
        self.sampler = Sampler(config, rank, world_size, self.device)
        self.balance = CameraBalance(config)
        self.augmentation = AdaptiveProbability(config)
        settings, regular = config.optimizer, config.regularization
        self.generator_optimizer = lazy_adam(
            [self.generator], settings.generator_lr, settings, regular.density_interval
        )
        self.discriminator_optimizer = lazy_adam(
            [self.dual, self.patch], settings.discriminator_lr, settings, regular.r1_interval
        )

        self._compute: Callable[..., dict[str, Tensor]] = self._gradients
        if graphs:
            self._compute = PhaseGraphs(self._gradients, [self.generator, self.dual, self.patch])

    def _place(self, network: nn.Module) -> Any:
        return network.to(self.device).to(memory_format=torch.channels_last)

    @property
    def stage(self) -> int:
        """The stage that the next step belongs to."""
        return stage_at(self.config, self.nimg)

    @property
    def finished(self) -> bool:
        """True once all images of the run have been consumed."""
        return self.nimg >= self.config.total_nimg

    def step(
        self, images: Tensor, cameras: Tensor, label_pool: Tensor, label_weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Trains on one global batch, of which this rank holds a slice, and advances `nimg` by it.

        Args:
            images: (local batch, 3, R, R) uint8, this rank's reals.
            cameras: (local batch, 25), the reals' labels.
            label_pool: (L, 25), the data set's labels, from which the cameras of fakes are sampled.
            label_weights: (L,), weights of the labels for `data.camera_balance`; their rarity when None.
        Returns:
            scalars to log, of this rank.
        """
        config, phases, nimg = self.config, self.phases, self.nimg
        index, trained = nimg // config.schedule.batch, pretrained(config, nimg)
        context = PhaseContext(self.stage, blur_sigma(config.schedule, nimg, trained))
        regularize_density = index % config.regularization.density_interval == 0
        regularize_r1 = index % config.regularization.r1_interval == 0
        has_dual, has_patch = config.model.branch_2d, context.stage == 2
        share_fakes = has_dual and has_patch and config.imitation.share_fakes

        seed_everything(config.seed, "step", nimg)
        self._set_optimizers()
        of_generator, of_discriminators = self.generator_optimizer, self.discriminator_optimizer
        label_weights = self.balance.of_pool(label_pool, label_weights)
        reals = self._reals(images, cameras)
        sampler, order, p = self.sampler, self._batch_parts.order, self.augmentation.p

        # Each phase samples its own inputs and takes its own optimiser step.
        def scenes(phase: str, *, swap_together: bool = False) -> GeneratorInputs:
            sampled = sampler.generator_inputs(
                phase, nimg, label_pool, label_weights, swap_together=swap_together
            )
            return sampled.part(order)

        def augmentation(phase: str) -> Augmentation:
            return sampler.augmentation(phase, nimg, p).part(order)

        def patches(phase: str) -> PatchInputs:
            return sampler.patch_inputs(phase, nimg, p).part(order)

        # G: adversarial losses and imitation; then the smoothness of its density.
        inputs: tuple[Inputs, ...] = scenes("generator"), augmentation("generator"), patches("generator")
        log, norm = self._descend(of_generator, phases.generator_main, context, *inputs)
        log["gradient/generator"] = norm
        if regularize_density:
            inputs = (scenes("density", swap_together=True),)
            log |= self._descend(of_generator, phases.generator_density, context, *inputs)[0]

        # D, whose w the running average follows, and D_patch too where they share the fakes; then D's R1.
        fakes = scenes("discriminator")
        self._follow_w(fakes)
        dual_inputs = augmentation("discriminator/fake"), augmentation("discriminator/real")
        patch_inputs = patches("patch_discriminator/fake"), patches("patch_discriminator/real")
        if has_dual:
            phase = phases.discriminators_main if share_fakes else phases.discriminator_main
            inputs = (reals, fakes, *dual_inputs, *(patch_inputs if share_fakes else ()))
            main, norm = self._descend(of_discriminators, phase, context, *inputs)
            log |= main | {"gradient/discriminator": norm}
            self.augmentation.observe(main["logits/real_sign"], self.world_size)
        if has_dual and regularize_r1:
            inputs = reals, augmentation("discriminator/r1")
            r1, _ = self._descend(of_discriminators, phases.discriminator_r1, context, *inputs)
            self.augmentation.observe(r1.pop("logits/real_sign"), self.world_size)
            log |= r1

        # D_patch, then its R1.
        if has_patch and not share_fakes:
            inputs = reals, scenes("patch_discriminator") if has_dual else fakes, *patch_inputs
            main, norm = self._descend(of_discriminators, phases.patch_discriminator_main, context, *inputs)
            log |= main | {"gradient/patch_discriminator": norm}
        if has_patch and regularize_r1:
            inputs = reals, patches("patch_discriminator/r1")
            log |= self._descend(of_discriminators, phases.patch_discriminator_r1, context, *inputs)[0]

        if config.augmentation.mode == "ada":
            self.augmentation.adjust(index + 1, trained)
            log["augmentation/probability"] = torch.tensor(self.augmentation.p)
        self._update_ema(trained)
        self.nimg += config.schedule.batch
        return log

    def _set_optimizers(self) -> None:
        """Sets the step's learning rates; new moments where stage 2 begins."""
        settings, regular = self.config.optimizer, self.config.regularization
        if 0 < self.nimg == self.config.stage1_nimg and not settings.keep_moments:
            for optimizer in (self.generator_optimizer, self.discriminator_optimizer):
                optimizer.state.clear()
        factor = rate_factor(self.config, self.nimg)
        set_rate(self.generator_optimizer, settings.generator_lr * factor, regular.density_interval)
        set_rate(self.discriminator_optimizer, settings.discriminator_lr * factor, regular.r1_interval)

    def _reals(self, images: Tensor, cameras: Tensor) -> Reals:
        """The batch's reals in [-1, 1], in the order in which they are processed."""
        order, weight = self._batch_parts.order, self.balance.of_reals(cameras)
        image = images.to(self.device, non_blocking=True)[order]
        image = image.to(torch.get_default_dtype(), memory_format=torch.channels_last) / 127.5 - 1
        if weight is not None:
            weight = weight.to(self.device, non_blocking=True)[order]
        return Reals(image, cameras.to(self.device, non_blocking=True)[order], weight)

    def _descend(
        self,
        optimizer: torch.optim.Optimizer,
        phase: Callable[..., Losses],
        context: PhaseContext,
        *inputs: Inputs,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One optimiser step on a phase's loss; returns what the phase logs and the gradient's norm."""
        log = self._compute(phase, context, *inputs)
        norm = apply_gradients(optimizer, self.world_size)
        for network in (self.generator, self.dual, self.patch):
            network.zero_grad(set_to_none=True)
        return log, norm

    def _gradients(
        self, phase: Callable[..., Losses], context: PhaseContext, *inputs: Inputs
    ) -> dict[str, Tensor]:
        """Adds the gradients of a phase's loss to the parameters' `grad`; returns the phase's log."""
        log: dict[str, Tensor] = {}
        for rows in self._batch_parts:
            loss, scalars = phase(context, *(each.part(rows) for each in inputs))
            (loss / self._batch_parts.count).backward()
            for name, value in scalars.items():
                share = value.detach() / self._batch_parts.count
                log[name] = log[name] + share if name in log else share
        return log

    @torch.no_grad()
    def _follow_w(self, inputs: GeneratorInputs) -> None:
        """Moves the running average of w towards the w of the whole batch."""
        self.generator.mapping(inputs.z, inputs.conditioning, update_w_avg=True)

    @torch.no_grad()
    def _update_ema(self, pretrained: bool) -> None:
        w_avg = self.generator.backbone.mapping.w_avg
        if self.world_size > 1:
            dist.all_reduce(w_avg)
            w_avg /= self.world_size
        decay = ema_decay(self.config.schedule, self.nimg, pretrained)
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.generator.parameters()), 1 - decay)
        torch._foreach_copy_(list(self.ema.buffers()), list(self.generator.buffers()))

    def start_from(self, folder: str | Path) -> list[str]:
        """Loads the weights of a training checkpoint or of a generator; `nimg` stays 0.

        A training checkpoint also gives the probability of ADA's transforms and, with
        `optimizer.keep_moments`, Adam's moments.

        Args:
            folder: a local one, as `save_checkpoint` or `save_generator` writes it, or an imported one.
        Returns:
            the names of the networks that were given weights, among generator, ema, dual and patch.
        Raises:
            ValueError: the folder holds neither, or does not fit the config.
        """
        initial = read_initial_state(folder)
        networks = {name: getattr(self, name) for name in NETWORKS}
        loaded = load_networks(initial.networks, self.config, networks, folder)
        if self.config.optimizer.keep_moments:
            load_moments(initial.moments, {name: getattr(self, name) for name in OPTIMIZERS})
        if self.config.augmentation.mode == "ada" and initial.augmentation_probability is not None:
            self.augmentation.p = initial.augmentation_probability
        return loaded

    def state_dict(self) -> dict[str, Any]:
        """The state that the next step depends on, as tensors and plain values."""
        return {"nimg": self.nimg} | {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self.nimg = state["nimg"]
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        names = ["generator", "ema", "dual", "patch", "generator_optimizer", "discriminator_optimizer"]
        if self.config.augmentation.mode == "ada":
            names.append("augmentation")
        return {name: getattr(self, name) for name in names}


def require_precision(precision: str, device: torch.device) -> None:
    """Raises `ConfigError` where a device cannot train in a precision."""
    if precision == "mixed" and device.type != "cuda":
        raise ConfigError(
            f"model.precision is 'mixed', but must be 'fp32' or 'bf16' on a {device.type.upper()}: float16 "
            "needs a CUDA device"
        )
