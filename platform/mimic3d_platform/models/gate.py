"""The gate before an alias: a version takes it only if it is measurably better than the one that has it.

Both are compared on metrics that were measured on the same data set, with the same extractor (which a
metric's name says) and the same number of images. The decision is recorded with the version, in its tags and
its description.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mimic3d_platform.errors import UserError
from mimic3d_platform.models.alias_claim import claimed_alias
from mimic3d_platform.models.measurements import Comparison, comparisons
from mimic3d_platform.models.model_card import HIGH, LOW, MAX_DESCRIPTION
from mimic3d_platform.models.pull import cached
from mimic3d_platform.models.registry import (
    aliases_of,
    check_registration,
    version_of,
    version_uri,
)
from mimic3d_platform.tracking.server import client, tracking_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

# Metrics that the gate chooses, the first that both versions have, and those that it guards.
_CHOSEN = ("fid3d_", "fid_", "fd3d_", "fd_")
_GUARDED = ("field_detail", "warp_detail")
_BRANCHES = ("/3d", "/2d")
_DECISION_TAG = "mimic3d.gate."
_TIMED_RENDERS = 7


@dataclass(frozen=True)
class Decision:
    """The gate's decision about a version and an alias.

    Attributes:
        present: the version that had the alias; None if none had.
        passed: whether the version has the alias now.
        reasons: why it was refused, or would have been without `forced`.
        forced: the reason that a user gave to pass it nevertheless.
        warnings: what the comparison could not take into account.
        latency: seconds of a view, of the version and of the present one; None where not measured.
    """

    version: int
    alias: str
    present: int | None
    passed: bool
    comparisons: tuple[Comparison, ...] = ()
    reasons: tuple[str, ...] = ()
    forced: str | None = None
    warnings: tuple[str, ...] = ()
    latency: tuple[float, float] | None = None

    @property
    def line(self) -> str:
        """One line: the decision, and both sides' numbers."""
        numbers = "; ".join(map(str, self.comparisons))
        if self.latency:
            numbers += f"; a view takes {self.latency[0]:.3g} s against {self.latency[1]:.3g} s"
        numbers = f" ({numbers})" if numbers else ""
        if self.present is None:
            return f"version {self.version} is {self.alias}: no version had this alias before"
        if self.present == self.version:
            return f"version {self.version} is {self.alias} already"
        if not self.passed:
            why = "; ".join(self.reasons)
            return f"version {self.present} stays {self.alias}, not version {self.version}: {why}{numbers}"
        by = f", forced: {self.forced}" if self.forced else ""
        return f"version {self.version} is {self.alias} in place of version {self.present}{by}{numbers}"


def promote(
    name: str,
    version: int,
    alias: str,
    *,
    metric: str | None = None,
    guards: Sequence[str] | None = None,
    max_latency: float | None = None,
    force: str | None = None,
    on_note: Callable[[str], None] = lambda _: None,
) -> Decision:
    """Moves an alias to a version if it is better than the one that has it, and records the decision.

    A version takes an alias that none has. Of two promotions at once the second waits for the first, and is
    compared with what the first has left.

    Args:
        metric: that must be better beyond both versions' intervals; by default the first of FID3D, FID and
            the distances with a stand-in, 3D branch before 2D branch, that both versions have.
        guards: that must not be worse beyond both intervals; by default the agreement of views of the
            branches, where both versions have it.
        max_latency: the version may take this many times as long as the present one to render a view on this
            machine; not measured when None.
        force: a reason to pass the version whatever the comparison says.
        on_note: called with warnings.
    Raises:
        UserError: no such version or metric, a name that MLflow cannot take, or MLflow away or refusing.
    """
    check_registration(name, alias)
    if force is not None and not force.strip():
        raise UserError(
            "--force needs a reason, which is recorded: --force 'the new data set has no licence'"
        )
    candidate = version_of(f"models:/{name}/{version}")
    with claimed_alias(name, alias) as check_claim:
        present_number = aliases_of(name).get(alias)
        if present_number is None or present_number == version:
            decision = Decision(version, alias, present_number, True, forced=force)
        else:
            present = version_of(f"models:/{name}/{present_number}")
            decision = _compare(candidate, present, alias, metric, guards, max_latency, force)
        for warning in decision.warnings:
            on_note(warning)
        if decision.passed:
            check_claim()
            with tracking_errors(f"set the alias {alias!r} in"):
                client().set_registered_model_alias(name, alias, str(version))
        # Afterwards, so that nothing says a version has the alias that does not.
        _record(candidate, decision)
    return decision


