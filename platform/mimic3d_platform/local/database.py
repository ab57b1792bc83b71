"""The PostgreSQL behind MLflow, where the stack is given one: a server of the user's, not one of the stack's.

Its URL holds no password, since it is on record; the password comes from PGPASSWORD, which is kept in a
private file of the stack, or from the file that PGPASSFILE names. Neither is in any argument or log.
"""

import importlib.util
import json
import os
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from mimic3d_platform.errors import UserError
from mimic3d_platform.local.state import Stack, write_private

CONNECT_TIMEOUT_S = 5


def choose_database(stack: Stack, url: str | None) -> tuple[str | None, bool]:
    """The database to use, and whether that is news: `url`, else the one on record, else None (SQLite).

    `sqlite` in place of a URL goes back to SQLite.

    Raises:
        UserError: the URL is not PostgreSQL's or holds a password, or the server does not let MLflow in.
    """
    record = _record(stack)
    before = record.get("url")
    if url == "sqlite":
        return None, before is not None
    if url is not None and url != before:
        record = {"url": _checked(url)}
    if "url" not in record:
        return None, False
    _keep_password(stack, record)
    _try(record["url"], variables(stack))
    return record["url"], record["url"] != before


def remember_database(stack: Stack, url: str | None) -> None:
    """Puts the database on record, so that the next `up` uses it too; None strikes it off."""
    folder = stack.folder / "mlflow"
    if url is None:
        for name in ("database.json", "pgpass"):
            (folder / name).unlink(missing_ok=True)
        return
    folder.mkdir(exist_ok=True)
    write_private(folder / "database.json", json.dumps({"url": url}))


def variables(stack: Stack) -> dict[str, str]:
    """What PostgreSQL's library reads in MLflow's environment: where the password is."""
    kept = stack.folder / "mlflow" / "pgpass"
    if kept.is_file():
        return {"PGPASSFILE": str(kept)}
    named = os.environ.get("PGPASSFILE")
    return {"PGPASSFILE": named} if named else {}


def sqlalchemy_url(url: str) -> str:
    """The URL as MLflow wants it, with the driver that is installed."""
    return "postgresql+psycopg2://" + url.partition("://")[2]


def _record(stack: Stack) -> dict[str, str]:
    try:
        return dict(json.loads((stack.folder / "mlflow" / "database.json").read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def _checked(url: str) -> str:
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


def _keep_password(stack: Stack, record: Mapping[str, str]) -> None:
    """Writes PGPASSWORD, where it is set, to the stack's own password file."""
    password = os.environ.get("PGPASSWORD")
    if not password:
        return
    parts = urlsplit(record["url"])
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


def _try(url: str, environment: Mapping[str, str]) -> None:
    """Connects once, as MLflow will."""
    import psycopg2

    passfile = {"passfile": environment["PGPASSFILE"]} if "PGPASSFILE" in environment else {}
    try:
        psycopg2.connect(url, connect_timeout=CONNECT_TIMEOUT_S, **passfile).close()
    except psycopg2.Error as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"MLflow's database does not let it in ({reason}): correct --mlflow-database, or set PGPASSWORD"
        ) from None
