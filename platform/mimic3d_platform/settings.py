"""Where the services are and how to be let in: the environment first, else the stack `mimic3d up` made.

The stack writes its addresses and credentials to one private file (`Settings.stack_file`, mode 0600); a
variable of the environment always wins over it. Two rules keep credentials with their owner: a key pair is
taken whole from one place, and the stack's keys are never offered to an endpoint that is not the stack's.
"""

import json
import os
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from mimic3d_platform.errors import UserError

# The folder that holds all training runs and sweeps, where no other is given.
DEFAULT_RUNS_URI = "s3://mimic3d/runs"

# Addresses, and what belongs to them: taken from the stack's file only where the addresses are the stack's.
_GROUPS = {
    ("AWS_ENDPOINT_URL",): ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
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
_KEY_PAIR = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def default_home() -> Path:
    """The folder of the stack's state and of caches: `$MIMIC3D_HOME`, else `~/.local/share/mimic3d`."""
    named = os.environ.get("MIMIC3D_HOME")
    return Path(named).expanduser().absolute() if named else Path.home() / ".local" / "share" / "mimic3d"


def stack_file(home: Path) -> Path:
    """The private file in which the stack under `home` leaves its addresses and credentials (JSON, 0600)."""
    return home / "stack" / "environment.json"


class Settings(BaseSettings):
    """Endpoints and credentials. Secrets are `SecretStr`: they show in no repr, log or message."""

    model_config = SettingsConfigDict(populate_by_name=True, extra="ignore", env_ignore_empty=True)

    home: Path = Field(default_factory=default_home, validation_alias="MIMIC3D_HOME")
    s3_endpoint: str | None = Field(None, validation_alias="AWS_ENDPOINT_URL")
    aws_access_key_id: SecretStr | None = Field(None, validation_alias="AWS_ACCESS_KEY_ID")
    aws_secret_access_key: SecretStr | None = Field(None, validation_alias="AWS_SECRET_ACCESS_KEY")
    aws_session_token: SecretStr | None = Field(None, validation_alias="AWS_SESSION_TOKEN")
    aws_region: str = Field("us-east-1", validation_alias="AWS_REGION")
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
    # How long a fault of storage that may pass is waited for; a training waits longer (`data.patience_s`).
    patience_s: float = Field(3.0, ge=0, validation_alias="MIMIC3D_PATIENCE_S")
    # Where shards are kept on this machine; a fast local disk.
    cache_folder: Path | None = Field(None, validation_alias="MIMIC3D_CACHE")
    weights_uri: str | None = Field(None, validation_alias="MIMIC3D_WEIGHTS")

    def export(self) -> dict[str, str]:
        """The environment a child process needs to see the same services; holds secrets."""
        variables: dict[str, str] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value is not None:
                secret = isinstance(value, SecretStr)
                variables[str(field.validation_alias)] = value.get_secret_value() if secret else str(value)
        return variables


def use_services() -> Settings:
    """Put the settings into this process's environment, for libraries that read only that.

    Call it before Ray or MLflow is imported: Ray reads some of them on import.
    """
    settings = get_settings()
    os.environ.update(settings.export())
    return settings


def get_settings() -> Settings:
    """Read the settings as they are now (the environment, then the stack's file); nothing is cached.

    Raises:
        UserError: the stack's file cannot be read.
    """
    home = default_home()
    try:
        return Settings(MIMIC3D_HOME=home, **_from_stack(home))
    except ValidationError as error:
        wrong = ", ".join(str(item["loc"][0]) for item in error.errors())
        raise UserError(
            f"the environment variables {wrong} have values that cannot be used: correct them"
        ) from None


def _from_stack(home: Path) -> dict[str, str]:
    """The values of the stack's file that the environment leaves open."""
    stored = _read_stack_file(home)
    given = {name for name, value in os.environ.items() if value}
    taken: dict[str, str] = {}
    for addresses, belongings in _GROUPS.items():
        named = [address for address in addresses if address in given]
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


def _read_stack_file(home: Path) -> dict[str, str]:
    path = stack_file(home)
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is damaged"
        way_out = "run `mimic3d down`, then `mimic3d up`"
        raise UserError(f"cannot read the stack's settings {path}: {reason}; {way_out}") from None
