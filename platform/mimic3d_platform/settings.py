"""Addresses and credentials of the services: from the environment, the local stack, or an AWS profile.

The stack that `mimic3d up` makes writes its addresses and credentials to one private file (`stack_file`, mode
0600). A variable of the environment always wins over the stack, and the stack over an AWS profile. Two rules
keep credentials with their owner: a key pair is taken whole from one place, and the stack's keys are never
offered to an endpoint that is not the stack's.
"""

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from mimic3d_platform.errors import UserError

# The folder that holds all training runs and sweeps, where no other is given.
DEFAULT_RUNS_URI = "s3://mimic3d/runs"

# Addresses, and what belongs to them: taken from the stack's file only where the addresses are the stack's.
_GROUPS = {
    ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"): (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
    ),
    ("MLFLOW_TRACKING_URI",): (
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
    ),
    ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"): (
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
    ),
}
_PROFILE_FILES = {
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
}
_KEY_PAIR = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
# The first of these wins. botocore reads the same endpoints, and of the regions the second.
_S3_ENDPOINT, _ENDPOINT = "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_FOLDERS = ("MIMIC3D_HOME", "MIMIC3D_CACHE", "RAY_AUTH_TOKEN_PATH")


def default_home() -> Path:
    """The folder of the stack's state and of caches: `$MIMIC3D_HOME`, else `~/.local/share/mimic3d`."""
    named = os.environ.get("MIMIC3D_HOME")
    if named and "://" in named:
        raise UserError(f"MIMIC3D_HOME is {named}: name a folder of this machine")
    return Path(named).expanduser().absolute() if named else Path.home() / ".local" / "share" / "mimic3d"


def stack_file(home: Path) -> Path:
    """The private file in which the stack under `home` leaves its addresses and credentials (JSON, 0600)."""
    return home / "stack" / "environment.json"


