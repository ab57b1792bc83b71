"""A batch in parts and on several ranks: the gradients, the noise and the statistics of the whole."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from test_training import CONFIG, MeanAbsolute, advance, batch_at, labels, leaves
from torch import Tensor

from mimic3d.config import ConfigError, override
from mimic3d.networks.discriminators import minibatch_std
from mimic3d.sample_noise import normal_rows, uniform_rows
from mimic3d.training.accumulation import BatchParts
from mimic3d.training.trainer import Trainer

torch.set_num_threads(1)

WHOLE = override(
    CONFIG,
    {
        "schedule.batch": 8,
        "schedule.stage1_kimg": 0.008,
        "schedule.stage2_kimg": 0.016,
        "output.checkpoint_kimg": 0.008,
        "output.sample_kimg": 0.008,
    },
)


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    found = []
    for count in (1, 2):
        config = override(WHOLE, {"schedule.accumulate": count})
        trainer, gradients = Trainer(config, MeanAbsolute()), []
        for optimizer in (trainer.generator_optimizer, trainer.discriminator_optimizer):
            # No update, so that what comes after does not differ by the rounding of what came before.
            def step(optimizer=optimizer, gradients=gradients):
                gradients += [
                    p.grad.clone() for p in optimizer.param_groups[0]["params"] if p.grad is not None
                ]

            optimizer.step = step
        trainer.nimg = 16  # of stage 2, all phases
        logs = advance(trainer, 1)
        found.append((gradients, logs[0], trainer.generator.backbone.mapping.w_avg))
    (whole, log, w_avg), (parts, log_of_parts, w_avg_of_parts) = found
    assert len(whole) == len(parts) > 300 and log.keys() == log_of_parts.keys()
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=1e-5 * float(one.abs().max()) + 1e-9)
    for name in log:
        torch.testing.assert_close(log[name], log_of_parts[name], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(w_avg, w_avg_of_parts)


def test_a_run_in_parts_stays_close_to_the_run_in_one() -> None:
    runs = [Trainer(override(WHOLE, {"schedule.accumulate": count}), MeanAbsolute()) for count in (1, 2)]
    for trainer in runs:
        advance(trainer, 2)
    one, other = (leaves(trainer.ema.state_dict()) for trainer in runs)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(one, other, strict=True))


CPU = torch.device("cpu")


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ranks_and_parts_hold_groups_of_minibatch_statistics_whole(ranks: int, count: int) -> None:
    x = torch.randn(64, 2, 4, 4)
    one = BatchParts(64, 0, 1, 1, CPU)
    whole = torch.empty(64, 1, 4, 4)
    whole[one.order] = minibatch_std(x[one.order])
    for rank in range(ranks):
        mine, parts = (
            slice(rank * 64 // ranks, (rank + 1) * 64 // ranks),
            BatchParts(64, rank, ranks, count, CPU),
        )
        for rows in parts:
            found = minibatch_std(x[mine][parts.order][rows])
            torch.testing.assert_close(found, whole[mine][parts.order][rows])


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("count", [1, 2])
def test_a_sample_gets_the_same_random_numbers_on_every_rank_and_in_every_part(
    ranks: int, count: int
) -> None:
    def draw(parts: BatchParts) -> Tensor:
        """This rank's numbers, in the order of its samples."""
        torch.manual_seed(5)
        drawn = torch.empty(16 // ranks if parts is not one else 16, 4)
        for rows in parts:
            size = len(parts.order[rows])
            numbers = torch.cat([uniform_rows((size, 3), CPU), normal_rows((size, 1), CPU)], dim=1)
            drawn[parts.order[rows]] = numbers
        return drawn

    one = BatchParts(16, 0, 1, 1, CPU)
    whole = draw(one)
    after = torch.rand(3)
    found = [draw(BatchParts(16, rank, ranks, count, CPU)) for rank in range(ranks)]
    assert torch.equal(torch.cat(found), whole)
    assert torch.equal(torch.rand(3), after), "and what is drawn afterwards is the same"


def test_a_piece_of_a_group_is_refused_in_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"schedule.accumulate is 4, but must divide each worker's 8 images"
    ):
        Trainer(override(WHOLE, {"schedule.accumulate": 4}), MeanAbsolute())
    assert BatchParts(2, 0, 1, 1, CPU).count == 1


# Two ranks with two parts each, and one rank with the whole batch.

ADA = override(
    WHOLE,
    {
        "schedule.batch": 16,
        "schedule.stage1_kimg": 0.048,
        "schedule.stage2_kimg": 0.048,
        "schedule.reference_batch": None,
        "schedule.ema_half_life_kimg": 0.05,
        "schedule.pose_swap_kimg": 0.06,
        "output.checkpoint_kimg": 0.048,
        "output.sample_kimg": 0.048,
        "augmentation.mode": "ada",
        "augmentation.interval": 2,
        "augmentation.target": 0.0,
        "augmentation.kimg": 0.4,
        "augmentation.kimg_resumed": 0.2,
    },
)
STEPS = 6


def course(rank: int, ranks: int, parts: int) -> list[dict]:
    """The states after each of six steps, three in each stage, in float64."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    try:
        trainer = Trainer(override(ADA, {"schedule.accumulate": parts}), MeanAbsolute(), "cpu", rank, ranks)
        trainer.augmentation.p = 0.5
        states = []
        for _ in range(STEPS):
            images, cameras = batch_at(trainer)
            log = trainer.step(images, cameras.double(), labels().double())
            norms = {name: value for name, value in log.items() if name.startswith("gradient/")}
            states.append(copy.deepcopy(trainer.state_dict()) | {"norms": norms})
        return states
    finally:
        torch.set_default_dtype(torch.float32)


def one_of_two_ranks(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(course(rank, 2, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_with_two_parts_each_are_one_rank_with_the_whole_batch(tmp_path: Path) -> None:
    import test_accumulation  # by the name that the new processes find it under

    torch.multiprocessing.spawn(test_accumulation.one_of_two_ranks, (str(tmp_path),), nprocs=2)
    alone = course(0, 1, 1)
    probabilities = [state["augmentation"]["p"] for state in alone]
    assert len({0.5, *probabilities}) > 2, "the control is at work"
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        for step in range(STEPS):
            assert found[step]["augmentation"]["p"] == probabilities[step]
            for part in (
                "norms",
                "generator_optimizer",
                "discriminator_optimizer",
                "ema",
                "generator",
                "dual",
            ):
                pairs = zip(leaves(found[step][part]), leaves(alone[step][part]), strict=True)
                for one, other in pairs:
                    if isinstance(one, Tensor):
                        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
                    else:
                        assert one == other
