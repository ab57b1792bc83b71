"""Training from a local folder in one process gives the platform's order; the example of the docs runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_perceptual import random_vgg16

from mimic3d.checkpoints.generator_folder import load_generator
from mimic3d.config import override
from mimic3d.config.recipes import get_recipe
from mimic3d.features.efficientnet_lite import efficientnet_lite2_middle
from mimic3d.training.local import LocalShards
from mimic3d_platform.data.stream.training_stream import TrainingStream

ROOT = Path(__file__).parents[4]
ROWS, SIDE = 24, 32


@pytest.fixture
def folder(write_set, tmp_path: Path) -> Path:
    write_set(tmp_path / "cars", ROWS, SIDE)
    return tmp_path / "cars"


def test_a_local_folder_gives_the_batches_of_the_platforms_stream(folder: Path) -> None:
    config = override(get_recipe("cars-demo"), {"seed": 5, "schedule.batch": 8, "data.uri": str(folder)})
    shards = LocalShards(folder)
    assert shards.weights is None and shards.cameras.shape == (ROWS, 25)
    stream = TrainingStream(str(folder), global_batch=8, seed=5, nimg=16)
    local = shards.batches(config, nimg=16)
    for _ in range(5):  # over the end of an epoch
        images, cameras = next(local)
        batch = next(stream)
        assert torch.equal(images, batch.images) and torch.equal(cameras, batch.cameras)
    stream.close()
    length = sum(1 for _ in shards.batches(config, config.total_nimg - 24))
    assert length == 3, "and they end where the run does"


def test_a_folder_that_is_no_sound_data_set_is_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no _manifest.parquet: it is no complete data set"):
        LocalShards(tmp_path)
    with pytest.raises(ValueError, match=r"has images of 32² and model.image_resolution is 64"):
        next(LocalShards(folder).batches(get_recipe("cars64")))
    shard = next(folder.glob("part-*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"is not the file that _manifest.parquet describes"):
        LocalShards(folder)
    shard.unlink()
    with pytest.raises(ValueError, match=r"cannot be read \(No such file"):
        LocalShards(folder)
    (folder / "_manifest.parquet").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"_manifest.parquet is damaged"):
        LocalShards(folder)


@pytest.mark.slow
def test_the_page_on_local_training_runs_without_the_platform(folder: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "local.md").read_text(encoding="utf-8")
    code = "".join(re.findall(r"```python\n(.*?)```", page, re.S)).replace("range(2048)", "range(4)")
    small = {
        "schedule.stage1_kimg": 0.008,
        "schedule.stage2_kimg": 0.008,
        "output.checkpoint_kimg": 0.008,
        "output.sample_kimg": 0.008,
    }
    settings = '{"seed": 0}'
    assert settings in code
    save_file(random_vgg16(), tmp_path / "hed-vgg16.safetensors")
    save_file(efficientnet_lite2_middle().state_dict(), tmp_path / "efficientnetlite2mid.safetensors")
    shut = (
        "import sys; sys.modules |= dict.fromkeys(['ray', 'mlflow', 'boto3', 's3fs', 'mimic3d_platform'])\n"
    )
    program = shut + f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + code.replace(settings, repr(small))
    distances = "{'fd_efficientnetlite2mid/2d':"
    for expected in (["8", "16", distances], [distances]):
        command = [sys.executable, "-c", program]
        environment = {"OMP_NUM_THREADS": "1"}
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert ran.returncode == 0, ran.stderr
        assert [line.split()[0] for line in ran.stdout.splitlines()] == expected, (
            "the second goes on: no more"
        )
    generator, _ = load_generator(tmp_path / "run" / "checkpoint" / "generator")
    assert generator.branches == ("2d", "3d")
    assert (tmp_path / "run" / "samples.png").is_file()