class Settings(BaseSettings):
    """Endpoints and credentials. Secrets are `SecretStr`: they show in no repr, log or message."""

    model_config = SettingsConfigDict(populate_by_name=True, extra="ignore", env_ignore_empty=True)

    home: Path = Field(default_factory=default_home, validation_alias="MIMIC3D_HOME")
    s3_endpoint: str | None = Field(
        None, validation_alias=AliasChoices(_S3_ENDPOINT, _ENDPOINT), serialization_alias=_ENDPOINT
    )
    aws_access_key_id: SecretStr | None = Field(None, validation_alias="AWS_ACCESS_KEY_ID")
    aws_secret_access_key: SecretStr | None = Field(None, validation_alias="AWS_SECRET_ACCESS_KEY")
    aws_session_token: SecretStr | None = Field(None, validation_alias="AWS_SESSION_TOKEN")
    aws_region: str | None = Field(
        None, validation_alias=AliasChoices(*_REGIONS), serialization_alias=_REGIONS[0]
    )
    mlflow_tracking_uri: str | None = Field(None, validation_alias="MLFLOW_TRACKING_URI")
    # A team's MLflow asks for a login; MLflow itself reads it from these variables.
    mlflow_username: SecretStr | None = Field(None, validation_alias="MLFLOW_TRACKING_USERNAME")
    mlflow_password: SecretStr | None = Field(None, validation_alias="MLFLOW_TRACKING_PASSWORD")
    mlflow_token: SecretStr | None = Field(None, validation_alias="MLFLOW_TRACKING_TOKEN")
    ray_address: str | None = Field(None, validation_alias="RAY_ADDRESS")
    # Ray's own name for its dashboard, to which jobs are submitted.
    ray_dashboard: str | None = Field(None, validation_alias="RAY_API_SERVER_ADDRESS")
    ray_auth_mode: str | None = Field(None, validation_alias="RAY_AUTH_MODE")
    ray_auth_token_path: Path | None = Field(None, validation_alias="RAY_AUTH_TOKEN_PATH")
    # Ray's own name for "a cluster beyond this machine"; "0" keeps it and its drivers on 127.0.0.1.
    ray_beyond_loopback: str | None = Field(None, validation_alias="RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    # How long a command retries transient errors of storage; a training retries longer (`data.patience_s`).
    patience_s: float = Field(3.0, ge=0, validation_alias="MIMIC3D_PATIENCE_S")
    # Where shards are kept on this machine; a fast local disk.
    cache_folder: Path | None = Field(None, validation_alias="MIMIC3D_CACHE")
    weights_uri: str | None = Field(None, validation_alias="MIMIC3D_WEIGHTS")

    @field_validator("cache_folder", mode="before")
    @classmethod
    def _on_this_machine(cls, value: object) -> object:
        if "://" in str(value):
            raise ValueError("name a folder of this machine")
        return value

    def export(self) -> dict[str, str]:
        """The environment that a child process needs to use the same services; holds secrets."""
        variables: dict[str, str] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value is not None:
                variable = str(field.serialization_alias or field.validation_alias)
                secret = isinstance(value, SecretStr)
                variables[variable] = value.get_secret_value() if secret else str(value)
        if self.s3_endpoint and os.environ.get(_S3_ENDPOINT):
            variables[_S3_ENDPOINT] = self.s3_endpoint  # Else the child's own would win over the other.
        return variables


def child_environment() -> dict[str, str]:
    """This process's environment without credentials, for child processes that use no service of ours."""
    secrets = {
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "RAY_AUTH_TOKEN",
    }
    return {
        name: value
        for name, value in os.environ.items()
        if name not in secrets and not name.startswith(("AWS_", "PGPASS"))
    }


@contextlib.contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of this process's environment during the block, then restores them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def use_services() -> Settings:
    """Put the settings into this process's environment, for libraries that read only that.

    Call it before Ray or MLflow is imported: Ray reads some of them on import.
    """
    settings = get_settings()
    os.environ.update(settings.export())
    return settings


def use_services_of(environment: Mapping[str, str]) -> None:
    """Puts a driver's `Settings.export` into the environment of a worker process.

    Folders stay this node's own where its environment names them: the driver may run on another machine.
    """
    for name, value in environment.items():
        if name in _FOLDERS:
            os.environ.setdefault(name, value)
        else:
            os.environ[name] = value


def get_settings() -> Settings:
    """Read the settings as they are now: the environment, then the stack's file, then the AWS profile.

    Raises:
        UserError: the stack's file or the AWS profile cannot be read.
    """
    home = default_home()
    taken = _from_stack(home)
    if _ENDPOINT not in taken:
        taken |= _from_profile()
    values: dict[str, Any] = {"MIMIC3D_HOME": home, **taken}
    try:
        return Settings(**values)
    except ValidationError as error:
        wrong = ", ".join(str(item["loc"][0]) for item in error.errors())
        raise UserError(
            f"the environment variables {wrong} have values that cannot be used: correct them"
        ) from None


def _from_stack(home: Path) -> dict[str, str]:
    """The values of the stack's file that the environment leaves open."""
    stored = _read_stack_file(home)
    if _ENDPOINT in stored:
        stored[_S3_ENDPOINT] = stored[_ENDPOINT]
    given = {name for name, value in os.environ.items() if value}
    taken: dict[str, str] = {}
    for addresses, credentials in _GROUPS.items():
        belongings: tuple[str, ...] = credentials
        named = [address for address in addresses if address in given]
        if _S3_ENDPOINT in named:
            named = [_S3_ENDPOINT]
        elsewhere = any(os.environ[it].rstrip("/") != stored.get(it, "").rstrip("/") for it in named)
        if elsewhere or addresses[0] not in stored:
            continue
        # One key of a pair in the environment makes the pair the environment's, even if the other is missing.
        if "AWS_ENDPOINT_URL" in addresses and given.intersection(_KEY_PAIR):
            belongings = ()
        for name in (*addresses, *belongings):
            if name in stored and name not in given:
                taken[name] = stored[name]
    return taken


def _from_profile() -> dict[str, str]:
    """The S3 endpoint and the region of the AWS profile, where the environment leaves them open."""
    named = os.environ.get("AWS_DEFAULT_PROFILE") or os.environ.get("AWS_PROFILE")
    profile = _read_profile(named, *map(_file_state, _PROFILE_FILES))
    variables = {_ENDPOINT: (_S3_ENDPOINT, _ENDPOINT), _REGIONS[0]: _REGIONS}
    return {
        name: profile[name]
        for name, names in variables.items()
        if name in profile and not any(os.environ.get(variable) for variable in names)
    }


def _file_state(variable: str) -> tuple[Path, int] | None:
    """One of botocore's files and its time of change; None if it does not exist."""
    path = Path(os.environ.get(variable) or _PROFILE_FILES[variable]).expanduser()
    return (path, path.stat().st_mtime_ns) if path.is_file() else None


@functools.lru_cache(maxsize=8)
def _read_profile(name: str | None, *files: tuple[Path, int] | None) -> dict[str, str]:
    """The profile's S3 endpoint and region, by the names of their variables.

    Args:
        name: of the profile; None for the default.
        files: what `_file_state` gave.
    """
    if not any(files):
        return {}
    # Most environments need no profile, and botocore takes a third of a second to import.
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    try:
        session = Session(profile=name)
        profile = session.get_scoped_config()
        services = session.full_config.get("services", {}).get(profile.get("services"), {})
    except BotoCoreError as error:
        raise UserError(f"{error}: correct AWS_PROFILE or {_PROFILE_FILES['AWS_CONFIG_FILE']}") from error
    endpoint = services.get("s3", {}).get("endpoint_url") or profile.get("endpoint_url")
    found = {_ENDPOINT: endpoint, _REGIONS[0]: profile.get("region")}
    return {variable: value for variable, value in found.items() if value}


def _read_stack_file(home: Path) -> dict[str, str]:
    path = stack_file(home)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is damaged"
        way_out = "run `mimic3d down`, then `mimic3d up`"
        raise UserError(f"cannot read the stack's settings {path}: {reason}; {way_out}") from None
