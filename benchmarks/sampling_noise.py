"""Measures what random noise and jitter do to a Fréchet distance: `make bench-noise`.

Metrics are of images with random noise in the planes and jittered samples along rays, as in training. The
same latents and cameras are rendered with constant noise, with fixed quantiles, and with both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from mimic3d.evaluation.frechet import FeatureStatistics
from mimic3d.evaluation.generated import frechet_by_branch, generated_images
from mimic3d.features.registry import load_extractor
from mimic3d.training.local import LocalShards
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.models.generator import Generator

BATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="builtin:cars")
    parser.add_argument("--data", type=Path, required=True, help="a folder of shards")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    network = feature_weights.best_available("frechet")
    extractor = load_extractor(feature_weights.resolve(network), network)
    shards = LocalShards(arguments.data)
    with torch.no_grad():
        features = (extractor(batch) for batch in shards.decoded().split(BATCH))
        reals = FeatureStatistics.of(features, extractor.dim)
    generator = Generator.load(arguments.model).network
    for noise in ("random", "const"):
        for jitter in (True, False):
            images = generated_images(
                generator,
                shards.cameras,
                range(arguments.images),
                seed=arguments.seed,
                noise=noise,
                jitter=jitter,
            )
            found = frechet_by_branch(extractor, images, generator.branches, reals)
            shown = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
            print(f"{noise} noise, {'jitter' if jitter else 'fixed quantiles'}: {shown}", flush=True)


if __name__ == "__main__":
    main()