def _compare(
    candidate: ModelVersion,
    present: ModelVersion,
    alias: str,
    metric: str | None,
    guards: Sequence[str] | None,
    max_latency: float | None,
    force: str | None,
) -> Decision:
    common = {comparison.metric: comparison for comparison in comparisons(candidate, present)}
    chosen = metric or _first(common)
    used, reasons, warnings = [], [], []
    if chosen is None or chosen not in common:
        reasons.append(
            f"{version_uri(candidate)} and {version_uri(present)} have no {chosen or 'Fréchet distance'} "
            "measured on the same data set with the same number of images; run `mimic3d evaluate` on both"
        )
    else:
        used.append(common[chosen])
        if not common[chosen].better:
            reasons.append(f"{chosen} is not better beyond the intervals")
    for guard in _default_guards(common) if guards is None else guards:
        if guard not in common:
            reasons.append(f"the guarded metric {guard} was not measured under the same conditions on both")
            continue
        used.append(common[guard])
        if common[guard].worse:
            reasons.append(f"the guarded metric {guard} is worse beyond the intervals")
    for comparison in used:
        if all(side.low == side.high for side in (comparison.candidate, comparison.present)):
            warnings.append(
                f"{comparison.metric} was logged without an interval (…{LOW}, …{HIGH}): it is taken as exact"
            )
    latency = None
    if max_latency is not None:
        latency = _latencies(candidate, present)
        if latency[0] > max_latency * latency[1]:
            reasons.append(f"a view takes more than {max_latency:g} times as long")
    return Decision(
        int(candidate.version),
        alias,
        int(present.version),
        not reasons or force is not None,
        tuple(used),
        tuple(reasons),
        force if reasons else None,
        tuple(warnings),
        latency,
    )


def _first(common: Mapping[str, Comparison]) -> str | None:
    for branch in _BRANCHES:
        for kind in _CHOSEN:
            for name in sorted(common):
                if name.startswith(kind) and name.endswith(branch):
                    return name
    return None


def _default_guards(common: Mapping[str, Comparison]) -> list[str]:
    guarded = {f"{kind}{branch}" for kind in _GUARDED for branch in _BRANCHES}
    return sorted(guarded & set(common))


def _latencies(candidate: ModelVersion, present: ModelVersion) -> tuple[float, float]:
    """The median seconds of a view of each, rendered in turns on this machine."""
    from mimic3d_platform.models.generator import Generator

    generators = [Generator.load(str(cached(version))) for version in (candidate, present)]
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(_TIMED_RENDERS):
        for generator, times in zip(generators, seconds, strict=True):
            start = time.perf_counter()
            generator.draw([0])  # Its result is on the CPU, so the GPU has finished.
            times.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _record(version: ModelVersion, decision: Decision) -> None:
    """Writes a decision into the version's tags and at the end of its description."""
    mlflow_client = client()
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    values = {
        "time": when,
        "passed": decision.passed,
        "present": decision.present,
        "reasons": decision.reasons,
        "forced": decision.forced,
        "metrics": {
            comparison.metric: {
                "candidate": comparison.candidate[:3],
                "present": comparison.present[:3],
                "data": comparison.candidate.measured_on.data,
                "images": comparison.candidate.measured_on.images,
            }
            for comparison in decision.comparisons
        },
        "latency": decision.latency,
    }
    tag = f"{_DECISION_TAG}{decision.alias}"
    if decision.present == decision.version and tag in version.tags:
        return
    with tracking_errors("record a decision in"):
        name, number = version.name, str(version.version)
        mlflow_client.set_model_version_tag(name, number, tag, json.dumps(values, ensure_ascii=False))
        before = mlflow_client.get_model_version(name, number).description or ""
        line = f"\n\n**{decision.alias}**, {when}: {decision.line}"
        # The newest decision is kept whole, at the expense of what comes before it.
        described = before[: max(0, MAX_DESCRIPTION - len(line))] + line
        mlflow_client.update_model_version(name, number, described[:MAX_DESCRIPTION])
