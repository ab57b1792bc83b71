"""Memory does not grow with the data set, neither in ingestion nor in training."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from data_samples import camera_of, png

SIDE = 128
FEW, MANY = 300, 3000
# Of pixels that do not compress: 14 MiB and 141 MiB, in shards of 4 MiB.
SHARD_BYTES = 4 * 2**20
SPARE_MIB = 48

# Each program prints its peak memory, in MiB.
INGEST = f"""
import resource, sys
from mimic3d_platform.data.ingest.ingest_dataset import ingest_dataset
ingest_dataset(sys.argv[1], sys.argv[2], here=True, shard_bytes={SHARD_BYTES})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
# Pages of files are not counted: the system frees them when it needs memory.
TRAIN = """
import re, sys
from mimic3d_platform.data.stream.training_stream import TrainingStream
most = 0
with TrainingStream(sys.argv[1], global_batch=20, seed=0, loaders=0) as stream:
    for _ in range(stream.manifest.count // 20):
        next(stream)
        status = open("/proc/self/status").read()
        own = re.findall(r"(?:RssAnon|RssShmem):\\s*(\\d+)", status)
        most = max(most, sum(map(int, own)))
print(most / 1024)
"""


def peak(program: str, *arguments: object, cache: Path) -> float:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(
        command, env=os.environ | {"MIMIC3D_CACHE": str(cache)}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """EG3D zips of `FEW` and of `MANY` images."""
    random, folder, zips = np.random.default_rng(0), tmp_path_factory.mktemp("noise"), {}
    for count in (FEW, MANY):
        zips[count] = folder / f"{count}.zip"
        with zipfile.ZipFile(zips[count], "w", zipfile.ZIP_STORED) as archive:
            for row in range(count):
                pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                archive.writestr(f"{row:05d}.png", png(pixels))
            labels = [[f"{row:05d}.png", camera_of(row).tolist()] for row in range(count)]
            archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return zips


@pytest.mark.slow
def test_memory_does_not_grow_with_the_set(noise: dict[int, Path], tmp_path: Path) -> None:
    sets = {count: tmp_path / str(count) for count in (FEW, MANY)}
    cache = tmp_path / "cache"
    brought_in = [peak(INGEST, noise[count], sets[count], cache=cache) for count in (FEW, MANY)]
    assert len(list(sets[MANY].glob("*.parquet"))) > 30
    assert brought_in[1] - brought_in[0] < SPARE_MIB, brought_in
    trained_on = [peak(TRAIN, sets[count], cache=cache) for count in (FEW, MANY)]
    assert trained_on[1] - trained_on[0] < SPARE_MIB, trained_on
