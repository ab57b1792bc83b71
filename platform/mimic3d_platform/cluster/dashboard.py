"""A Ray cluster as its dashboard shows it: whether it answers, lets us in, and is large enough.

All of it is asked over HTTP with bounded patience, before anything is started, and told in one line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import get_settings

ASK_TIMEOUT_S = 20.0
# The logs of a long job are one answer; a busy head takes its time over them.
WORK_TIMEOUT_S = 60.0
_ADDRESS = "RAY_API_SERVER_ADDRESS"


class NoAnswer(UserError):
    """The cluster does not answer (now): it may, later."""


@dataclass(frozen=True)
class Cluster:
    """The dashboard of a cluster's head, and the token that lets in. The token shows in no repr."""

    url: str
    token: str | None = field(default=None, repr=False)
    token_from: str = "RAY_AUTH_TOKEN"

    @property
    def headers(self) -> dict[str, str]:
        """What a request must carry."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def ask(self, method: str, path: str, timeout: float = WORK_TIMEOUT_S, **named: Any) -> Any:
        """The JSON that the dashboard answers, or None where it knows no such thing (404).

        Raises:
            NoAnswer: nothing answers in time, or the head is being restarted.
            UserError: it refuses us, or is no Ray dashboard.
        """
        import requests

        try:
            answer = requests.request(method, self.url + path, headers=self.headers, timeout=timeout, **named)
        except requests.exceptions.InvalidURL:
            raise UserError(f"{self.url} is no address: give --address http://HEAD:8265") from None
        except requests.exceptions.RequestException as error:
            late = isinstance(error, requests.exceptions.Timeout)
            reason = f"nothing within {timeout:.0f} s" if late else "no connection"
            raise NoAnswer(
                f"no Ray cluster answers at {self.url} ({reason}): check --address, and that its dashboard "
                "can be reached from here"
            ) from None
        if answer.status_code in (401, 403) and "authentication token" not in answer.text:
            raise UserError(self._stranger())
        if answer.status_code == 401:
            raise UserError(
                f"Ray at {self.url} wants a token and none was given: set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH"
            )
        if answer.status_code == 403:
            raise UserError(f"Ray at {self.url} refuses the token of {self.token_from}: correct it")
        if answer.status_code == 404:
            return None
        if answer.status_code in (502, 503, 504):
            raise NoAnswer(f"Ray at {self.url} is not ready (status {answer.status_code}): try again later")
        if answer.status_code != 200:
            said = " ".join(answer.text.split())
            raise UserError(f"Ray at {self.url} cannot do that (status {answer.status_code}): {said[-300:]}")
        try:
            return answer.json()
        except ValueError:
            raise UserError(self._stranger()) from None

    def check(self) -> str:
        """Makes sure that a Ray dashboard answers and lets us in; returns Ray's version there."""
        version = self.ask("GET", "/api/version", ASK_TIMEOUT_S)
        if not isinstance(version, dict) or "ray_version" not in version:
            raise UserError(self._stranger())
        self.ask("GET", "/api/jobs/", ASK_TIMEOUT_S)
        return str(version["ray_version"])

    def resources(self) -> dict[str, float]:
        """What all living nodes have together, such as `{"CPU": 8.0, "GPU": 2.0}`."""
        answer = self.ask("GET", "/api/v0/nodes?limit=10000&detail=1", ASK_TIMEOUT_S)
        total: dict[str, float] = {}
        for node in (answer or {}).get("data", {}).get("result", {}).get("result", []):
            if node.get("state") == "ALIVE":
                for name, amount in node.get("resources_total", {}).items():
                    total[name] = total.get(name, 0.0) + amount
        return total

    def require(self, workers: int) -> None:
        """Refuses more workers than there are GPUs, or CPUs where there is no GPU.

        Raises:
            UserError: the cluster is too small; says what it has.
        """
        have = self.resources()
        gpus, cpus = int(have.get("GPU", 0)), int(have.get("CPU", 0))
        kind, most = ("GPU", gpus) if gpus else ("CPU", cpus)
        if workers > most:
            raise UserError(
                f"{workers} workers need as many {kind}s, the cluster at {self.url} has {most}"
                f"{'' if gpus else ' and no GPU'}: lower --workers or add nodes"
            )

    def _stranger(self) -> str:
        return f"what answers at {self.url} is no Ray dashboard: give --address http://HEAD:8265"


def find_cluster(address: str | None = None) -> Cluster:
    """The cluster to send work to: `address`, else the environment's, else that of `mimic3d up`.

    From here on this process's environment names it, so that nothing of another cluster, its token least of
    all, is used with it.

    Args:
        address: of the dashboard, `http://HEAD:8265`; `HEAD:8265` means the same.
    Raises:
        UserError: no cluster is named, or the token cannot be read.
    """
    elsewhere = os.environ.get("RAY_ADDRESS", "")
    given = address or os.environ.get(_ADDRESS) or (elsewhere if elsewhere.startswith("http") else "")
    if given:
        os.environ[_ADDRESS] = _url(given)
        if elsewhere.startswith("http") or address:
            os.environ.pop("RAY_ADDRESS", None)
    url = get_settings().ray_dashboard
    if not url:
        raise UserError(
            "no Ray cluster is named: give --address http://HEAD:8265, or run `mimic3d up` for one here"
        )
    os.environ[_ADDRESS] = url
    token, source = _token()
    return Cluster(url.rstrip("/"), token, source)


def _url(address: str) -> str:
    address = address.strip()
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    try:
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or parts.scheme)
    except ValueError:
        known = False
    if not known or "@" in parts.netloc:
        raise UserError(
            f"--address {parts.scheme}://{parts.netloc.rpartition('@')[2]} is not a dashboard's: give "
            "http://HEAD:8265, and its token in RAY_AUTH_TOKEN"
        )
    return url.rstrip("/")


def _token(environment: Mapping[str, str] = os.environ) -> tuple[str | None, str]:
    """The token and where it is from, in Ray's order: the variable, its file, `~/.ray/auth_token`."""
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"].strip(), "RAY_AUTH_TOKEN"
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
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"cannot read Ray's token from {source}: {reason}") from None
    if not token:
        raise UserError(f"Ray's token in {source} is empty: write it there, or set RAY_AUTH_TOKEN")
    return token, source
