"""Storage: one way to every place, and one line for whatever goes wrong there."""

import itertools
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mimic3d_platform import local, storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import get_settings, stack_file

MIB = 2**20


def error_of(action, *arguments) -> str:
    """The message of the one-line error that `action` ends in, within seconds."""
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        action(*arguments)
    assert time.monotonic() - began < 8.0
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Every place alike.


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("s3_folder")


def test_what_is_written_is_read_listed_and_deleted(folder: str) -> None:
    storage.write_bytes(storage.join(folder, "a", "one.bin"), b"one")
    storage.write_bytes(storage.join(folder, "a/b/two.txt"), b"two")
    assert storage.read_bytes(storage.join(folder, "a/one.bin")) == b"one"
    assert storage.list_files(folder) == [f"{folder}/a/b/two.txt", f"{folder}/a/one.bin"]
    assert storage.list_files(folder + "/", suffix=".bin") == [f"{folder}/a/one.bin"]
    assert storage.exists(f"{folder}/a") and storage.exists(f"{folder}/a/one.bin")
    storage.delete_tree(f"{folder}/a/b")
    assert not storage.exists(f"{folder}/a/b") and storage.exists(f"{folder}/a/one.bin")
    storage.delete_tree(f"{folder}/a/one.bin")
    assert not storage.exists(f"{folder}/a/one.bin")
    storage.delete_tree(f"{folder}/never-there")


def test_a_file_that_is_replaced_meanwhile_is_read_whole(folder: str) -> None:
    def content(number: int) -> bytes:
        return b"%05d" % number * (1 + number % 2 * 800)

    place, over = storage.join(folder, "record.json"), threading.Event()
    storage.write_bytes(place, content(0))

    def replace() -> None:
        for number in itertools.count(1):
            if over.is_set():
                return
            storage.write_bytes(place, content(number))
            time.sleep(0.02)

    writer = threading.Thread(target=replace)
    writer.start()
    seen, until = set(), time.monotonic() + 2
    try:
        while time.monotonic() < until:
            seen.add(storage.read_bytes(place))
    finally:
        over.set()
        writer.join()
    assert len(seen) > 2
    assert [data for data in seen if data != content(int(data[:5]))] == []


def test_one_of_many_writers_creates_a_file(folder: str) -> None:
    place = storage.join(folder, "claims", "name.yaml")
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        return storage.create_bytes(place, b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(create, range(8)))
    assert created.count(True) == 1
    assert storage.read_bytes(place) == b"%d" % created.index(True)
    assert not storage.create_bytes(place, b"later")
    assert storage.list_files(folder) == [place]


def test_a_missing_folder_lists_nothing_and_a_missing_file_is_an_error(folder: str) -> None:
    assert storage.list_files(f"{folder}/none") == []
    assert not storage.exists(f"{folder}/none")
    assert f"cannot read {folder}/none" in error_of(storage.read_bytes, f"{folder}/none")


def test_a_tree_is_copied_there_and_back(s3_folder: str, tmp_path: Path) -> None:
    for name in ("x.bin", "deep/er/y.bin"):
        storage.write_bytes(tmp_path / "from" / name, name.encode())
    assert storage.copy_tree(tmp_path / "from", f"{s3_folder}/up/") == 2
    assert storage.copy_tree(f"{s3_folder}/up", tmp_path / "back") == 2
    assert (tmp_path / "back/deep/er/y.bin").read_bytes() == b"deep/er/y.bin"
    assert storage.copy_tree(f"{s3_folder}/up/x.bin", tmp_path / "one" / "z.bin") == 1
    assert (tmp_path / "one/z.bin").read_bytes() == b"x.bin"
    assert "nothing there" in error_of(storage.copy_tree, f"{s3_folder}/none", tmp_path / "no")


def test_several_parts_make_one_object(s3_folder: str) -> None:
    data = os.urandom(12 * MIB + 1)
    storage.write_bytes(f"{s3_folder}/large.bin", data)
    assert storage.read_bytes(f"{s3_folder}/large.bin") == data
    client, (bucket, key) = storage.s3_client(), storage.split_s3(f"{s3_folder}/parts.bin")
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    parts = []
    for number, start in enumerate(range(0, len(data), 6 * MIB), 1):
        part = {"Bucket": bucket, "Key": key, "UploadId": upload, "PartNumber": number}
        sent = client.upload_part(**part, Body=data[start : start + 6 * MIB])
        parts.append({"PartNumber": number, "ETag": sent["ETag"]})
    client.complete_multipart_upload(
        Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
    )
    assert storage.read_bytes(f"{s3_folder}/parts.bin") == data


def test_a_bucket_is_made_once(stack: local.StackStatus) -> None:
    storage.ensure_bucket("s3://mimic3d-test-bucket/folder")
    storage.ensure_bucket("s3://mimic3d-test-bucket")
    assert not storage.exists("s3://mimic3d-test-bucket/folder")
    storage.s3_client().delete_bucket(Bucket="mimic3d-test-bucket")


# Local files.


