"""The files of a source: a folder or a zip, local or in object storage, listed once and read by ranges.

One process reads a zip's central directory; tasks get the positions of their own files and read only those,
neighbouring files in one request. Nothing is unpacked to disk.
"""

from __future__ import annotations

import contextlib
import functools
import posixpath
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs

from mimic3d_platform import storage
from mimic3d_platform.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

# Files of a zip that are closer than this, in bytes, are read in one request, up to a size.
_MOST_GAP = 2**16
_MOST_REQUEST = 8 * 2**20
# Files of a folder are read in parallel: in object storage, small files take mostly waiting.
_PARALLEL_READS = 8

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a source.

    Attributes:
        name: as the source itself has it, not normalised.
        size: bytes of the content.
        packed: bytes within the zip.
        offset: of the local header within the zip; -1 for a file of a folder.
        method: 0 stored, 8 deflated.
        check: the CRC-32 in a zip; the time of the last change (ns) in a folder.
    """

    name: str
    size: int
    packed: int
    offset: int
    method: int
    check: int


class Source:
    """The files of the folder or zip at `uri`.

    Attributes:
        zipped: whether the source is a zip.
        entries: the files, by their normalised names (`normal_name`).
    Raises:
        UserError: nothing is there, it is neither folder nor zip, it is empty or damaged, two names are the
            same once normalised, or a name leads out of the source.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        files, path = storage.arrow_filesystem(uri)
        kind = storage.access(uri, "read", lambda: files.get_file_info(path)).type
        if kind == pa.fs.FileType.NotFound:
            raise UserError(f"there is nothing at {uri}: check the path")
        self.zipped = kind == pa.fs.FileType.File
        self.entries = _by_normal_name(_zip_entries(uri) if self.zipped else _folder_entries(uri), uri)
        self._by_lower: dict[str, list[str]] = {}
        if not self.entries:
            raise UserError(f"{uri} holds no file: give a folder or a zip of images and their cameras")

    def read(self, name: str) -> bytes:
        """The whole content of a small file."""
        (content,) = read_entries(self.uri, [self.entries[name]])
        return content

    def within(self, folder: str, name: str) -> str | None:
        """The file that a listing in `folder` calls `name`; None if the source has no such file.

        The case of letters is ignored where no file has the very name and one has it in another case.

        Raises:
            UserError: the name leads out of the source, or several files differ from it in case alone.
        """
        path = normal_name(posixpath.join(folder, name.replace("\\", "/")))
        check_name(path, self.uri)
        if path in self.entries:
            return path
        if not self._by_lower:
            for entry in self.entries:
                self._by_lower.setdefault(entry.lower(), []).append(entry)
        alike = self._by_lower.get(path.lower(), [])
        if len(alike) > 1:
            raise UserError(
                f"{self.uri} lists {path}, and holds {' and '.join(alike[:2])}: list one as it is written"
            )
        return alike[0] if alike else None


def normal_name(name: str) -> str:
    """A name with slashes for backslashes, without `.` and `//`, and in Unicode's form NFC."""
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")))


def is_hidden(name: str) -> bool:
    """Whether a file lies in a folder, or has a name, that programs hide."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def is_image(name: str) -> bool:
    """Whether a file is an image, by its name; hidden files are not."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)


def check_name(name: str, where: str) -> None:
    """Raises a UserError if a file of this normalised name could be unpacked outside its folder."""
    if any(ord(letter) < 32 for letter in name):
        raise UserError(f"{where} names a file {name!r} with a control character: rename the file")
    if name.startswith("/") or (name[:1].isalpha() and name[1:3] == ":/"):
        raise UserError(
            f"{where} names a file {name!r} by an absolute path: give paths relative to its folder"
        )
    if ".." in name.split("/") or not name:
        raise UserError(
            f"{where} names a file {name!r} that leads out of its folder: do not trust it; make it again"
        )


def _by_normal_name(entries: dict[str, Entry], uri: str) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for name, entry in entries.items():
        normal = normal_name(name)
        if normal in found:
            raise UserError(
                f"{uri} holds the files {found[normal].name!r} and {name!r}, which have one name with "
                "slashes for backslashes and in Unicode's form NFC: rename one"
            )
        found[normal] = entry
    return found


def _folder_entries(uri: str) -> dict[str, Entry]:
    files, root = storage.arrow_filesystem(uri)
    below = pa.fs.FileSelector(root, recursive=True)
    found = storage.access(uri, "list", lambda: files.get_file_info(below))
    entries = {}
    for info in found:
        if info.type == pa.fs.FileType.File:
            try:
                name = info.path[len(root) :].lstrip("/")
            except UnicodeDecodeError as error:
                shown = ascii(error.object)[2:-1]
                raise UserError(f"{uri} holds the file {shown}, whose name is not UTF-8: rename it") from None
            if is_image(name) and any(ord(letter) < 32 for letter in name):
                check_name(name, uri)
            entries[name] = Entry(name, info.size, info.size, -1, 0, info.mtime_ns or 0)
    return dict(sorted(entries.items()))


