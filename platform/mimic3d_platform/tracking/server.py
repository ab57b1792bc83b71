"""The MLflow server: its address, whether it answers, a client with few retries, errors of one line."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mimic3d_platform.errors import UserError, one_line
from mimic3d_platform.settings import environment_variables, get_settings
from mimic3d_platform.storage.uris import without_login

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHECK_TIMEOUT_S = 4.0

# By default MLflow retries for about four minutes without a word, and prints between the command's lines.
# A user's own values win.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

# Keeps MLflow from retrying, and from waiting long.
_ONE_QUICK_ATTEMPT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(int(CHECK_TIMEOUT_S)),
}

_LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def tracking_uri() -> str:
    """The address of MLflow.

    Raises:
        UserError: no server is named.
    """
    uri = get_settings().mlflow_tracking_uri
    if not uri:
        raise UserError(
            "no MLflow server is named; set MLFLOW_TRACKING_URI, or run `mimic3d up` for a stack of your own"
        )
    return uri


def client() -> MlflowClient:
    """A client of the tracking server and its registry."""
    _set_defaults()
    import mlflow

    uri = tracking_uri()
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def _set_defaults() -> None:
    """Sets MLflow's variables that the user has not; before MLflow is imported, which reads some of them.

    The login is among them: MLflow's client reads it from the environment at every request.
    """
    known = get_settings().export()
    login = {name: known[name] for name in _LOGIN if name in known}
    for name, value in (_DEFAULTS | login).items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def own_login() -> Iterator[None]:
    """During the block, MLflow on this machine is used with its own login, not with one for another server.

    The environment's login, which is then the other server's, is as before afterwards. If the environment
    names the server, its login is that server's and is used.
    """
    before = {name: os.environ[name] for name in _LOGIN if name in os.environ}
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        for name in before:
            del os.environ[name]
    try:
        yield
    finally:
        for name in _LOGIN:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextlib.contextmanager
def in_environment() -> Iterator[str]:
    """Sets `MLFLOW_TRACKING_URI`, which MLflow's module functions read, during the block."""
    uri = tracking_uri()
    with environment_variables({"MLFLOW_TRACKING_URI": uri}):
        yield uri


def check_tracking() -> str:
    """Checks, in little more than `CHECK_TIMEOUT_S`, that MLflow answers and accepts the login.

    Returns:
        The server's address, without a login.
    Raises:
        UserError: no server is named, none answers, or it refuses access.
    """
    uri = tracking_uri()
    if urlsplit(uri).scheme in ("http", "https") and not _listens(uri):
        raise UserError(_no_answer(uri))
    answers: list[BaseException | None] = []

    def request() -> None:
        try:
            client().search_experiments(max_results=1)
            answers.append(None)
        except BaseException as error:
            answers.append(error)

    _set_defaults()
    with environment_variables(_ONE_QUICK_ATTEMPT):
        import mlflow  # noqa: F401  (its import takes seconds that are not the server's)

        requesting = threading.Thread(target=request, daemon=True)
        requesting.start()
        requesting.join(CHECK_TIMEOUT_S)
    if not answers:
        raise UserError(
            f"MLflow at {without_login(uri)} takes connections but does not answer; look at its log"
        )
    if answers[0] is not None:
        with tracking_errors("ask"):
            raise answers[0]
    return without_login(uri)


@contextlib.contextmanager
def tracking_errors(doing: str) -> Iterator[None]:
    """Turns what MLflow's client raises into a `UserError` of one line: "cannot {doing} MLflow at …: …"."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from requests.exceptions import ChunkedEncodingError, RequestException

    try:
        yield
    except UserError:
        raise
    except (BotoCoreError, ClientError, Boto3Error) as error:  # Of a server that does not serve artifacts.
        raise UserError(
            f"cannot {doing} MLflow at {without_login(tracking_uri())}: its artifacts are in object storage "
            f"({one_line(error, 200)}); check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except (MlflowException, RequestException) as error:
        uri = tracking_uri()
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise UserError(
                f"MLflow at {without_login(uri)} has a certificate that is not trusted here; name the file "
                "of its CA in MLFLOW_TRACKING_SERVER_CERT_PATH"
            ) from error
        if isinstance(error, ChunkedEncodingError) or "Connection broken" in str(error):
            raise UserError(
                f"cannot {doing} MLflow at {without_login(uri)}: the connection was cut; try again"
            ) from error
        if is_outage(error):
            raise UserError(_no_answer(uri)) from error
        if getattr(error, "error_code", "") in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            remedy = "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            raise UserError(f"MLflow at {without_login(uri)} refuses access; {remedy}") from error
        raise UserError(f"cannot {doing} MLflow at {without_login(uri)}: {one_line(error, 300)}") from error


def is_outage(error: BaseException) -> bool:
    """Whether a call failed because the server is unreachable or overloaded, so that a retry may succeed."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import ConnectionError, HTTPError, Timeout

    if isinstance(error, HTTPError):
        return error.response is not None and error.response.status_code in (429, 502, 503, 504)
    if isinstance(error, ConnectionError | Timeout):
        return True
    unreachable = ("failed with exception", "Max retries exceeded", "Connection refused", "timed out")
    codes = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")
    return isinstance(error, MlflowException) and (
        error.error_code in codes or any(words in str(error) for words in unreachable)
    )


@contextlib.contextmanager
def conflict_suppressed() -> Iterator[None]:
    """Suppresses MLflow's refusal of a new row, such as a tag, that another client has just written.

    Its database store looks for a tag, then inserts or updates it. Of two clients that find none, the
    second's insertion breaks a uniqueness constraint; the first's value stays.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if "IntegrityError" not in str(error):
            raise


def _no_answer(uri: str) -> str:
    return (
        f"no MLflow server answers at {without_login(uri)}; start it (`mimic3d up`) or correct "
        "MLFLOW_TRACKING_URI"
    )


def _listens(uri: str) -> bool:
    """Whether something takes connections at `uri`, within `CHECK_TIMEOUT_S`."""
    parts = urlsplit(uri)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise UserError(
            f"MLFLOW_TRACKING_URI is {without_login(uri)}, whose port is no number up to 65535: correct it"
        ) from None
    address = (parts.hostname or "", port)
    if any(os.environ.get(name) for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")):
        from urllib.request import proxy_bypass

        if not proxy_bypass(address[0]):
            return True  # Only the proxy can be reached from here; the client connects through it.
    connected = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection(address, CHECK_TIMEOUT_S):
            connected.set()

    connecting = threading.Thread(target=connect, daemon=True)  # The look-up of a name has no timeout.
    connecting.start()
    connecting.join(CHECK_TIMEOUT_S)
    return connected.is_set()
