"""Detects from its log lines that a training has diverged; one sentence says how, and what to change.

Thresholds, in log lines (one every `output.log_steps` steps):

- not finite: a loss, logit or gradient is NaN or infinite in 3 lines in a row. No later step makes weights
  finite again, so the run ends.
- exploded: a loss of either branch is above 1000 in 3 lines in a row. The run ends.
- collapsed discriminator: its loss is below 0.001 in 20 lines in a row. It recognises every fake, and the
  generator learns nothing from it. The run continues.
- imitation stuck: after 40 lines of stage 2, the mean imitation loss of the last 20 is above 98% of that of
  the first 5. The run continues.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

NOT_FINITE_LINES = 3
EXPLODED_LOSS, EXPLODED_LINES = 1000.0, 3
COLLAPSED_LOSS, COLLAPSED_LINES = 0.001, 20
STUCK_RATIO, STUCK_AFTER, STUCK_FIRST, STUCK_LAST = 0.98, 40, 5, 20


@dataclass(frozen=True)
class Divergence:
    """A kind of divergence and its remedy."""

    kind: str
    """For a tag: `not finite`, `exploded`, `collapsed discriminator` or `imitation stuck`."""
    explanation: str
    ends_run: bool
    """Whether training on is of no use."""


def weight_not_finite(name: str, nimg: int) -> Divergence:
    """The divergence that a snapshot for a checkpoint shows, which may be before the log lines do."""
    return Divergence(
        "not finite",
        f"the weight {name} is not finite at {nimg} images, and no checkpoint is made of that: lower "
        "optimizer.generator_lr or optimizer.discriminator_lr",
        True,
    )


@dataclass
class DivergenceDetector:
    """Checks every log line of an attempt; reports each kind of divergence once.

    Attributes:
        imitation: whether the imitation loss is checked, against the first values of the attempt.
    """

    imitation: bool = True
    _reported: set[str] = field(default_factory=set)
    _lines_in_a_row: dict[str, int] = field(default_factory=dict)
    _imitations: list[float] = field(default_factory=list)

    def check(self, nimg: int, scalars: Mapping[str, float]) -> Divergence | None:
        """The divergence that a line shows together with those before it; None if there is no new one.

        Args:
            scalars: of the line, by name; losses, logits and gradients are checked.
        """
        losses = {name: value for name, value in scalars.items() if name.startswith(("loss/", "logits/"))}
        checked = losses | {name: v for name, v in scalars.items() if name.startswith("gradient/")}
        odd = next((name for name, value in checked.items() if not math.isfinite(value)), None)
        if self._lasts("not finite", odd is not None, NOT_FINITE_LINES):
            return self._report(
                "not finite",
                f"{odd} is {checked[odd or '']} at {nimg} images: lower optimizer.generator_lr or "
                "optimizer.discriminator_lr, or raise regularization.r1_gamma",
                ends_run=True,
            )
        largest = max(losses, key=lambda name: abs(_finite(losses[name])), default=None)
        exploded = largest is not None and abs(_finite(losses[largest])) > EXPLODED_LOSS
        if largest and self._lasts("exploded", exploded, EXPLODED_LINES):
            return self._report(
                "exploded",
                f"{largest} is {losses[largest]:.3g} at {nimg} images: lower optimizer.generator_lr and "
                "optimizer.discriminator_lr",
                ends_run=True,
            )
        loss = _finite(scalars.get("loss/discriminator_2d", 1.0))
        if self._lasts("collapsed discriminator", loss < COLLAPSED_LOSS, COLLAPSED_LINES):
            return self._report(
                "collapsed discriminator",
                f"the discriminator recognises every fake (loss {loss:.2g}) at {nimg} images, so the "
                "generator learns nothing: raise regularization.r1_gamma or lower optimizer.discriminator_lr",
                ends_run=False,
            )
        return self._check_imitation(nimg, scalars)

    def _check_imitation(self, nimg: int, scalars: Mapping[str, float]) -> Divergence | None:
        if not self.imitation or "loss/imitation" not in scalars:
            return None
        self._imitations.append(_finite(scalars["loss/imitation"]))
        first = sum(self._imitations[:STUCK_FIRST]) / STUCK_FIRST
        last = sum(self._imitations[-STUCK_LAST:]) / STUCK_LAST
        if len(self._imitations) < STUCK_AFTER or last <= STUCK_RATIO * first:
            return None
        return self._report(
            "imitation stuck",
            f"the imitation loss has not fallen ({first:.3g} then, {last:.3g} now) at {nimg} images: "
            "raise imitation.lpips_weight, lower imitation.patch_gan_weight, or train stage 1 for longer",
            ends_run=False,
        )

    def _lasts(self, kind: str, holds: bool, lines: int) -> bool:
        """Whether a condition was true for `lines` lines in a row and has not been reported."""
        self._lines_in_a_row[kind] = self._lines_in_a_row.get(kind, 0) + 1 if holds else 0
        return self._lines_in_a_row[kind] >= lines and kind not in self._reported

    def _report(self, kind: str, explanation: str, *, ends_run: bool) -> Divergence | None:
        if kind in self._reported:
            return None
        self._reported.add(kind)
        return Divergence(kind, explanation, ends_run)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
