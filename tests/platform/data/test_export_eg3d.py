"""Export to EG3D's zip: a set that was ingested from one gets the same bytes and numbers back."""

import io
import json
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from posed_scene import Scene, dataset_json, eg3d_files, posed_scene, write_zip

from mimic3d_platform import storage
from mimic3d_platform.data.export_eg3d import export_dataset
from mimic3d_platform.data.format.dataset_writer import DatasetWriter
from mimic3d_platform.data.ingest.ingest_dataset import ingest_dataset
from mimic3d_platform.data.render.meshes import load_folder
from mimic3d_platform.errors import UserError


@pytest.fixture
def scene(mesh_folder: Path) -> Scene:
    return posed_scene(next(mesh for mesh in load_folder(mesh_folder) if mesh.identifier == "box.ply"))


def read_zip(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        return {info.filename: archive.read(info) for info in archive.infolist()}


# How people write a camera's numbers: widened from float32, as short decimals, with digits beyond float32.
NUMBERS = {
    "widened": lambda labels: labels.astype(np.float64),
    "short": lambda labels: np.round(labels.astype(np.float64), 4),
    "float64": lambda labels: labels.astype(np.float64) * (1 + 1e-12),
}


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_zip_round_trips_byte_for_byte(
    scene: Scene, tmp_path: Path, numbers: str, place: str, request: pytest.FixtureRequest
) -> None:
    folder = str(tmp_path) if place == "local" else request.getfixturevalue("s3_folder")
    labels = NUMBERS[numbers](scene.labels)
    # The listing's order is neither that of the names nor that of the zip.
    order = [4, 0, 5, 1, 3, 2]
    listing = dataset_json([scene.names[index] for index in order], labels[order])
    original = eg3d_files(scene) | {"dataset.json": listing.encode()}
    write_zip(tmp_path / "given.zip", original)
    ingest_dataset(str(tmp_path / "given.zip"), f"{folder}/set", here=True, shard_bytes=1000)
    assert export_dataset(f"{folder}/set", f"{folder}/back.zip") == 6
    back = read_zip(storage.read_bytes(f"{folder}/back.zip"))
    assert back == original


class DatasetOfEG3D(torch.utils.data.Dataset):
    """Reads a zip as EG3D's documentation describes it: sorted names, labels by name, PNG to CHW."""

    def __init__(self, path: Path) -> None:
        self.archive = zipfile.ZipFile(path)
        endings = set(Image.registered_extensions())
        names = set(self.archive.namelist())
        self.names = sorted(name for name in names if Path(name).suffix.lower() in endings)
        labels = dict(json.loads(self.archive.read("dataset.json"))["labels"])
        self.labels = np.array([labels[name.replace("\\", "/")] for name in self.names]).astype(np.float32)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        with self.archive.open(self.names[index]) as file:
            return np.asarray(Image.open(file)).transpose(2, 0, 1), self.labels[index]


def test_a_set_that_never_was_a_zip_becomes_one_that_eg3d_reads(tmp_path: Path, write_set) -> None:
    write_set(tmp_path / "set", 1002)
    export_dataset(str(tmp_path / "set"), str(tmp_path / "out.zip"))
    exported = DatasetOfEG3D(tmp_path / "out.zip")
    assert len(exported) == 1002 and exported.names[1001] == "00001/img00001001.png"
    image, label = exported[1001]
    assert image[:, 0, 0].tolist() == [1001 % 256, 1001 // 256, 7] and label.shape == (25,)
    ingest_dataset(str(tmp_path / "out.zip"), str(tmp_path / "again"), here=True)
    export_dataset(str(tmp_path / "again"), str(tmp_path / "again.zip"))
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "out.zip").read_bytes()


def test_what_cannot_be_exported(tmp_path: Path, write_set) -> None:
    uri = str(tmp_path / "set")
    write_set(uri, 5)
    with pytest.raises(UserError, match=r"out\.tar is not the name of a zip"):
        export_dataset(uri, str(tmp_path / "out.tar"))
    (tmp_path / "out.zip").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"out\.zip exists already"):
        export_dataset(uri, str(tmp_path / "out.zip"))
    write_set(tmp_path / "blind", 5, columns=("image", "identity"))
    with pytest.raises(UserError, match="has no cameras"):
        export_dataset(str(tmp_path / "blind"), str(tmp_path / "b.zip"))
    row = {"image": b"\x89PNG", "camera": np.zeros(25, np.float32)}
    for names, says in ((("a.png", "a.png"), "two rows with the name a.png"), (("../a.png",), "leads out")):
        writer = DatasetWriter(uri, 2, {}, columns=("image", "camera", "name"), overwrite=True)
        for name in names:
            writer.write(row | {"name": name})
        writer.close()
        with pytest.raises(UserError, match=says):
            export_dataset(uri, str(tmp_path / "c.zip"))
    assert not (tmp_path / "c.zip").exists() and not list(tmp_path.glob(".*.partial"))


def test_a_shard_that_changed_leaves_no_zip(tmp_path: Path, write_set) -> None:
    manifest = write_set(tmp_path / "set", 5)
    shard = tmp_path / "set" / manifest.shards[0].path
    shard.write_bytes(shard.read_bytes()[:-1])
    (tmp_path / "out.zip").write_bytes(b"the one before")
    with pytest.raises(UserError, match=r"part-00000\.parquet has \d+ bytes and the manifest says"):
        export_dataset(str(tmp_path / "set"), str(tmp_path / "out.zip"), overwrite=True)
    assert (tmp_path / "out.zip").read_bytes() == b"the one before"


FULL = """
import resource, sys
from mimic3d_platform.data.export_eg3d import export_dataset
from mimic3d_platform.errors import UserError
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    export_dataset(sys.argv[1], sys.argv[2])
except UserError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, write_set) -> None:
    write_set(tmp_path / "set", 1002)
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "set"), str(tmp_path / "out.zip")],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
    )
    assert done.returncode == 0, done.stderr
    assert f"cannot write {tmp_path}/out.zip" in done.stdout and done.stdout.count("\n") == 1
    assert not (tmp_path / "out.zip").exists() and not list(tmp_path.glob(".*.partial"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 60_000


def test_an_upload_of_several_parts_appears_whole_or_not_at_all(s3_folder: str) -> None:
    block = np.random.default_rng(0).bytes(3 * 2**20)
    with storage.atomic_write(f"{s3_folder}/large.bin") as file:
        for _ in range(7):
            file.write(block)
        assert not storage.exists(f"{s3_folder}/large.bin")
    assert storage.read_bytes(f"{s3_folder}/large.bin") == block * 7
    with pytest.raises(RuntimeError), storage.atomic_write(f"{s3_folder}/never.bin") as file:
        file.write(block * 7)
        raise RuntimeError
    assert not storage.exists(f"{s3_folder}/never.bin")
    bucket, key = storage.split_s3(f"{s3_folder}/never.bin")
    left = storage.s3_client().list_multipart_uploads(Bucket=bucket, Prefix=key)
    assert not left.get("Uploads")