def test_a_local_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    storage.write_bytes(path, b"old")
    path.chmod(0o640)
    storage.write_bytes(path.as_uri(), b"new")
    assert path.read_bytes() == b"new"
    assert not stat.S_IMODE(path.stat().st_mode) & 0o111
    # The attempt fails when the parts are put together: the old content stays and no part is left.
    with pytest.raises(TypeError):
        storage.write_bytes(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_a_private_file_is_its_owners(tmp_path: Path) -> None:
    with storage.atomic_file(tmp_path / "folder" / "keys", private=True) as file:
        file.write(b"secret")
        assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "folder").iterdir()] == [0o600]
    assert (tmp_path / "folder" / "keys").read_bytes() == b"secret"
    assert stat.S_IMODE((tmp_path / "folder" / "keys").stat().st_mode) == 0o600


def test_links_are_followed_and_unfinished_files_left_out(tmp_path: Path) -> None:
    storage.write_bytes(tmp_path / "elsewhere" / "file", b"content")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "elsewhere")
    with storage.atomic_file(tmp_path / "folder" / "half"):
        assert storage.file_sizes(tmp_path / "folder") == {f"{tmp_path}/folder/link/file": 7}
    storage.delete_tree(tmp_path / "folder")
    assert (tmp_path / "elsewhere" / "file").exists()


def test_a_full_disk_is_one_line() -> None:
    assert "no space is left" in error_of(storage.write_bytes, "/dev/full", b"x" * 4096)


def test_a_place_that_takes_no_files_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    said = error_of(storage.write_bytes, tmp_path / "file" / "below", b"x")
    assert str(tmp_path / "file" / "below") in said


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_forbidden_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "no permission" in error_of(storage.write_bytes, tmp_path / "file", b"x")


# Object storage that refuses.


@pytest.mark.parametrize("uri", ["gs://bucket/key", "http://host/key", "s3://", "s3:///key", ""])
def test_a_uri_that_names_no_place_is_one_line(uri: str) -> None:
    error_of(storage.read_bytes, uri)


def test_a_missing_bucket_is_one_line_and_is_not_made(stack: local.StackStatus) -> None:
    assert "no-such-bucket" in error_of(storage.read_bytes, "s3://no-such-bucket/key")
    assert "no-such-bucket" in error_of(storage.write_bytes, "s3://no-such-bucket/key", b"x")
    assert "whole bucket" in error_of(storage.delete_tree, "s3://mimic3d/")


ACTIONS = [
    storage.read_bytes,
    storage.exists,
    storage.list_files,
    storage.delete_tree,
    storage.ensure_bucket,
    lambda uri: storage.write_bytes(uri, b"x"),
]


@pytest.mark.parametrize("action", ACTIONS)
def test_wrong_credentials_are_one_line(stack, action, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    said = error_of(action, "s3://mimic3d/key")
    assert "AWS_SECRET_ACCESS_KEY" in said and "not-the-secret" not in said
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    assert "AWS_ACCESS_KEY_ID" in error_of(action, "s3://mimic3d/key")


@pytest.mark.parametrize("action", ACTIONS)
def test_a_dead_server_is_one_line_within_seconds(action, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert "nothing answers at http://127.0.0.1:9" in error_of(action, "s3://mimic3d/key")


def test_no_credentials_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MIMIC3D_HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "no credentials" in error_of(storage.read_bytes, "s3://mimic3d/key")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "half")
    assert "AWS_SECRET_ACCESS_KEY is not set" in error_of(storage.read_bytes, "s3://mimic3d/key")


# Whose keys are offered to whom.

STORED = """{"AWS_ENDPOINT_URL": "http://127.0.0.1:20001", "AWS_ACCESS_KEY_ID": "stack",
 "AWS_SECRET_ACCESS_KEY": "stack-secret", "MLFLOW_TRACKING_URI": "http://127.0.0.1:20002",
 "RAY_ADDRESS": "127.0.0.1:20003", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/token"}"""


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack's file, and an environment that names nothing."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "MLFLOW_", "RAY_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MIMIC3D_HOME", str(tmp_path))
    stack_file(tmp_path).parent.mkdir()
    stack_file(tmp_path).write_text(STORED, encoding="utf-8")


def test_the_stack_fills_what_the_environment_leaves_open(stored, monkeypatch) -> None:
    settings = get_settings()
    assert settings.export()["AWS_SECRET_ACCESS_KEY"] == "stack-secret"
    assert settings.ray_address == "127.0.0.1:20003" and settings.ray_auth_mode == "token"
    assert "stack-secret" not in repr(settings)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert get_settings().mlflow_tracking_uri == "http://elsewhere"
    assert get_settings().s3_endpoint == "http://127.0.0.1:20001"


def test_the_stacks_keys_stay_with_the_stack(stored, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://elsewhere")
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    settings = get_settings()
    assert settings.aws_access_key_id is None and settings.ray_auth_token_path is None


def test_a_pair_of_keys_is_never_mixed(stored, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    settings = get_settings()
    assert settings.aws_secret_access_key is None and settings.s3_endpoint == "http://127.0.0.1:20001"


def test_a_damaged_stack_file_is_one_line(stored, tmp_path: Path) -> None:
    stack_file(tmp_path).write_text("{", encoding="utf-8")
    assert str(stack_file(tmp_path)) in error_of(get_settings)


def test_a_relative_place_is_the_same_in_every_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("cars") == str(tmp_path / "cars")
    for same in ("", "/data/cars", "s3://bucket/cars", "models:/cars@champion", "models:/cars/3"):
        assert storage.absolute(same) == same
