"""Latencies of the viewer: `make bench-viewer` prints a table.

A latency is the time from the request to the finished picture, without the browser; of three seeds, the
median. The processor's time is printed too, because it hardly depends on what else runs on the machine.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import replace

import torch

from mimic3d.export.orbits import at_yaw, front
from mimic3d_platform.models.model_uris import load_generator
from mimic3d_platform.viewer.drawing import DrawingSession, Picture
from mimic3d_platform.viewer.view_settings import Identity, ViewSettings, label_numbers, shown_by

_VIEWS = 5


def drawn(session: DrawingSession, settings: ViewSettings, coarse: bool) -> tuple[Picture, float, float]:
    """A picture, and the milliseconds that passed and that the processor worked."""
    wall, processor = time.perf_counter(), time.process_time()
    steps = session.draw(settings, coarse=coarse)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            return done.value, wall * 1000, processor * 1000


def measure(session: DrawingSession) -> list[tuple[str, str, float, float]]:
    """Rows of what was drawn, at which quality, wall-clock and processor milliseconds."""
    model = session.model
    camera = model.config.camera
    labels = [
        label_numbers(at_yaw(camera, torch.tensor([yaw], dtype=torch.float64)))
        for yaw in torch.linspace(0, math.pi / 2, _VIEWS).tolist()
    ]
    size = model.config.model.image_resolution
    base = ViewSettings(Identity(0, label_numbers(front(camera))), labels[0], model.samples, size)
    rows = []
    for shown in shown_by(model.generator.branches):
        for coarse in (True, False):
            of_view = replace(base, shown=shown)
            drawn(session, of_view, coarse)
            results = [drawn(session, replace(of_view, camera=label), coarse) for label in labels]
            rows.append(_row(f"{shown}, camera turns", results))
    new = [
        drawn(session, replace(base, identity=replace(base.identity, seed=seed)), True) for seed in (1, 2, 3)
    ]
    rows.append(_row(f"{base.shown}, another seed", new))
    return rows


def _row(what: str, results: list[tuple[Picture, float, float]]) -> tuple[str, str, float, float]:
    picture = results[-1][0]
    quality = f"{'coarse' if picture.coarse else 'sharp'} {picture.size}², {picture.samples} samples"
    wall, processor = (statistics.median(result[i] for result in results) for i in (1, 2))
    return what, quality, wall, processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="builtin:cars")
    arguments = parser.parse_args()
    session = DrawingSession(*load_generator(arguments.model), arguments.model)
    print(f"{arguments.model} on {session.model.device}, {torch.get_num_threads()} threads")
    print("| drawn | quality | latency, ms | processor, ms |\n|---|---|---|---|")
    for what, quality, wall, processor in measure(session):
        print(f"| {what} | {quality} | {wall:.0f} | {processor:.0f} |")


if __name__ == "__main__":
    main()
