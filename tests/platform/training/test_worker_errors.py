"""What a worker makes of an error: one that another attempt would meet again, or one to be tried again."""

import pytest
import torch

from mimic3d.config import ConfigError
from mimic3d_platform.training.worker import FinalError, _cause, _final


def test_out_of_memory_ends_the_run_and_says_what_to_lower() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)  # More than any machine has: PyTorch's own refusal.
    for error in (caught.value, torch.OutOfMemoryError("CUDA out of memory."), MemoryError()):
        final = _final(error, world_size=2)
        said = str(final)
        assert isinstance(final, FinalError) and "\n" not in said
        assert said.startswith("a worker ran out of memory (") and "schedule.accumulate" in said
        assert "more workers than 2" in said and "schedule.batch" in said


def test_what_a_config_makes_impossible_ends_the_run() -> None:
    assert str(_final(ConfigError("schedule.accumulate is 4"), 1)) == "schedule.accumulate is 4"
    mended = FinalError("no room")
    assert _final(mended, 1) is mended


def test_a_lost_neighbour_is_tried_again_and_told_as_what_it_is() -> None:
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711")
    assert _final(lost, 2) is None
    assert _cause(lost) == "another worker died, as it does when memory runs out"
    assert _cause(KeyError("planes")) == "'planes'"
    assert _cause(RuntimeError()) == "RuntimeError"
