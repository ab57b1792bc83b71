"""Small glTF 2.0 files, written value by value."""

import json
import struct
from typing import Any

import numpy as np

QUAD = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
COMPONENTS = {"int8": 5120, "uint8": 5121, "int16": 5122, "uint16": 5123, "uint32": 5125, "float32": 5126}


class Gltf:
    """A document under construction: arrays become accessors, bytes become buffer views."""

    def __init__(self, **top: Any) -> None:
        self.document: dict[str, Any] = {"asset": {"version": "2.0"}, "scene": 0, "accessors": [], **top}
        self.body, self.views = b"", []

    def view(self, data: bytes, **keys: Any) -> int:
        self.body += b"\0" * (-len(self.body) % 4)
        place = {"buffer": 0, "byteOffset": len(self.body), "byteLength": len(data)}
        self.views.append({**place, **keys})
        self.body += data
        return len(self.views) - 1

    def accessor(self, values: np.ndarray, normalized: bool = False, **keys: Any) -> int:
        width = 1 if values.ndim == 1 else values.shape[1]
        item: dict[str, Any] = {"componentType": COMPONENTS[values.dtype.name], "type": TYPES[width]}
        item |= {"bufferView": self.view(values.tobytes()), "count": len(values), "byteOffset": 0}
        self.document["accessors"].append({**item, **({"normalized": True} if normalized else {}), **keys})
        return len(self.document["accessors"]) - 1

    def image(self, data: bytes) -> int:
        self.document.setdefault("images", []).append({"bufferView": self.view(data)})
        return len(self.document["images"]) - 1

    def texture(self, data: bytes, **keys: Any) -> int:
        self.document.setdefault("textures", []).append({"source": self.image(data), **keys})
        return len(self.document["textures"]) - 1

    def scene(self, primitive: dict[str, Any], nodes: list[dict[str, Any]] | None = None) -> "Gltf":
        nodes = nodes or [{"mesh": 0}]
        self.document |= {"meshes": [{"primitives": [primitive]}], "nodes": nodes}
        children = {child for node in nodes for child in node.get("children", [])}
        self.document["scenes"] = [{"nodes": [each for each in range(len(nodes)) if each not in children]}]
        return self

    def glb(self) -> bytes:
        body = self.body + b"\0" * (-len(self.body) % 4)
        document = {**self.document, "bufferViews": self.views, "buffers": [{"byteLength": len(body)}]}
        text = json.dumps(document).encode()
        text += b" " * (-len(text) % 4)
        chunks = (
            struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(body), b"BIN\0") + body
        )
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def base(texture: bool = False, transform: dict | None = None, **metal: Any) -> dict[str, Any]:
    """A material of a base colour."""
    if texture:
        metal["baseColorTexture"] = {"index": 0}
        if transform is not None:
            metal["baseColorTexture"]["extensions"] = {"KHR_texture_transform": transform}
    return {"pbrMetallicRoughness": metal}


def at(u: float, v: float, dtype: type = np.float32) -> np.ndarray:
    return np.array([u, v], dtype)


def quad(
    material: dict[str, Any] | None = None,
    colour: np.ndarray | None = None,
    places: np.ndarray | None = None,
    texture: bytes | None = None,
    sampler: dict[str, Any] | None = None,
    **top: Any,
) -> bytes:
    """A GLB of one square: `colour` for its corners or one for all, `places` are texture coordinates."""
    file = Gltf(**top)
    indices = file.accessor(np.array([0, 1, 2, 0, 2, 3], np.uint16))
    attributes = {"POSITION": file.accessor(QUAD)}
    if colour is not None:
        normalized = colour.dtype.kind == "u"
        attributes["COLOR_0"] = file.accessor(np.tile(colour, (4, 1)), normalized)
    if places is not None:
        normalized = places.dtype.kind == "u"
        attributes["TEXCOORD_0"] = file.accessor(np.tile(places, (4, 1)), normalized)
    primitive: dict[str, Any] = {"attributes": attributes, "indices": indices}
    if texture is not None:
        file.texture(texture, **({"sampler": 0} if sampler else {}))
        if sampler:
            file.document["samplers"] = [sampler]
    if material is not None:
        file.document["materials"] = [material]
        primitive["material"] = 0
    return file.scene(primitive).glb()
