"""Connects this process to the Ray cluster that the settings name."""

from __future__ import annotations

import socket

from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import use_services

_CONNECT_TIMEOUT_S = 3.0


def join_ray() -> None:
    """Connects this process to the Ray cluster of the settings, unless it is connected already.

    Raises:
        UserError: the settings name no cluster, or the named one does not answer.
    """
    settings = use_services()
    import ray

    if ray.is_initialized():
        return
    address = settings.ray_address
    if not address:
        raise UserError("no Ray cluster is named: run `mimic3d up`, or set RAY_ADDRESS")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    _read_token_again()
    try:
        if host and port.isdigit():  # `ray.init` waits for minutes where nothing listens.
            socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()
        ray.init(address=address, log_to_driver=False, logging_level="WARNING")
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"no Ray cluster at {address} ({reason}): run `mimic3d up`, or correct RAY_ADDRESS"
        ) from error


def _read_token_again() -> None:
    """Makes Ray read its authentication mode and token again; Ray caches what it reads first."""
    from mimic3d_platform.cluster.ray_internals import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
