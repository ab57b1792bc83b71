"""Faults of object storage, whichever function meets them: transient ones pass, others are one line.

On the real object store, behind a proxy that cuts, delays, corrupts and refuses as it is told.
"""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fault_proxy import FaultProxy
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import get_settings
from mimic3d_platform.storage import StorageError

CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def proxy(stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(get_settings().s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def copy_up(uri: str, scratch: Path) -> bytes:
    (scratch / "up").write_bytes(CONTENT)
    storage.copy_tree(scratch / "up", uri + "-copy")
    return storage.read_bytes(uri + "-copy")


def copy_down(uri: str, scratch: Path) -> bytes:
    storage.copy_tree(uri, scratch / "down")
    return (scratch / "down").read_bytes()


def copy_across(uri: str, scratch: Path) -> bytes:
    storage.copy_tree(uri, uri + "-other")
    return storage.read_bytes(uri + "-other")


def write(uri: str, scratch: Path) -> bytes:
    storage.write_bytes(uri + "-new", CONTENT)
    return storage.read_bytes(uri + "-new")


def delete(uri: str, scratch: Path) -> bytes:
    storage.write_bytes(uri + "-old/file", CONTENT)
    storage.delete_tree(uri + "-old")
    assert not storage.exists(uri + "-old")
    return CONTENT


def look(uri: str, scratch: Path) -> bytes:
    assert storage.exists(uri)
    assert storage.list_files(uri.rpartition("/")[0]) == [uri]
    return CONTENT


ACTIONS: dict[str, Callable[[str, Path], bytes]] = {
    "read": lambda uri, scratch: storage.read_bytes(uri),
    "write": write,
    "look": look,
    "delete": delete,
    "copy up": copy_up,
    "copy down": copy_down,
    "copy across": copy_across,
}
PASSING: dict[str, Callable[[FaultProxy], object]] = {
    "a busy server": lambda proxy: proxy.answer(503, path="/test-", times=4),
    "a server out of order": lambda proxy: proxy.answer(500, path="/test-", times=4),
    "a transfer cut short": lambda proxy: proxy.truncate(path="/test-", times=2),
    "a bit flipped on its way": lambda proxy: proxy.corrupt(path="/file", times=1),
    "a late server": lambda proxy: proxy.delay(0.3, path="/test-", times=4),
    "an outage": lambda proxy: proxy.cut(1.0),
}


@pytest.mark.parametrize("what", PASSING)
@pytest.mark.parametrize("action", ACTIONS)
def test_what_passes_changes_nothing(
    action: str, what: str, proxy: FaultProxy, s3_folder: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("MIMIC3D_PATIENCE_S", "30")
    storage.write_bytes(f"{s3_folder}/file", CONTENT)
    PASSING[what](proxy)
    assert ACTIONS[action](f"{s3_folder}/file", tmp_path) == CONTENT


LASTING: dict[str, tuple[Callable[[FaultProxy], object], str, bool]] = {
    "a busy server": (lambda proxy: proxy.answer(503, path="/test-"), "too busy or out of order", True),
    "expired keys": (lambda proxy: proxy.answer(403, path="/test-"), "have expired; renew", False),
    "an outage": (lambda proxy: proxy.cut(), "nothing answers at", True),
}


@pytest.mark.parametrize("what", LASTING)
@pytest.mark.parametrize("action", ACTIONS)
def test_what_lasts_is_one_line(
    action: str, what: str, proxy: FaultProxy, s3_folder: str, tmp_path: Path, monkeypatch
) -> None:
    storage.write_bytes(f"{s3_folder}/file", CONTENT)
    spoil, says, transient = LASTING[what]
    spoil(proxy)
    monkeypatch.setenv("MIMIC3D_PATIENCE_S", "0")
    with pytest.raises(StorageError) as caught:
        ACTIONS[action](f"{s3_folder}/file", tmp_path)
    proxy.heal()
    said = str(caught.value)
    assert says in said and s3_folder in said and "\n" not in said
    assert caught.value.transient == transient


def test_a_server_that_is_silent_is_given_up(
    proxy: FaultProxy, s3_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimic3d_platform.storage.s3.REQUEST_TIMEOUT_S", 0.5)
    storage.write_bytes(f"{s3_folder}/file", CONTENT)
    proxy.stall(method="GET", path="/file")
    began = time.monotonic()
    with pytest.raises(UserError, match="nothing answers at"):
        storage.read_bytes(f"{s3_folder}/file", patience_s=0)
    assert time.monotonic() - began < 20
    proxy.heal()
    assert storage.read_bytes(f"{s3_folder}/file") == CONTENT


def test_a_copy_of_what_is_replaced_meanwhile_is_one_or_the_other(
    proxy: FaultProxy, s3_folder: str, tmp_path: Path
) -> None:
    contents = [number * 20 * 2**20 for number in (b"1", b"2")]
    storage.write_bytes(f"{s3_folder}/file", contents[0])
    proxy.throttle(20e6, method="GET", path="/file")
    replacing = threading.Timer(0.5, storage.write_bytes, (f"{s3_folder}/file", contents[1]))
    replacing.start()
    storage.copy_tree(f"{s3_folder}/file", tmp_path / "copy")
    replacing.join()
    assert (tmp_path / "copy").read_bytes() in contents


def test_nothing_is_remembered_of_what_others_change(s3_folder: str) -> None:
    client, (bucket, key) = storage.s3_client(), storage.split_s3(f"{s3_folder}/folder/file")
    assert storage.list_files(s3_folder) == [] and not storage.exists(f"{s3_folder}/folder/file")
    client.put_object(Bucket=bucket, Key=key, Body=b"one")
    assert storage.file_sizes(s3_folder) == {f"{s3_folder}/folder/file": 3}
    assert storage.exists(f"{s3_folder}/folder") and storage.read_bytes(f"{s3_folder}/folder/file") == b"one"
    client.put_object(Bucket=bucket, Key=key, Body=b"other")
    assert storage.file_sizes(s3_folder) == {f"{s3_folder}/folder/file": 5}
    assert storage.read_bytes(f"{s3_folder}/folder/file") == b"other"
    client.delete_object(Bucket=bucket, Key=key)
    assert storage.list_files(s3_folder) == [] and not storage.exists(f"{s3_folder}/folder")


def test_markers_of_folders_are_no_files_and_go_with_the_tree(s3_folder: str) -> None:
    client, (bucket, key) = storage.s3_client(), storage.split_s3(f"{s3_folder}/tree")
    for name in ("", "/empty/", "/full/"):
        client.put_object(Bucket=bucket, Key=f"{key}{name or '/'}", Body=b"")
    storage.write_bytes(f"{s3_folder}/tree/full/file with space & ümlaut", b"x")
    assert storage.list_files(f"{s3_folder}/tree") == [f"{s3_folder}/tree/full/file with space & ümlaut"]
    storage.delete_tree(f"{s3_folder}/tree")
    left = client.list_objects_v2(Bucket=bucket, Prefix=key).get("Contents", [])
    assert left == [] and not storage.exists(f"{s3_folder}/tree")
