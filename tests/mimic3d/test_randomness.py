"""Random numbers of a metric's images: uniform and normal, whatever they are drawn together with."""

import pytest
import torch
from torch import Tensor

from mimic3d.randomness import generator_keys, hashed_uniform
from mimic3d.sample_noise import noise_of_images, normal_rows, uniform_rows

CPU = torch.device("cpu")


def numbers_of(images: list[int], rays: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """A noise map and the jitter of 6 rays with 3 samples, in chunks of `rays`, then another noise map."""
    with noise_of_images(5, "metric", images):
        first = normal_rows((len(images), 2, 4, 4), CPU)
        chunks = [
            uniform_rows((len(images), rays, 3), CPU, stream="coarse", first=start)
            for start in range(0, 6, rays)
        ]
        return first, torch.cat(chunks, dim=1), normal_rows((len(images), 2, 4, 4), CPU)


def test_an_images_numbers_do_not_depend_on_its_batch_or_on_chunks() -> None:
    together = numbers_of([0, 1, 2])
    alone = [numbers_of([image], rays=2) for image in range(3)]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(parts))
        assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(together[0], together[2]), "each call draws numbers of its own"
    assert not torch.equal(together[0][0], numbers_of([3])[0][0])


def test_outside_of_the_context_pytorchs_generators_draw() -> None:
    torch.manual_seed(0)
    expected = torch.rand(2, 3)
    torch.manual_seed(0)
    numbers_of([0])
    assert torch.equal(uniform_rows((2, 3), CPU), expected)


def test_hashed_numbers_are_uniform_and_normal() -> None:
    uniform = hashed_uniform(generator_keys(0, "test", range(4)), 0, 50_000)
    assert uniform.min() >= 0 and uniform.max() < 1
    counts = torch.histc(uniform.flatten(), 100, 0, 1) / (4 * 50_000)
    assert (counts - 0.01).abs().max() < 0.001
    correlation = torch.corrcoef(torch.cat([uniform[:, :-1], uniform[:, 1:]]))
    assert (correlation - torch.eye(8)).abs().max() < 0.02
    with noise_of_images(0, "test", range(4)):
        normal = normal_rows((4, 50_000), CPU).double()
    moments = [normal.pow(power).mean().item() for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.05)
