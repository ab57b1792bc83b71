"""MLflow's PostgreSQL database, where the user names one: it runs on the user's server, not in the stack.

Its URL is stored without a password. The password comes from PGPASSWORD, which is copied to a private file of
the stack, or from the file that PGPASSFILE names; it appears in no argument and no log.
"""

import importlib.util
import json
import os
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from mimic3d_platform.errors import UserError, one_line
from mimic3d_platform.local.state import Stack, write_private

CONNECT_TIMEOUT_S = 5


def choose_database(stack: Stack, url: str | None) -> tuple[str | None, bool]:
    """Returns the URL of the database to use (None: SQLite), and whether it differs from last time's.

    Args:
        url: a PostgreSQL URL, or `sqlite`; None for the database of last time.
    Raises:
        UserError: the URL is not PostgreSQL's or holds a password, or the server refuses the connection.
    """
    record = _read_record(stack)
    before = record.get("url")
    if url == "sqlite":
        return None, before is not None
    if url is not None and url != before:
        record = {"url": _checked(url)}
    if "url" not in record:
        return None, False
    kept = stack.folder / "mlflow" / "pgpass"
    former = kept.read_text(encoding="utf-8") if kept.is_file() else None
    _keep_password(stack, record["url"])
    try:
        _try_to_connect(record["url"], variables(stack))
    except UserError:  # A wrong PGPASSWORD must not replace the password that works.
        if former is None:
            kept.unlink(missing_ok=True)
        else:
            write_private(kept, former)
        raise
    return record["url"], record["url"] != before


def remember_database(stack: Stack, url: str | None) -> None:
    """Stores the database for the next `up`; None deletes what was stored."""
    folder = stack.folder / "mlflow"
    if url is None:
        for name in ("database.json", "pgpass"):
            (folder / name).unlink(missing_ok=True)
        return
    folder.mkdir(exist_ok=True)
    write_private(folder / "database.json", json.dumps({"url": url}))


def variables(stack: Stack) -> dict[str, str]:
    """Returns the environment variables that tell PostgreSQL's client library where the password is."""
    kept = stack.folder / "mlflow" / "pgpass"
    if kept.is_file():
        return {"PGPASSFILE": str(kept)}
    named = os.environ.get("PGPASSFILE")
    return {"PGPASSFILE": named} if named else {}


def sqlalchemy_url(url: str) -> str:
    """Returns the URL with the name of the installed driver, as MLflow expects it."""
    return "postgresql+psycopg2://" + url.partition("://")[2]


def _read_record(stack: Stack) -> dict[str, str]:
    try:
        return dict(json.loads((stack.folder / "mlflow" / "database.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return {}


def _checked(url: str) -> str:
    """Returns `url` if MLflow can use it.

    Raises:
        UserError: it cannot; the message holds no password.
    """
    parts = urlsplit(url)
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.scheme not in ("postgresql", "postgres") or not parts.hostname or len(parts.path) < 2:
        raise UserError(f"--mlflow-database {place}: give postgresql://USER@HOST:5432/DATABASE, or sqlite")
    if parts.password:
        raise UserError(
            f"--mlflow-database {place} holds a password, which others could read: leave it out, and set "
            "PGPASSWORD or PGPASSFILE"
        )
    if importlib.util.find_spec("psycopg2") is None:
        raise UserError("PostgreSQL needs the package psycopg2: pip install 'mimic3d[server]'")
    return url


def _keep_password(stack: Stack, url: str) -> None:
    """Writes PGPASSWORD, if it is set, to the stack's own password file."""
    password = os.environ.get("PGPASSWORD")
    if not password:
        return
    parts = urlsplit(url)
    fields = (
        parts.hostname or "",
        str(parts.port or 5432),
        unquote(parts.path[1:]),
        unquote(parts.username or "*"),
        password,
    )
    escaped = (field.replace("\\", "\\\\").replace(":", "\\:") for field in fields)
    folder = stack.folder / "mlflow"
    folder.mkdir(exist_ok=True)
    write_private(folder / "pgpass", ":".join(escaped) + "\n")


def _try_to_connect(url: str, environment: Mapping[str, str]) -> None:
    """Opens and closes a connection, with the password that MLflow will use."""
    import psycopg2  # Optional: `pip install 'mimic3d[server]'`.

    passfile = {"passfile": environment["PGPASSFILE"]} if "PGPASSFILE" in environment else {}
    try:
        psycopg2.connect(url, connect_timeout=CONNECT_TIMEOUT_S, **passfile).close()
    except psycopg2.Error as error:
        reason = one_line(error, 200)
        raise UserError(
            f"MLflow's database refuses the connection ({reason}): correct --mlflow-database, or set "
            "PGPASSWORD"
        ) from None
