"""Errors of storage: what pyarrow, s3fs, boto3 and the system raise, as a `StorageError` of one line."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

from mimic3d_platform.errors import UserError, one_line
from mimic3d_platform.settings import get_settings
from mimic3d_platform.storage.s3 import NO_CREDENTIALS, s3_client
from mimic3d_platform.storage.uris import Uri, is_local, is_s3, scheme, split_s3, without_login

_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"

# What the libraries and the servers write; each library has spellings of its own.
_EXPIRED = ("ExpiredToken", "EXPIRED_TOKEN", "token has expired", "RequestExpired")
_UNKNOWN_KEYS = ("INVALID_ACCESS_KEY_ID", "InvalidAccessKeyId", "SIGNATURE_DOES", "SignatureDoes")
_REFUSED = ("ACCESS_DENIED", "AccessDenied", "HTTP status 403", "Forbidden")
_NO_BUCKET = ("NO_SUCH_BUCKET", "NoSuchBucket")
_NO_KEY = ("NoSuchKey", "NO_SUCH_KEY", "Path does not exist")
_LOST_UPLOAD = ("NoSuchUpload", "NO_SUCH_UPLOAD", "InvalidPart")
_SPOILT = ("did not match calculated checksum", "BadDigest", "ContentSHA256Mismatch")
_BUSY = (
    *("SLOW_DOWN", "SlowDown", "SERVICE_UNAVAILABLE", "ServiceUnavailable", "INTERNAL_FAILURE"),
    *("InternalError", "THROTTL", "Throttl", "TooManyRequests", "reached max retries"),
    *("IncompleteRead", "IncompleteBody"),
)
_BUSY_STATUS = re.compile(r"(HTTP status|HTTP response code:|\() ?(429|50[0234])\b")
_SILENCE = (
    *("curlCode", "NETWORK_CONNECTION", "connect to", "Connect timeout", "Connection was closed"),
    *("Read timeout", "Connection reset", "timed out", "REQUEST_TIMEOUT", "RequestTimeout"),
    *("payload is not completed", "Server disconnected", "total bytes expected", "Connection broken"),
)

# Libraries of S3 that raise errors which are no OSErrors.
_S3_LIBRARIES = ("aiobotocore", "aiohttp", "boto3", "botocore", "s3transfer")


class StorageError(UserError):
    """A place that cannot be used, in one line.

    Attributes:
        transient: whether a later attempt may succeed: the network failed, or the server restarts or is busy.
    """

    def __init__(self, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient

    def __reduce__(self) -> tuple[type[StorageError], tuple[str, bool]]:
        return type(self), (str(self), self.transient)


@contextlib.contextmanager
def translate_errors(uri: Uri, verb: str) -> Iterator[None]:
    """Raises what the libraries raise about `uri` as a `StorageError` of one line.

    Args:
        verb: what is attempted, as in the message "cannot {verb} {uri}".
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not _is_of_storage(error, uri):
            raise
        cause, transient = _cause(error, uri)
        raise StorageError(f"cannot {verb} {without_login(uri)}: {cause}", transient) from error


def _is_of_storage(error: Exception, uri: Uri) -> bool:
    """Whether the system or a storage library raised `error`, and not a mistake of this program."""
    if isinstance(error, OSError):
        return True
    library = type(error).__module__.partition(".")[0]
    if is_local(uri) or is_s3(uri):
        return library in _S3_LIBRARIES
    # Which libraries serve another scheme, and what they raise, is not known here.
    ours = library in ("builtins", "mimic3d", "mimic3d_platform")
    return isinstance(error, NotImplementedError) or not ours


def _cause(error: Exception, uri: Uri) -> tuple[str, bool]:
    """The cause and the remedy, in one line, and whether the error is transient."""
    if is_s3(uri):
        return _cause_in_s3(error, uri)
    if is_local(uri):
        return _cause_on_disk(error), False
    if isinstance(error, FileNotFoundError):
        return "there is nothing there; check the URI", False
    if isinstance(error, PermissionError):
        return f"access is refused; check the credentials for {scheme(uri)}://", False
    if isinstance(error, ConnectionError | TimeoutError):
        return f"no answer ({one_line(error)})", True
    if isinstance(error, NotImplementedError):
        return f"{scheme(uri)}:// places do not allow that; name another place", False
    return one_line(error), False


def _cause_on_disk(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file or folder; check the path"
    if isinstance(error, PermissionError):
        return "no permission; choose another folder or change its rights"
    if any(word in str(error) for word in ("No space left", "quota")):
        return "no space is left on the device; free some or choose another folder"
    system = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else None
    return system or one_line(error)


def _cause_in_s3(error: Exception, uri: Uri) -> tuple[str, bool]:
    # s3fs raises an OSError from botocore's error, which alone has the code.
    text = f"{error} {error.__cause__ or ''}"

    def says(*words: str) -> bool:
        return any(word.lower() in text.lower() for word in words)

    if says(*_REFUSED):
        text += _why_refused(uri)
    where = get_settings().s3_endpoint or "Amazon S3"
    if says(*_EXPIRED):
        return f"{where} says that the credentials have expired; renew {_KEYS} (and the token)", False
    if says(*_UNKNOWN_KEYS):
        return f"{where} does not know these credentials; correct {_KEYS}", False
    if says(*_REFUSED):
        advice = f"check that {_KEYS} are right and not expired, and the rights on the bucket"
        return f"{where} refuses access; {advice}", False
    if says(*_NO_BUCKET):
        bucket = split_s3(uri)[0]
        return f"there is no bucket {bucket!r} at {where}; check the URI or create the bucket", False
    if says("Unable to locate credentials"):
        return NO_CREDENTIALS, False
    if says(*_SPOILT):
        return "it was damaged on its way (its checksum differs); try again", True
    if says(*_LOST_UPLOAD):
        return f"{where} has lost a part of what was sent; try again", True
    if says(*_BUSY) or _BUSY_STATUS.search(text):
        return f"{where} is too busy or out of order; try again later, or see its log", True
    if says(*_SILENCE) or isinstance(error, ConnectionError | TimeoutError):
        return f"nothing answers at {where}; start it (`mimic3d up`) or correct AWS_ENDPOINT_URL", True
    if isinstance(error, FileNotFoundError) or says(*_NO_KEY):
        return "there is nothing there; check the URI", False
    return one_line(error), False


def _why_refused(uri: Uri) -> str:
    """The store's answer to a second request, which names the reason of the refusal.

    The refusal of a HEAD has no body. That of a GET has one, but pyarrow has it written into the buffer for
    the file's content and parses all of that buffer, leftovers of memory included, which fails by chance.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = os.fspath(uri).removeprefix("s3://").partition("/")
    if not bucket:
        return ""
    try:
        s3_client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
    except (BotoCoreError, ClientError) as error:
        return f" {error}"
    return ""
