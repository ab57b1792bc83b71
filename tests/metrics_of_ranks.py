"""What each of two ranks measures of a generator; in a file of its own, which new processes import."""

import json

import torch
import torch.distributed as dist

from mimic3d.config import Config
from mimic3d.networks.generator import build_generator
from mimic3d_platform.evaluation.metrics import Evaluator


def measure(rank: int, folder: str, config: Config, network: str) -> None:
    """Measures the generator of seed 0, with statistics in `folder`, and writes the metrics into it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(0)
    evaluator = Evaluator(config, network, folder, rank=rank, world_size=2)
    metrics = evaluator.measure(build_generator(config).eval())
    with open(f"{folder}/{rank}.json", "w", encoding="utf-8") as file:
        json.dump(metrics, file)
    dist.destroy_process_group()
