"""S3: its address and credentials, resolved once for pyarrow, s3fs and boto3 alike.

Endpoint and region come from `settings`. The key pair does too; without one, each library searches Amazon's
own chain (profile, web identity, instance role). A custom endpoint is addressed by path
(`endpoint/bucket/key`). Requests have short timeouts and few attempts: `retries` decides how long errors are
retried.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import SecretStr

from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import Settings, get_settings

if TYPE_CHECKING:
    from botocore.client import BaseClient

CONNECT_TIMEOUT_S = 3.0
REQUEST_TIMEOUT_S = 30.0
ATTEMPTS = 3

DEFAULT_REGION = "us-east-1"

NO_CREDENTIALS = (
    "no credentials for object storage; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "or run `mimic3d up` for a stack of your own"
)


@dataclass(frozen=True)
class S3Access:
    """Address and credentials of S3; hashable, without secrets in its repr.

    Attributes:
        endpoint: a URL; None for Amazon's own.
        ca_bundle: the file of certificates to trust; None for the system's.
        access_key: None, like the other two, where the library is to search Amazon's chain.
        chain: what the search depends on, by environment variables; empty where there is a key pair.
    """

    endpoint: str | None
    region: str
    ca_bundle: str | None
    access_key: str | None = field(repr=False)
    secret_key: str | None = field(repr=False)
    session_token: str | None = field(repr=False)
    chain: tuple[tuple[str, str], ...] = field(repr=False)

    @property
    def addressing_style(self) -> str:
        """botocore's `addressing_style`."""
        return "path" if self.endpoint else "auto"


def s3_access(settings: Settings | None = None) -> S3Access:
    """The access that the settings describe, or those of `get_settings` now.

    Raises:
        UserError: half of a key pair is missing, or there are no credentials at all.
    """
    settings = settings or get_settings()
    key, secret = _reveal(settings.aws_access_key_id), _reveal(settings.aws_secret_access_key)
    if bool(key) != bool(secret):
        missing = "AWS_SECRET_ACCESS_KEY" if key else "AWS_ACCESS_KEY_ID"
        raise UserError(f"{missing} is not set though the other half of the key pair is; set both or none")
    chain: tuple[tuple[str, str], ...] = ()
    if not key:
        chain = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
        _require_credentials(chain)
    return S3Access(
        endpoint=settings.s3_endpoint,
        region=settings.aws_region or DEFAULT_REGION,
        ca_bundle=os.environ.get("AWS_CA_BUNDLE") or None,
        access_key=key,
        secret_key=secret,
        session_token=_reveal(settings.aws_session_token) if key else None,
        chain=chain,
    )


def s3_client(settings: Settings | None = None) -> BaseClient:
    """A boto3 client, for buckets, and for transfers of large files.

    Args:
        settings: those of `get_settings` if not given.
    Raises:
        UserError: as `s3_access`.
    """
    return _client(s3_access(settings), os.getpid())


@functools.lru_cache(maxsize=4)
def _client(access: S3Access, pid: int) -> BaseClient:
    """A client with `access`, for the process `pid`; threads may share it."""
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        verify=access.ca_bundle,
        endpoint_url=access.endpoint,
        region_name=access.region,
        aws_access_key_id=access.access_key,
        aws_secret_access_key=access.secret_key,
        aws_session_token=access.session_token,
        config=Config(**client_config(access)),
    )


def client_config(access: S3Access) -> dict[str, object]:
    """The arguments of botocore's `Config`, for boto3 and s3fs."""
    return {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": REQUEST_TIMEOUT_S,
        "retries": {"total_max_attempts": ATTEMPTS, "mode": "standard"},
        "s3": {"addressing_style": access.addressing_style},
    }


def bucket_options(access: S3Access) -> dict[str, object]:
    """The arguments of boto3's `create_bucket`: Amazon makes buckets of other regions if these are named."""
    if access.endpoint or access.region == DEFAULT_REGION:
        return {}
    return {"CreateBucketConfiguration": {"LocationConstraint": access.region}}


def _reveal(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


@functools.lru_cache(maxsize=4)
def _require_credentials(chain: tuple[tuple[str, str], ...]) -> None:
    """Raises a `UserError` if Amazon's chain has no credentials; that it has some is remembered.

    Args:
        chain: the environment variables that it depends on.
    """
    import botocore.session

    session = botocore.session.Session()
    session.set_config_variable("metadata_service_timeout", 1)
    session.set_config_variable("metadata_service_num_attempts", 1)
    if session.get_credentials() is None:
        raise UserError(NO_CREDENTIALS)
