"""A run is trained by one driver, and ends after attempts that gain nothing."""

import time
from typing import Any

import pytest

from mimic3d_platform import local
from mimic3d_platform.errors import UserError


def test_five_attempts_from_one_image_end_the_run_and_progress_between_them_does_not(
    stack: local.StackStatus,
) -> None:
    from mimic3d_platform.training.run_state import FailureCount

    failures = FailureCount()
    for nimg in (0, 0, 0, 0, 8, 8, 8, 8):
        assert failures.begin_attempt(nimg, 2) is None
    failures.record_cause("the disk is slow")
    assert failures.begin_attempt(8, 2) == "it failed 4 times in a row at 8 images: the disk is slow"
    assert failures.failure() == failures.begin_attempt(16, 2)  # A failure is final.


def test_an_elastic_run_that_grows_does_not_fail_but_one_that_shrinks_and_grows_again_may(
    stack: local.StackStatus,
) -> None:
    from mimic3d_platform.training.run_state import FailureCount

    growing, flapping = FailureCount(), FailureCount()
    assert [growing.begin_attempt(8, workers) for workers in (1, 2, 4, 8, 16)] == [None] * 5
    attempts = [flapping.begin_attempt(8, workers) for workers in (1, 2, 1, 2, 1, 2)]
    assert attempts[:5] == [None] * 5 and attempts[5] is not None


def test_a_second_driver_of_a_run_is_refused_until_the_first_has_ended(
    stack: local.StackStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mimic3d_platform.cluster import named_actors
    from mimic3d_platform.cluster.connect import join_ray

    join_ray()
    monkeypatch.setattr(named_actors, "NAME_PATIENCE_S", 1.0)
    with named_actors.run_lock("s3://runs", "a"):
        refused = pytest.raises(UserError, match=r"the run a is being trained by process \d+ on .*--name")
        with refused, named_actors.run_lock("s3://runs/", "a"):
            pass
        with named_actors.run_lock("s3://runs", "b"), named_actors.run_lock("s3://others", "a"):
            pass
    with named_actors.run_lock("s3://runs", "a"):
        pass


def test_workers_and_driver_share_the_state_of_a_run(stack: local.StackStatus) -> None:
    from mimic3d_platform.cluster.connect import join_ray

    join_ray()
    from mimic3d_platform.training.progress import ProgressReport
    from mimic3d_platform.training.run_state import RunState

    assert RunState.find("s3://runs", "shared") is None
    with RunState.started("s3://runs", "shared") as driver:
        worker: Any = RunState.find("s3://runs", "shared")
        worker.publish(ProgressReport("stage 1", 8, 64), wait=True)
        for line in ("storage is slow", "storage is slow"):
            worker.add_note(line)
        report = driver.latest_report()
        assert report is not None and report.nimg == 8 and driver.notes() == ["storage is slow"]
        assert not worker.stop_requested()
        driver.request_stop()
        assert worker.stop_requested() and driver.stopped_at() is None
        worker.confirm_stop(16)
        assert driver.stopped_at() == 16
        assert worker.begin_attempt(16, 2) is None and driver.failure() is None
        worker.fail("no room")
        assert driver.failure() == worker.begin_attempt(16, 2) == "no room"
    assert worker.stop_requested()  # The driver is gone.


def test_the_state_lives_on_the_drivers_node_and_begins_again_if_its_process_is_killed(
    stack: local.StackStatus,
) -> None:
    from mimic3d_platform.cluster.connect import join_ray

    join_ray()
    import ray
    from ray.util.state import get_actor

    from mimic3d_platform.training.run_state import RunState

    with RunState.started("s3://runs", "killed") as driver:
        driver.add_note("before")
        assert driver.notes() == ["before"]
        known = get_actor(driver.actor._actor_id.hex())
        assert known is not None and known.node_id == ray.get_runtime_context().get_node_id()
        ray.kill(driver.actor, no_restart=False)
        deadline = time.monotonic() + 60
        while True:
            try:
                assert not driver.stop_requested()
                assert driver.notes(timeout=20) == []
                break
            except ray.exceptions.RayError:
                assert time.monotonic() < deadline
                time.sleep(0.5)
        driver.fail("no room")
        assert driver.failure() == "no room"
