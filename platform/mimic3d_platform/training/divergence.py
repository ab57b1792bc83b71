"""Whether a training has gone wrong, from its log lines: one sentence that says how, and what to change.

Thresholds, in lines of the log (every `output.log_steps` steps):

- not finite: a loss, logit or gradient is NaN or infinite in 3 lines running. No later step mends weights
  that are not finite, so the run ends.
- exploded: a loss of either branch is above 1000 in 3 lines running. The run ends.
- collapsed discriminator: its loss is below 0.001 in 20 lines running. It tells all fakes apart, and the
  generator learns nothing from it. The run goes on.
- imitation stuck: after 40 lines of stage 2 the mean imitation loss of the last 20 is above 98% of that of
  the first 5. The run goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

NOT_FINITE_LINES = 3
EXPLODED_LOSS, EXPLODED_LINES = 1000.0, 3
COLLAPSED_LOSS, COLLAPSED_LINES = 0.001, 20
STUCK_SHARE, STUCK_AFTER, STUCK_FIRST, STUCK_LAST = 0.98, 40, 5, 20


@dataclass(frozen=True)
class Divergence:
    """What went wrong."""

    kind: str
    """One word or two, for a tag: `not finite`, `exploded`, `collapsed discriminator`, `imitation stuck`."""
    explanation: str
    hopeless: bool
    """Whether going on is of no use."""


def weight_not_finite(name: str, nimg: int) -> Divergence:
    """What a checkpoint's copy shows, which may be before the log's lines do."""
    return Divergence(
        "not finite",
        f"the weight {name} is not finite at {nimg} images, and no checkpoint is made of that: lower "
        "optimizer.generator_lr or optimizer.discriminator_lr",
        True,
    )


@dataclass
class DivergenceWatch:
    """Told every line of a run since it was started or resumed; tells each kind of divergence once."""

    _told: set[str] = field(default_factory=set)
    _running: dict[str, int] = field(default_factory=dict)
    _imitation: list[float] = field(default_factory=list)

    def look(self, nimg: int, scalars: Mapping[str, float]) -> Divergence | None:
        """What this line, with those before it, shows to be wrong; None if nothing new."""
        losses = {name: value for name, value in scalars.items() if name.startswith(("loss/", "logits/"))}
        watched = losses | {name: v for name, v in scalars.items() if name.startswith("gradient/")}
        odd = next((name for name, value in watched.items() if not math.isfinite(value)), None)
        if self._lasts("not finite", odd is not None, NOT_FINITE_LINES):
            return self._tell(
                "not finite",
                f"{odd} is {watched[odd or '']} at {nimg} images: lower optimizer.generator_lr or "
                "optimizer.discriminator_lr, or raise regularization.r1_gamma",
                True,
            )
        large = max(losses, key=lambda name: abs(_finite(losses[name])), default=None)
        exploded = large is not None and abs(_finite(losses[large])) > EXPLODED_LOSS
        if large and self._lasts("exploded", exploded, EXPLODED_LINES):
            return self._tell(
                "exploded",
                f"{large} is {losses[large]:.3g} at {nimg} images: lower optimizer.generator_lr and "
                "optimizer.discriminator_lr",
                True,
            )
        judge = _finite(scalars.get("loss/discriminator_2d", 1.0))
        if self._lasts("collapsed discriminator", judge < COLLAPSED_LOSS, COLLAPSED_LINES):
            return self._tell(
                "collapsed discriminator",
                f"the discriminator tells every fake apart (loss {judge:.2g}) at {nimg} images, so the "
                "generator learns nothing: raise regularization.r1_gamma or lower optimizer.discriminator_lr",
                False,
            )
        return self._look_at_imitation(nimg, scalars)

    def _look_at_imitation(self, nimg: int, scalars: Mapping[str, float]) -> Divergence | None:
        if "loss/imitation" not in scalars:
            return None
        self._imitation.append(_finite(scalars["loss/imitation"]))
        first = sum(self._imitation[:STUCK_FIRST]) / STUCK_FIRST
        last = sum(self._imitation[-STUCK_LAST:]) / STUCK_LAST
        if len(self._imitation) < STUCK_AFTER or last <= STUCK_SHARE * first:
            return None
        return self._tell(
            "imitation stuck",
            f"the imitation loss has not fallen ({first:.3g} then, {last:.3g} now) at {nimg} images: "
            "raise imitation.lpips_weight, lower imitation.patch_gan_weight, or train stage 1 for longer",
            False,
        )

    def _lasts(self, kind: str, holds: bool, lines: int) -> bool:
        self._running[kind] = self._running.get(kind, 0) + 1 if holds else 0
        return self._running[kind] >= lines and kind not in self._told

    def _tell(self, kind: str, explanation: str, hopeless: bool) -> Divergence | None:
        if kind in self._told:
            return None
        self._told.add(kind)
        return Divergence(kind, explanation, hopeless)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
