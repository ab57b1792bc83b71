"""Errors of storage: what pyarrow, botocore and the system raise, as a `StorageError` of one line."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator

from mimic3d_platform.errors import UserError
from mimic3d_platform.settings import get_settings

NO_CREDENTIALS = (
    "no credentials for object storage; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "or run `mimic3d up` for a stack of your own"
)
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_SILENCE = (
    *("curlCode", "NETWORK_CONNECTION", "connect to", "Connect timeout", "Connection was closed"),
    *("Read timeout", "Connection reset", "timed out", "REQUEST_TIMEOUT", "RequestTimeout"),
)
_BUSY = (
    *(
        "SLOW_DOWN",
        "SlowDown",
        "SERVICE_UNAVAILABLE",
        "ServiceUnavailable",
        "INTERNAL_FAILURE",
        "InternalError",
    ),
    *("THROTTL", "Throttl", "TooManyRequests", "reached max retries", "IncompleteRead", "IncompleteBody"),
)
_REFUSED = ("ACCESS_DENIED", "AccessDenied", "HTTP status 403", "Forbidden")
_BUSY_STATUS = re.compile(r"(HTTP status|HTTP response code:|\() ?(429|50[0234])\b")


class StorageError(UserError):
    """A place that cannot be used, in one line.

    Attributes:
        transient: whether a later attempt may succeed: the network failed, or the server restarts or is busy.
    """

    def __init__(self, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.transient)


@contextlib.contextmanager
def translate_errors(uri: str | os.PathLike[str], verb: str) -> Iterator[None]:
    """Raises what the libraries raise about `uri` as a `StorageError` of one line.

    Args:
        verb: what is attempted, as in the message "cannot {verb} {uri}".
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # botocore's errors are not OSErrors; it is asked about only where something has loaded it.
        botocore = sys.modules.get("botocore.exceptions")
        of_boto = botocore and isinstance(error, botocore.BotoCoreError | botocore.ClientError)
        if not isinstance(error, OSError) and not of_boto:
            raise
        cause, transient = _cause(error, uri)
        raise StorageError(f"cannot {verb} {uri}: {cause}", transient) from error


def _cause(error: Exception, uri: str | os.PathLike[str]) -> tuple[str, bool]:
    """What went wrong and what to do, in one line, from an error of pyarrow, botocore or the system.

    Returns:
        The line, and whether the error is transient.
    """
    text = str(error)
    if os.fspath(uri).startswith("s3://") and any(word.lower() in text.lower() for word in _REFUSED):
        text += _why_refused(uri)

    def says(*words: str) -> bool:
        return any(word.lower() in text.lower() for word in words)

    if os.fspath(uri).startswith("s3://"):
        where = get_settings().s3_endpoint or "Amazon S3"
        if says("ExpiredToken", "EXPIRED_TOKEN", "token has expired", "RequestExpired"):
            return f"{where} says that the credentials have expired; renew {_KEYS} (and the token)", False
        if says("INVALID_ACCESS_KEY_ID", "InvalidAccessKeyId", "SIGNATURE_DOES", "SignatureDoes"):
            return f"{where} does not know these credentials; correct {_KEYS}", False
        if says(*_REFUSED):
            advice = f"check that {_KEYS} are right and not expired, and the rights on the bucket"
            return f"{where} refuses access; {advice}", False
        if says("NO_SUCH_BUCKET", "NoSuchBucket"):
            bucket = os.fspath(uri).removeprefix("s3://").partition("/")[0]
            return f"there is no bucket {bucket!r} at {where}; check the URI or create the bucket", False
        if says("Unable to locate credentials"):
            return NO_CREDENTIALS, False
        if says(*_BUSY) or _BUSY_STATUS.search(text):
            return f"{where} is too busy or out of order; try again later, or see its log", True
        if says(*_SILENCE) or isinstance(error, ConnectionError | TimeoutError):
            return f"nothing answers at {where}; start it (`mimic3d up`) or correct AWS_ENDPOINT_URL", True
        if isinstance(error, FileNotFoundError) or says("NoSuchKey", "NO_SUCH_KEY", "Path does not exist"):
            return "there is nothing there; check the URI", False
    elif isinstance(error, FileNotFoundError):
        return "there is no such file or folder; check the path", False
    elif isinstance(error, PermissionError):
        return "no permission; choose another folder or change its rights", False
    elif says("No space left", "quota"):
        return "no space is left on the device; free some or choose another folder", False
    system = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else None
    return system or " ".join(text.split()), False


def _why_refused(uri: str | os.PathLike[str]) -> str:
    """What the store says when it is asked once more, by a request whose refusal tells the reason.

    The refusal of a HEAD has no body. That of a GET has one, but pyarrow has it written into the buffer for
    the file's content and parses all of that buffer, leftovers of memory included, which fails by chance.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    from mimic3d_platform import storage

    bucket, key = storage.split_s3(uri)
    try:
        storage.s3_client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
    except (BotoCoreError, ClientError) as error:
        return f" {error}"
    return ""
