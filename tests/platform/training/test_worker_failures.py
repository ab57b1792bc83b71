"""Errors of a worker: those that every attempt would meet end the run, the others are retried."""

import pytest
import torch

from mimic3d.config import ConfigError
from mimic3d_platform.training.worker_failures import FinalError, cause_of, final_error


def test_out_of_memory_ends_the_run_and_says_what_to_lower() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)  # More than any machine has: PyTorch's own refusal.
    for error in (caught.value, torch.OutOfMemoryError("CUDA out of memory."), MemoryError()):
        final = final_error(error, world_size=2)
        said = str(final)
        assert isinstance(final, FinalError) and "\n" not in said
        assert said.startswith("a worker ran out of memory (") and "schedule.accumulate" in said
        assert "more workers than 2" in said and "schedule.batch" in said


def test_an_error_in_the_config_ends_the_run() -> None:
    assert str(final_error(ConfigError("schedule.accumulate is 4"), 1)) == "schedule.accumulate is 4"
    mended = FinalError("no room")
    assert final_error(mended, 1) is mended


def test_a_lost_connection_to_another_worker_is_retried_and_explained() -> None:
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711")
    assert final_error(lost, 2) is None
    assert cause_of(lost) == "another worker died, as it does when memory runs out"
    assert cause_of(KeyError("planes")) == "'planes'"
    assert cause_of(RuntimeError()) == "RuntimeError"
