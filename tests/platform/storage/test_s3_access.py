"""Endpoint, region and credentials: found as botocore finds them, the same for pyarrow, s3fs and boto3."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mimic3d_platform import local, storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import get_settings, stack_file
from mimic3d_platform.storage.s3 import bucket_options, s3_access

CONFIG = """
[default]
region = eu-west-1

[profile lab]
region = eu-central-1
endpoint_url = http://lab.test:9000

[profile split]
services = several

[services several]
s3 =
    endpoint_url = http://s3.test:9000
    addressing_style = path
"""


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """`profile(config, credentials)`: an environment that has only these files of AWS."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MIMIC3D_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def write(config: str, credentials: str = "") -> None:
        for variable, content in (("AWS_CONFIG_FILE", config), ("AWS_SHARED_CREDENTIALS_FILE", credentials)):
            (tmp_path / variable).write_text(content, encoding="utf-8")
            monkeypatch.setenv(variable, str(tmp_path / variable))

    return write


def test_region_and_endpoint_are_those_of_the_profile(profile, monkeypatch) -> None:
    profile(CONFIG)
    assert get_settings().aws_region == "eu-west-1" and get_settings().s3_endpoint is None
    monkeypatch.setenv("AWS_PROFILE", "lab")
    exported = get_settings().export()
    assert exported["AWS_REGION"] == "eu-central-1" and exported["AWS_ENDPOINT_URL"] == "http://lab.test:9000"
    monkeypatch.setenv("AWS_PROFILE", "split")
    assert get_settings().s3_endpoint == "http://s3.test:9000" and get_settings().aws_region is None


def test_the_environment_wins_over_the_profile(profile, monkeypatch) -> None:
    profile(CONFIG)
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all.test")
    assert get_settings().aws_region == "us-west-2" and get_settings().s3_endpoint == "http://all.test"
    monkeypatch.setenv("AWS_REGION", "sa-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3.test")
    settings = get_settings()
    assert settings.aws_region == "sa-east-1" and settings.s3_endpoint == "http://s3.test"
    assert (
        settings.export()["AWS_ENDPOINT_URL"] == settings.export()["AWS_ENDPOINT_URL_S3"] == "http://s3.test"
    )


def test_all_three_libraries_get_the_same_access(profile, monkeypatch) -> None:
    profile(CONFIG, "[lab]\naws_access_key_id = someone\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert storage.s3_client().meta.region_name == "eu-central-1"
    assert storage.s3_client().meta.endpoint_url == "http://lab.test:9000"
    arrow, _ = storage.arrow_filesystem("s3://bucket/key")
    assert arrow.region == "eu-central-1"
    fsspec, path = storage.open_filesystem("s3://bucket/key")
    assert fsspec.s3.meta.region_name == "eu-central-1" and path == "bucket/key"
    assert fsspec.s3.meta.endpoint_url == "http://lab.test:9000"


def test_without_a_region_it_is_amazons_first(profile, monkeypatch) -> None:
    profile("")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert s3_access().region == "us-east-1" and s3_access().endpoint is None
    assert bucket_options(s3_access()) == {}
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert bucket_options(s3_access())["CreateBucketConfiguration"] == {"LocationConstraint": "eu-west-1"}
    assert "secret" not in repr(s3_access())


def test_a_profile_that_is_not_there_is_one_line(profile, monkeypatch) -> None:
    profile(CONFIG)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UserError, match=r"nobody.*correct AWS_PROFILE"):
        storage.read_bytes("s3://bucket/key")


def test_the_stack_wins_over_a_profile_and_keeps_its_keys(profile, monkeypatch, tmp_path: Path) -> None:
    profile(CONFIG)
    stack_file(tmp_path / "home").parent.mkdir(parents=True)
    stack_file(tmp_path / "home").write_text(
        '{"AWS_ENDPOINT_URL": "http://127.0.0.1:20001", "AWS_ACCESS_KEY_ID": "stack", '
        '"AWS_SECRET_ACCESS_KEY": "stack-secret"}',
        encoding="utf-8",
    )
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert get_settings().s3_endpoint == "http://127.0.0.1:20001"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://elsewhere.test")
    assert get_settings().s3_endpoint == "http://elsewhere.test"
    assert get_settings().aws_access_key_id is None
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:20001/")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere.test")
    assert s3_access().access_key == "stack"


def test_a_profiles_endpoint_and_keys_reach_a_real_store(
    stack: local.StackStatus, s3_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = s3_access()
    config = f"[profile lab]\nendpoint_url = {known.endpoint}\nregion = eu-central-1\n"
    keys = f"aws_access_key_id = {known.access_key}\naws_secret_access_key = {known.secret_key}\n"
    place = f"{s3_folder}/folder/file"
    with monkeypatch.context() as patched:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patched.delenv(name)
        for variable, content in (
            ("AWS_CONFIG_FILE", config),
            ("AWS_SHARED_CREDENTIALS_FILE", f"[lab]\n{keys}"),
        ):
            (tmp_path / variable).write_text(content, encoding="utf-8")
            patched.setenv(variable, str(tmp_path / variable))
        patched.setenv("MIMIC3D_HOME", str(tmp_path / "home"))
        patched.setenv("AWS_PROFILE", "lab")
        assert get_settings().aws_access_key_id is None
        storage.ensure_bucket(place)
        storage.write_bytes(place, b"content")
        assert storage.read_bytes(place) == b"content" and storage.list_files(s3_folder) == [place]
        files, path = storage.arrow_filesystem(place)
        with files.open_input_file(path) as stream:
            assert stream.read() == b"content"
    assert storage.exists(place)


def _read(place: str, answers) -> None:
    files, path = storage.arrow_filesystem(place)
    with files.open_input_file(path) as stream:
        answers.put((storage.read_bytes(place), stream.read(), storage.list_files(place.rpartition("/")[0])))


def test_a_forked_child_opens_file_systems_of_its_own(s3_folder: str) -> None:
    storage.write_bytes(f"{s3_folder}/file", b"content")
    assert storage.read_bytes(f"{s3_folder}/file") == b"content"
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_read, args=(f"{s3_folder}/file", answers), daemon=True)
    child.start()
    child.join(timeout=100)
    assert child.exitcode == 0
    assert answers.get() == (b"content", b"content", [f"{s3_folder}/file"])
