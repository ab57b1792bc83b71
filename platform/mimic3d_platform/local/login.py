"""MLflow's own login on the local stack: on a shared machine every user reaches the ports of loopback.

Object storage and Ray always ask for their secrets; MLflow does where `mimic3d up --login` was given.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from mimic3d_platform.errors import UserError
from mimic3d_platform.local.state import Stack, write_private

USER = "mimic3d"


def choose_login(stack: Stack, wanted: bool | None) -> tuple[bool, bool]:
    """Returns whether MLflow asks for a login, and whether that differs from last time's.

    Args:
        wanted: None for last time's choice, at first no login.
    Raises:
        UserError: the package that MLflow needs for it is not installed.
    """
    before = _config(stack).is_file()
    login = before if wanted is None else wanted
    if login and importlib.util.find_spec("flask_wtf") is None:
        raise UserError("MLflow's login needs the package Flask-WTF: pip install 'mimic3d[server]'")
    return login, login != before


def write_login(stack: Stack, login: bool) -> list[str]:
    """Writes the configuration of MLflow's login, or deletes it; returns the options of `mlflow server`."""
    path = _config(stack)
    if not login:
        path.unlink(missing_ok=True)
        return []
    database = stack.folder / "mlflow" / "logins.db"
    write_private(
        path,
        "[mlflow]\n"
        f"database_uri = sqlite:///{database}\n"
        "default_permission = EDIT\n"
        f"admin_username = {USER}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
    )
    return ["--app-name", "basic-auth"]


def server_variables(stack: Stack, secrets: Mapping[str, str]) -> dict[str, str]:
    """Returns what the server reads from its environment: its configuration and secrets."""
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(_config(stack)),
        "MLFLOW_AUTH_ADMIN_PASSWORD": secrets["MLFLOW_TRACKING_PASSWORD"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets["MLFLOW_SESSION_KEY"],
    }


def client_variables(login: bool, secrets: Mapping[str, str]) -> dict[str, str]:
    """Returns what MLflow's clients read from their environment; nothing without a login."""
    if not login:
        return {}
    return {
        "MLFLOW_TRACKING_USERNAME": USER,
        "MLFLOW_TRACKING_PASSWORD": secrets["MLFLOW_TRACKING_PASSWORD"],
    }


def _config(stack: Stack) -> Path:
    return stack.folder / "mlflow" / "basic_auth.ini"
