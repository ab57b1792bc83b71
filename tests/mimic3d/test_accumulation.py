"""A batch in parts: the gradients, the noise and the statistics of the whole."""

import pytest
import torch
from test_training import CONFIG, MeanAbsolute, advance, leaves

from mimic3d.config import ConfigError, override
from mimic3d.networks.discriminators import minibatch_std
from mimic3d.training.accumulation import in_parts, parts_of
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


def test_parts_hold_groups_of_minibatch_statistics_whole() -> None:
    x = torch.randn(16, 2, 4, 4)
    whole = minibatch_std(x)
    for count in (1, 2, 4):
        for rows in parts_of(16, count):
            torch.testing.assert_close(minibatch_std(x[rows]), whole[rows])


def test_parts_draw_what_the_whole_would_draw() -> None:
    def draw(rows: slice) -> torch.Tensor:
        x = torch.rand(len(range(8)[rows]), 3)
        return torch.cat([x, torch.randn((len(x), 2)), torch.randn_like(x), torch.rand_like(x)], dim=1)

    torch.manual_seed(5)
    whole = draw(slice(None))
    after = torch.rand(3)
    torch.manual_seed(5)
    for rows in in_parts(parts_of(8, 2), 8, torch.device("cpu")):
        assert torch.equal(draw(rows), whole[rows])
    assert torch.equal(torch.rand(3), after), "and what comes afterwards is the same"


def test_a_piece_of_a_group_is_refused_in_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"schedule.accumulate is 4, but must divide each worker's 8 images"
    ):
        Trainer(override(WHOLE, {"schedule.accumulate": 4}), MeanAbsolute())
    assert len(parts_of(2, 1)) == 1
