"""The metrics that only an evaluation measures, on a local data set."""

import numpy as np
import torch
from data_samples import camera_of, png

from mimic3d.config import override
from mimic3d.config.recipes import get_recipe
from mimic3d.networks.generator import build_generator
from mimic3d_platform.data.format.dataset_writer import DatasetWriter
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.evaluation.metrics import Evaluator


def test_kernel_distance_precision_recall_and_fid3d_of_both_branches(tmp_path) -> None:
    random = np.random.default_rng(0)
    writer = DatasetWriter(str(tmp_path / "cars"), 32, {"tool": "test"}, columns=("image", "camera"))
    for row in range(12):
        image = png(random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        writer.write({"image": image, "camera": camera_of(300 * row).numpy()})
    writer.close()
    settings = {"data.uri": str(tmp_path / "cars"), "output.metric_images": 8}
    config = override(get_recipe("cars-demo"), settings)
    torch.manual_seed(0)
    generator = build_generator(config).eval()
    network = feature_weights.best_available("frechet")
    evaluator = Evaluator(config, network, str(tmp_path / "cache"))
    with torch.no_grad():
        found = evaluator.measure_extra(generator)
        again = evaluator.measure_extra(generator)
    assert found == again
    kinds = {name.split("_")[0] for name in found}
    assert kinds in ({"kd", "precision", "recall", "fd3d"}, {"kid", "precision", "recall", "fid3d"})
    assert len(found) == 8 and {name.split("/")[1] for name in found} == {"2d", "3d"}
    assert all(np.isfinite(value) for value in found.values())
    shares = [value for name, value in found.items() if name.startswith(("precision", "recall"))]
    assert all(0 <= value <= 1 for value in shares)
