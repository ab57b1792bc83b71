"""The state that a run's driver and its workers share while it trains: a Ray actor, and a typed handle to it.

The actor loads this module, which therefore needs neither PyTorch nor Ray Train.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from mimic3d_platform.cluster.named_actors import find_actor, named_actor, run_actor_name
from mimic3d_platform.training.progress import ProgressReport

PURPOSE = "state"
POLL_TIMEOUT_S = 10.0
# A run that gains images between its failures may fail any number of times.
MAX_ATTEMPTS_WITHOUT_PROGRESS = 5


class ProgressReports:
    """The newest report of a run, and all notes to its user."""

    def __init__(self) -> None:
        self._report: ProgressReport | None = None
        self._notes: list[str] = []

    def publish(self, report: ProgressReport) -> None:
        """Replaces the newest report."""
        self._report = report

    def latest(self) -> ProgressReport | None:
        """The newest report; None before the first."""
        return self._report

    def add_note(self, line: str) -> None:
        """Adds a note, unless it was added before."""
        if line not in self._notes:
            self._notes.append(line)

    def notes(self) -> list[str]:
        """All notes, oldest first."""
        return list(self._notes)


class StopRequest:
    """The driver's request to stop, and the images at which the workers fulfilled it."""

    def __init__(self) -> None:
        self._requested = False
        self._stopped_at: int | None = None

    def request(self) -> None:
        """Asks the workers to stop."""
        self._requested = True

    def requested(self) -> bool:
        """True once the driver has asked the workers to stop."""
        return self._requested

    def confirm(self, nimg: int) -> None:
        """Records the images at which the workers ended as requested."""
        self._stopped_at = nimg

    def stopped_at(self) -> int | None:
        """The images at which the workers ended as requested; None if they did not."""
        return self._stopped_at


class FailureCount:
    """The attempts of a run, and the reason why there should be no more of them."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._most_workers = 0
        self._cause: str | None = None
        self._failure: str | None = None

    def begin_attempt(self, nimg: int, workers: int) -> str | None:
        """Counts an attempt that begins at `nimg` images; returns the run's failure, or None.

        Args:
            workers: of the attempt. Ray restarts an elastic run to give it more, which is no failure.
        """
        if workers > self._most_workers:
            self._starts.clear()
            self._most_workers = workers
        self._starts.append(nimg)
        last = self._starts[-MAX_ATTEMPTS_WITHOUT_PROGRESS:]
        if len(last) == MAX_ATTEMPTS_WITHOUT_PROGRESS and len(set(last)) == 1:
            cause = self._cause or "its workers died, as they do when memory runs out"
            self._failure = (
                f"it failed {MAX_ATTEMPTS_WITHOUT_PROGRESS - 1} times in a row at {nimg} images: {cause}"
            )
        return self._failure

    def record_cause(self, line: str) -> None:
        """Keeps why the present attempt failed."""
        self._cause = line

    def fail(self, reason: str) -> None:
        """Ends the run for this reason."""
        self._failure = reason

    def failure(self) -> str | None:
        """The reason why the run has failed for good, or None."""
        return self._failure


class _RunStateActor:
    """The three in one actor, because each actor is a process."""

    def __init__(self) -> None:
        self.reports = ProgressReports()
        self.stop = StopRequest()
        self.failures = FailureCount()

    def call(self, part: str, method: str, *arguments: object) -> object:
        """The result of `self.<part>.<method>(*arguments)`."""
        return getattr(getattr(self, part), method)(*arguments)


@dataclass(frozen=True)
class RunState:
    """A handle to the state of one run; the driver hands it to the workers.

    Methods raise `ray.exceptions.RayError` where the actor, or the cluster, is gone.
    """

    actor: ActorHandle

    @classmethod
    @contextlib.contextmanager
    def started(cls, runs_uri: str, run: str) -> Iterator[RunState]:
        """The state of a run that is about to train, during the block. The caller holds the run's lock."""
        with named_actor(_RunStateActor, run_actor_name(PURPOSE, runs_uri, run)) as actor:
            yield cls(actor)

    @classmethod
    def find(cls, runs_uri: str, run: str) -> RunState | None:
        """The state of a run that is being trained somewhere on the cluster, or None."""
        actor = find_actor(run_actor_name(PURPOSE, runs_uri, run))
        return cls(actor) if actor is not None else None

    def publish(self, report: ProgressReport, *, wait: bool = False) -> None:
        """Replaces the newest progress report.

        Args:
            wait: return only once the driver can read it.
        """
        published = self._send("reports", "publish", report)
        if wait:
            ray.get(published)

    def latest_report(self, timeout: float | None = None) -> ProgressReport | None:
        """The newest progress report, or None; waits for `timeout` seconds at most."""
        return self._ask("reports", "latest", timeout=timeout)

    def add_note(self, line: str) -> None:
        """Adds a line for the user, unless it was added before."""
        self._send("reports", "add_note", line)

    def notes(self, timeout: float | None = None) -> list[str]:
        """All notes for the user, oldest first; waits for `timeout` seconds at most."""
        return self._ask("reports", "notes", timeout=timeout)

    def request_stop(self) -> None:
        """Asks the workers to store a checkpoint and end."""
        self._send("stop", "request")

    def stop_requested(self) -> bool:
        """Whether the driver asks the workers to stop, or has ended itself; False if the actor is slow."""
        try:
            return self._ask("stop", "requested", timeout=POLL_TIMEOUT_S)
        except ActorUnavailableError:  # It is being restarted.
            return False
        except RayActorError:
            return True
        except RayError:
            return False

    def confirm_stop(self, nimg: int) -> None:
        """Records that the run is stored at `nimg` images and its workers end, as requested."""
        self._ask("stop", "confirm", nimg)

    def stopped_at(self) -> int | None:
        """The images at which the workers ended as requested; None if they did not."""
        return self._ask("stop", "stopped_at")

    def begin_attempt(self, nimg: int, workers: int) -> str | None:
        """Counts a group of workers that begins at `nimg` images; the failure that ends the run, or None."""
        return self._ask("failures", "begin_attempt", nimg, workers)

    def record_cause(self, line: str) -> None:
        """Records why this group of workers failed, in case it turns out to be the last."""
        self._ask("failures", "record_cause", line)

    def fail(self, reason: str) -> None:
        """Ends the run: further groups of workers return at once, and the driver raises `reason`."""
        self._ask("failures", "fail", reason)

    def failure(self) -> str | None:
        """The reason why the run has failed for good, or None."""
        return self._ask("failures", "failure")

    def _send(self, part: str, method: str, *arguments: object) -> ray.ObjectRef:
        return self.actor.call.remote(part, method, *arguments)

    def _ask(self, part: str, method: str, *arguments: object, timeout: float | None = None) -> Any:
        return ray.get(self._send(part, method, *arguments), timeout=timeout)
