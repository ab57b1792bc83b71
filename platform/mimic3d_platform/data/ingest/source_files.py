"""A folder or a zip, local or in object storage, whose files are listed once and read by range.

A zip's central directory is read by one process; tasks get the places of their files and read just those,
neighbours together. Nothing is ever unpacked to disk.
"""

from __future__ import annotations

import functools
import posixpath
import struct
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from mimic3d_platform import storage
from mimic3d_platform.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".webp")

# What lies this close together in a zip is read in one request, of this size at most.
_GAP = 2**16
_REQUEST = 8 * 2**20
# Small files of a folder in object storage are asked for so many at a time.
_TOGETHER = 8

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")


class Entry(NamedTuple):
    """A file of a source.

    Attributes:
        size: bytes; `packed` bytes within the zip.
        offset: of the local header within the zip; -1 for a file of a folder.
        method: 0 stored, 8 deflated.
        check: the CRC-32 in a zip, the time of the last change (ns) in a folder.
    """

    name: str
    size: int
    packed: int
    offset: int
    method: int
    check: int


class Source:
    """The files of the folder or zip at `uri`, by name.

    Raises:
        UserError: nothing is there, it is neither, the zip is damaged, or a name is repeated or leads out.
    """

    def __init__(self, uri: str) -> None:
        import pyarrow.fs

        self.uri = uri
        files, path = storage.filesystem(uri)
        kind = storage.access(uri, "read", lambda: files.get_file_info(path)).type
        if kind == pyarrow.fs.FileType.NotFound:
            raise UserError(f"there is nothing at {uri}: check the path")
        self.zipped = kind == pyarrow.fs.FileType.File
        self.entries = _zip_entries(uri) if self.zipped else _folder_entries(uri)
        if not self.entries:
            raise UserError(f"{uri} holds no file: give a folder or a zip of images and their cameras")

    def read(self, name: str) -> bytes:
        """A small file whole."""
        return next(read_entries(self.uri, [self.entries[name]]))

    def within(self, folder: str, name: str) -> str | None:
        """The entry that a listing in `folder` calls `name`, if it is there.

        Raises:
            UserError: the name leads out of the source.
        """
        path = posixpath.normpath(posixpath.join(folder, name.replace("\\", "/")))
        check_name(path, self.uri)
        return path if path in self.entries else None


def is_picture(name: str) -> bool:
    """Whether a file's name is an image's; those that systems hide are none."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
    return name.lower().endswith(PICTURES) and not hidden


def check_name(name: str, where: str) -> None:
    """Raises a UserError if a file's name leads out of the folder that it is unpacked into."""
    parts = name.split("/")
    strange = any(ord(letter) < 32 for letter in name) or "\\" in name or name[1:2] == ":"
    if strange or name.startswith("/") or ".." in parts or not name:
        raise UserError(
            f"{where} names a file {name!r} that leads out of its folder: do not trust it; make it anew"
        )


def _folder_entries(uri: str) -> dict[str, Entry]:
    import pyarrow.fs

    files, root = storage.filesystem(uri)
    below = pyarrow.fs.FileSelector(root, recursive=True)
    found = storage.access(uri, "list", lambda: files.get_file_info(below))
    entries = {}
    for info in found:
        if info.type == pyarrow.fs.FileType.File:
            name = info.path[len(root) :].lstrip("/")
            entries[name] = Entry(name, info.size, info.size, -1, 0, info.mtime_ns or 0)
    return dict(sorted(entries.items()))


def _list_zip(uri: str) -> list[zipfile.ZipInfo]:
    files, path = storage.filesystem(uri)
    with files.open_input_file(path) as stream, zipfile.ZipFile(stream) as archive:
        return archive.infolist()


def _zip_entries(uri: str) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    try:
        listed = storage.access(uri, "read", lambda: _list_zip(uri))
    except UserError:
        raise
    except (zipfile.BadZipFile, struct.error, NotImplementedError, EOFError, ValueError) as error:
        raise UserError(
            f"{uri} is no zip, or one that was cut short ({error}): copy it again, or give a folder"
        ) from error
    for info in listed:
        # `zipfile` cuts names at NUL and turns backslashes on some systems: what the archive says is judged.
        name = info.orig_filename
        check_name(name.rstrip("/"), uri)
        if info.is_dir():
            continue
        if name in entries:
            raise UserError(f"{uri} holds the file {name} twice: make it anew")
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{uri} holds {name} encrypted or packed in a way unknown here: zip it again")
        entries[name] = Entry(
            name, info.file_size, info.compress_size, info.header_offset, info.compress_type, info.CRC
        )
    return entries


def read_entries(uri: str, entries: list[Entry]) -> Iterator[bytes]:
    """The contents of files of a source, in the order given.

    Raises:
        UserError: a file is gone, cut short or damaged; it is named.
    """
    files, path = storage.filesystem(uri)
    if entries and entries[0].offset < 0:
        yield from _read_files(files, path, uri, entries)
        return
    with storage.access(uri, "read", lambda: files.open_input_file(path)) as stream:
        contents: dict[int, bytes] = {}
        order = sorted(range(len(entries)), key=lambda index: entries[index].offset)
        for run in _runs(entries, order):
            contents |= _read_run(stream, uri, entries, run)
    for index in range(len(entries)):
        yield contents.pop(index)


def _read_files(files: Any, root: str, uri: str, entries: list[Entry]) -> Iterator[bytes]:
    def read(entry: Entry) -> bytes:
        place = storage.join(uri, entry.name)

        def whole() -> bytes:
            with files.open_input_file(f"{root}/{entry.name}") as stream:
                return stream.read()

        data = storage.access(place, "read", whole)
        if len(data) != entry.size:
            raise UserError(f"{place} has changed while it was read: run the same command again")
        return data

    with ThreadPoolExecutor(_TOGETHER) as pool:
        for start in range(0, len(entries), _TOGETHER):
            yield from pool.map(read, entries[start : start + _TOGETHER])


def _runs(entries: list[Entry], order: list[int]) -> Iterator[list[int]]:
    """Indices of entries that are read in one request, in the order of their places."""
    run: list[int] = []
    for index in order:
        if run:
            first, last = entries[run[0]], entries[run[-1]]
            end = entries[index].offset + entries[index].packed
            near = entries[index].offset - (last.offset + last.packed) < _GAP
            if not near or end - first.offset > _REQUEST:
                yield run
                run = []
        run.append(index)
    if run:
        yield run


def _read_run(stream: Any, uri: str, entries: list[Entry], run: list[int]) -> dict[int, bytes]:
    first, last = entries[run[0]], entries[run[-1]]
    # A local header has an extra field of its own, most often short; what is cut off is read after it.
    tail = _LOCAL_HEADER.size + len(last.name.encode()) + 64
    length = last.offset + last.packed + tail - first.offset
    block = storage.access(uri, "read", lambda: stream.read_at(length, first.offset))
    contents = {}
    for index in run:
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
