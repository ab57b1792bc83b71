"""Finds the Ray cluster that a command uses, reads its token, and connects this process to it.

`find_cluster` serves commands that send jobs over HTTP (`mimic3d submit`, `mimic3d jobs`); `join_ray` serves
commands that run Ray tasks themselves.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from mimic3d_platform.errors import UserError, first_line
from mimic3d_platform.settings import get_settings, use_services

_CONNECT_TIMEOUT_S = 3.0
_DASHBOARD_VARIABLE = "RAY_API_SERVER_ADDRESS"


class UnreachableError(UserError):
    """The cluster's dashboard does not answer; a later request may succeed."""


@dataclass(frozen=True)
class Cluster:
    """The dashboard's address of a Ray cluster, and the token that requests to it carry."""

    url: str
    token: str | None = field(default=None, repr=False)
    token_source: str = "RAY_AUTH_TOKEN"
    """Where the token was read from, for error messages."""

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers that authenticate a request."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def find_cluster(address: str | None = None) -> Cluster:
    """Returns the cluster at `address`, else the one that the environment names, else that of `mimic3d up`.

    Sets RAY_API_SERVER_ADDRESS of this process to the result, because Ray's own client lets that variable
    override the address it is given.

    Args:
        address: the dashboard's, `http://HEAD:8265` or `HEAD:8265`.
    Raises:
        UserError: no cluster is named, the address is not a URL, or the token file cannot be read.
    """
    ray_address = os.environ.get("RAY_ADDRESS", "")
    given = address or os.environ.get(_DASHBOARD_VARIABLE)
    if not given and ray_address.startswith("http"):
        given = ray_address
    if given:
        os.environ[_DASHBOARD_VARIABLE] = _dashboard_url(given)
        if address or ray_address.startswith("http"):
            os.environ.pop("RAY_ADDRESS", None)
    url = get_settings().ray_dashboard
    if not url:
        raise UserError(
            "no Ray cluster is named: give --address http://HEAD:8265, or run `mimic3d up` for one here"
        )
    os.environ[_DASHBOARD_VARIABLE] = url
    token, source = _read_token()
    return Cluster(url.rstrip("/"), token, source)


def join_ray() -> None:
    """Connects this process to the Ray cluster of the settings, unless it is connected already.

    Raises:
        UserError: no cluster is named, or the named one does not answer.
    """
    settings = use_services()
    import ray

    if ray.is_initialized():
        return
    address = settings.ray_address
    if not address:
        raise UserError("no Ray cluster is named: run `mimic3d up`, or set RAY_ADDRESS")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    _reset_ray_token()
    try:
        if host and port.isdigit():  # `ray.init` waits for minutes where nothing listens.
            socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = first_line(error)
        raise UserError(
            f"no Ray cluster at {address} ({reason}): run `mimic3d up`, or correct RAY_ADDRESS"
        ) from error


def _dashboard_url(address: str) -> str:
    """Returns `address` as a URL; raises `UserError` if it is none, without repeating a password in it."""
    address = address.strip()
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    try:
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or parts.scheme)
    except ValueError:  # The port is not a number.
        valid = False
    if not valid or "@" in parts.netloc:
        raise UserError(
            f"--address {parts.scheme}://{parts.netloc.rpartition('@')[2]} is not a dashboard's: give "
            "http://HEAD:8265, and its token in RAY_AUTH_TOKEN"
        )
    return url.rstrip("/")


def _read_token() -> tuple[str | None, str]:
    """Returns the token and its source, in Ray's order: variable, file, `~/.ray/auth_token`."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip(), "RAY_AUTH_TOKEN"
    settings = get_settings()
    path = settings.ray_auth_token_path
    source = f"RAY_AUTH_TOKEN_PATH ({path})"
    if path is None:
        path = Path.home() / ".ray" / "auth_token"
        source = str(path)
        if settings.ray_auth_mode != "token" or not path.is_file():
            return None, source
    try:
        token = path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"cannot read Ray's token from {source}: {reason}") from None
    if not token:
        raise UserError(f"Ray's token in {source} is empty: write it there, or set RAY_AUTH_TOKEN")
    return token, source


def _reset_ray_token() -> None:
    """Makes Ray read its authentication mode and token again; Ray caches what it reads first."""
    from mimic3d_platform.cluster.ray_internals import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
