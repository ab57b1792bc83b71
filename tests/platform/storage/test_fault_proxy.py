"""The proxy does what it is told to a real object store, and nothing to what it is not told of."""

import os
import time
from collections.abc import Iterator

import pytest

from fault_proxy import FaultProxy
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import get_settings


@pytest.fixture
def proxy(stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(get_settings().s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def test_it_passes_on_what_it_is_not_told_to_spoil(proxy: FaultProxy, s3_folder: str) -> None:
    data = os.urandom(12 * 2**20)  # Several parts.
    storage.write_bytes(f"{s3_folder}/large", data)
    assert storage.read_bytes(f"{s3_folder}/large") == data
    client, (bucket, key) = storage.s3_client(), storage.split_s3(f"{s3_folder}/boto")
    client.put_object(Bucket=bucket, Key=key, Body=data[:100_000])
    assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == data[:100_000]
    assert proxy.count("GET", "/large") >= 1 and proxy.count("PUT", "/boto") == 1


def test_it_spoils_what_it_is_told_to(proxy: FaultProxy, s3_folder: str) -> None:
    storage.write_bytes(f"{s3_folder}/file", bytes(1000))
    files, path = storage.arrow_filesystem(f"{s3_folder}/file")  # It verifies no checksum.
    spoilt = proxy.corrupt(path="/file", times=1)
    with files.open_input_file(path) as stream:
        assert stream.read() == bytes(500) + b"\1" + bytes(499)
    assert spoilt.hits == 1 and storage.read_bytes(f"{s3_folder}/file") == bytes(1000)
    late = proxy.delay(0.5, path="/file", times=1)
    began = time.monotonic()
    assert storage.read_bytes(f"{s3_folder}/file") == bytes(1000)
    assert late.hits == 1 and time.monotonic() - began > 0.5
    refused = proxy.answer(403, path="/file")
    with pytest.raises(UserError):
        storage.read_bytes(f"{s3_folder}/file")
    assert refused.hits >= 1
    proxy.cut()
    with pytest.raises(UserError):
        storage.read_bytes(f"{s3_folder}/other")
    proxy.heal()
    assert storage.read_bytes(f"{s3_folder}/file") == bytes(1000)