def _list_zip(uri: str) -> list[zipfile.ZipInfo]:
    files, path = storage.arrow_filesystem(uri)
    with files.open_input_file(path) as stream, zipfile.ZipFile(stream) as archive:
        return archive.infolist()


def _zip_name(info: zipfile.ZipInfo) -> str:
    """A file's name: in UTF-8, as some programs write it without the flag that says so, else by the flag."""
    name = info.orig_filename
    if not info.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            return name.encode("cp437").decode()
    return name


def _zip_entries(uri: str) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    try:
        listed = storage.access(uri, "read", lambda: _list_zip(uri))
    except UserError:
        raise
    except (zipfile.BadZipFile, struct.error, NotImplementedError, EOFError, ValueError) as error:
        raise UserError(
            f"{uri} is not a zip, or is truncated ({error}): copy it again, or give a folder"
        ) from error
    for info in listed:
        # `filename` is cut at NUL, and has other slashes on some systems: the original name is checked.
        name = _zip_name(info)
        slashes = name.replace("\\", "/")
        check_name(slashes.rstrip("/"), uri)
        if slashes.endswith("/"):
            continue
        if name in entries:
            raise UserError(f"{uri} holds the file {name} twice: make it again")
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{uri} holds {name} encrypted or with an unknown compression: zip it again")
        entries[name] = Entry(
            name, info.file_size, info.compress_size, info.header_offset, info.compress_type, info.CRC
        )
    return entries


def read_entries(uri: str, entries: list[Entry]) -> Iterator[bytes]:
    """The contents of files of a source, in the order given.

    Raises:
        UserError: a file is missing, truncated or damaged; the message names it.
    """
    files, path = storage.arrow_filesystem(uri)
    if entries and entries[0].offset < 0:
        yield from _read_files(files, path, uri, entries)
        return
    with storage.access(uri, "read", lambda: files.open_input_file(path)) as stream:
        contents: dict[int, bytes] = {}
        order = sorted(range(len(entries)), key=lambda index: entries[index].offset)
        for group in _request_groups(entries, order):
            contents |= _read_group(stream, uri, entries, group)
    for index in range(len(entries)):
        yield contents.pop(index)


def _read_files(files: pa.fs.FileSystem, root: str, uri: str, entries: list[Entry]) -> Iterator[bytes]:
    def read(entry: Entry) -> bytes:
        place = storage.join(uri, entry.name)

        def whole() -> bytes:
            with files.open_input_file(f"{root}/{entry.name}") as stream:
                return stream.read()

        data = storage.access(place, "read", whole)
        if len(data) != entry.size:
            raise UserError(f"{place} has changed while it was read: run the same command again")
        return data

    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        for start in range(0, len(entries), _PARALLEL_READS):
            yield from pool.map(read, entries[start : start + _PARALLEL_READS])


def _request_groups(entries: list[Entry], order: list[int]) -> Iterator[list[int]]:
    """Groups of entries, as indices, that are read in one request, in the order of their positions."""
    group: list[int] = []
    for index in order:
        if group:
            first, last = entries[group[0]], entries[group[-1]]
            end = entries[index].offset + entries[index].packed
            near = entries[index].offset - (last.offset + last.packed) < _MOST_GAP
            if not near or end - first.offset > _MOST_REQUEST:
                yield group
                group = []
        group.append(index)
    if group:
        yield group


def _read_group(stream: pa.NativeFile, uri: str, entries: list[Entry], group: list[int]) -> dict[int, bytes]:
    first, last = entries[group[0]], entries[group[-1]]
    # A local header has an extra field, usually short, whose length is known only once it is read.
    tail = _LOCAL_HEADER.size + len(last.name.encode()) + 64
    length = last.offset + last.packed + tail - first.offset
    block = storage.access(uri, "read", lambda: stream.read_at(length, first.offset))
    contents = {}
    for index in group:
        entry = entries[index]
        start = entry.offset - first.offset
        header = block[start : start + _LOCAL_HEADER.size]
        if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
            raise UserError(f"{uri} is damaged where {entry.name} should be: copy it again")
        *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        begin = start + _LOCAL_HEADER.size + name_length + extra_length
        packed = block[begin : begin + entry.packed]
        if len(packed) < entry.packed:
            missing = functools.partial(stream.read_at, entry.packed, first.offset + begin)
            packed = storage.access(uri, "read", missing)
        contents[index] = _unpack(packed, entry, uri)
    return contents


def _unpack(packed: bytes, entry: Entry, uri: str) -> bytes:
    try:
        data = zlib.decompressobj(-15).decompress(packed, entry.size + 1) if entry.method else packed
    except zlib.error:
        data = b""
    if len(data) != entry.size or zlib.crc32(data) != entry.check:
        raise UserError(f"{uri} holds {entry.name} damaged (its checksum differs): copy the zip again")
    return data
