"""The container of glTF 2.0: the JSON document, its buffers and its accessors."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np

from mimic3d_platform.data.render.textures import find_file

_MAGIC, _JSON_CHUNK, _BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
_DTYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_COMPRESSED_VIEWS = ("EXT_meshopt_compression", "KHR_meshopt_compression")

Object = dict[str, Any]


class GltfFile:
    """A parsed `.glb` or `.gltf` file.

    Attributes:
        document: the JSON document.
    Raises:
        ValueError: it is not glTF 2, or cut off.
    """

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        data = path.read_bytes()
        self._binary: bytes | None = None
        text = data
        if data[:4] == b"glTF":
            text, self._binary = _chunks(data)
        try:
            document = json.loads(text.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is not glTF (its JSON cannot be read: {error})") from error
        if not isinstance(document, dict) or not isinstance(document.get("asset"), dict):
            raise ValueError("it is not glTF (its JSON has no asset)")
        self.document: Object = document
        asset = document["asset"]
        wanted = str(asset.get("minVersion") or asset.get("version"))
        if wanted.split(".")[0] != "2" or asset.get("minVersion") not in (None, "2.0"):
            raise ValueError(f"it is glTF {wanted}, and 2.0 is read: export it as glTF 2.0")
        self._buffers: dict[int, bytes] = {}

    def names(self, key: str) -> list[str]:
        """The document's list of names `key`, such as `extensionsUsed`.

        Raises:
            ValueError: it is something else.
        """
        found = self.document.get(key) or []
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise ValueError(f"its {key} is {json.dumps(found)[:40]}: it should be a list of names")
        return found

    def item(self, kind: str, index: object) -> Object:
        """The object `index` of the document's list `kind`, such as `accessors`.

        Raises:
            ValueError: there is none.
        """
        items = self.document.get(kind) or []
        if not isinstance(items, list):
            raise ValueError(f"its {kind} is no list")
        number = index if isinstance(index, int) and not isinstance(index, bool) else -1
        if not 0 <= number < len(items) or not isinstance(items[number], dict):
            raise ValueError(f"it refers to {kind}[{index}], which it lacks")
        return items[number]

    def read_uri(self, uri: str, what: str) -> bytes:
        """The bytes of a data URI, or of a file beside the document.

        Raises:
            ValueError: the file is missing or the URI leads elsewhere.
        """
        if uri.startswith("data:"):
            head, comma, body = uri.partition(",")
            data = unquote_to_bytes(body)
            try:
                return base64.b64decode(data) if head.endswith(";base64") and comma else data
            except (binascii.Error, ValueError) as error:
                raise ValueError(f"its {what} is not base64") from error
        if not uri:
            raise ValueError(f"its {what} has an empty uri: give the name of a file")
        place = (
            None if "://" in uri else find_file(self._folder, unquote(uri)) or find_file(self._folder, uri)
        )
        if place is None:
            raise ValueError(f"its {what} {uri} is missing: put it beside the mesh")
        return place.read_bytes()

    def view(self, index: object) -> tuple[bytes, int]:
        """The bytes of a buffer view, and its stride or 0.

        Raises:
            ValueError: it is compressed, or leads out of its buffer.
        """
        view = self.item("bufferViews", index)
        number = view["buffer"]
        buffer = self.item("buffers", number)
        packed = [name for name in _COMPRESSED_VIEWS if name in view.get("extensions", {})]
        fallback = any(
            buffer.get("extensions", {}).get(name, {}).get("fallback") for name in _COMPRESSED_VIEWS
        )
        lacking = buffer.get("uri") is None and not (number == 0 and self._binary is not None)
        if packed and (fallback or lacking):
            raise ValueError(f"its geometry is compressed with {packed[0]}: export it without compression")
        if number not in self._buffers:
            if buffer.get("uri") is not None:
                self._buffers[number] = self.read_uri(str(buffer["uri"]), "buffer")
            elif lacking:
                raise ValueError(f"it refers to buffer {number}, which has no data")
            else:
                assert self._binary is not None
                self._buffers[number] = self._binary
        start = view.get("byteOffset", 0)
        if not all(isinstance(each, int) and each >= 0 for each in (start, view.get("byteLength"))):
            raise ValueError(
                f"its bufferViews[{index}] has no byteOffset or byteLength that is a number of bytes"
            )
        data = self._buffers[number][start : start + view["byteLength"]]
        if len(data) != view["byteLength"]:
            raise ValueError(f"its buffer {number} is shorter than it says: copy the file again")
        return data, view.get("byteStride", 0)

    def accessor(self, index: object, normalised: bool = False) -> np.ndarray:
        """(n, components) float64, or int64 for integers that are not normalised.

        Sparse accessors are filled in; those without a buffer view are zeros.

        Args:
            normalised: take integers as normalised, whatever the accessor says.
        Raises:
            ValueError: it is damaged, or of an unknown type.
        """
        accessor = self.item("accessors", index)
        kind, component = accessor.get("type"), accessor.get("componentType")
        if kind not in _WIDTHS or component not in _DTYPES:
            raise ValueError(f"its accessor {index} is of the type {kind} of {component}, which is not read")
        dtype, width, count = np.dtype(_DTYPES[component]), _WIDTHS[kind], accessor.get("count")
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"its accessor {index} has the count {count}: it should be a number of elements")
        if "bufferView" in accessor:
            values = self._values(accessor["bufferView"], accessor.get("byteOffset", 0), dtype, width, count)
        else:
            values = np.zeros((count, width), dtype)
        if sparse := accessor.get("sparse"):
            values = values.copy()
            places, changed = sparse["indices"], sparse["values"]
            if places.get("componentType") not in _DTYPES:
                raise ValueError(f"its sparse accessor {index} has indices of an unknown componentType")
            rows = self._values(
                places["bufferView"],
                places.get("byteOffset", 0),
                np.dtype(_DTYPES[places["componentType"]]),
                1,
                sparse["count"],
            )[:, 0].astype(np.int64)
            if len(rows) and rows.max() >= count:
                raise ValueError(f"its sparse accessor {index} changes elements that it lacks")
            values[rows] = self._values(
                changed["bufferView"], changed.get("byteOffset", 0), dtype, width, sparse["count"]
            )
        if dtype.kind == "f":
            return values.astype(np.float64)
        if accessor.get("normalized") or normalised:
            return np.maximum(values.astype(np.float64) / np.iinfo(dtype).max, -1.0)
        return values.astype(np.int64)

    def _values(self, view: object, offset: int, dtype: np.dtype, width: int, count: int) -> np.ndarray:
        data, stride = self.view(view)
        size = dtype.itemsize * width
        stride = stride or size
        if (
            count < 0
            or offset < 0
            or stride < size
            or (count and offset + stride * (count - 1) + size > len(data))
        ):
            raise ValueError("an accessor reads beyond its buffer view: copy the file again")
        shape, strides = (count, width), (stride, dtype.itemsize)
        return np.ndarray(shape, dtype, data, offset, strides)


def _chunks(data: bytes) -> tuple[bytes, bytes | None]:
    """The JSON and the binary chunk of a GLB file."""
    if len(data) < 20:
        raise ValueError("it is a GLB file that is cut off: copy it again")
    _, version, total = struct.unpack_from("<III", data)
    if version != 2:
        raise ValueError(f"it is GLB {version}, and 2 is read: export it as glTF 2.0")
    if total > len(data):
        raise ValueError(f"it is a GLB file of {len(data)} bytes that says {total}: copy it again")
    text, binary, position = b"", None, 12
    while position + 8 <= total:
        length, kind = struct.unpack_from("<II", data, position)
        body = data[position + 8 : position + 8 + length]
        if kind == _JSON_CHUNK and not text:
            text = body
        elif kind == _BINARY_CHUNK and binary is None:
            binary = body
        position += 8 + length
    return text, binary


def numbers(value: object, count: int, what: str, default: np.ndarray) -> np.ndarray:
    """(count,) float64, or `default` for None; a single number may stand without a list.

    Raises:
        ValueError: the value is not so many finite numbers.
    """
    if value is None:
        return default
    try:
        found = np.array(value, dtype=np.float64)
        found = found[None] if count == 1 and found.ndim == 0 else found
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.shape != (count,) or not np.isfinite(found).all():
        raise ValueError(f"it has {what} that is not {count} number{'s' * (count > 1)}")
    return found
