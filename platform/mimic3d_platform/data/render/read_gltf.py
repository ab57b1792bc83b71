"""Reading glTF 2.0 as the standard defines it: nodes, instances, skins, morph targets, strips and fans.

An extension that the file requires and that is not read is an error that names it. Others may be left out by
the standard; those that are not known are logged. Points and lines are not drawn.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mimic3d_platform.data.format.rotations import rotation_matrix
from mimic3d_platform.data.render.gltf_file import GltfFile, Object, numbers
from mimic3d_platform.data.render.gltf_materials import Materials
from mimic3d_platform.data.render.mesh_parts import MeshPart

log = logging.getLogger(__name__)

_DRACO = "KHR_draco_mesh_compression"
# Extensions that are read.
_READ = {
    "KHR_texture_transform",
    "KHR_mesh_quantization",
    "KHR_materials_unlit",
    "KHR_materials_emissive_strength",
    "KHR_materials_pbrSpecularGlossiness",
    "KHR_materials_transmission",
    "KHR_node_visibility",
    "EXT_mesh_gpu_instancing",
    "EXT_texture_webp",
    "EXT_texture_avif",
}
# Extensions that are known and change nothing that is drawn here: shine, lights, metadata, interaction.
_WITHOUT_EFFECT = {
    "KHR_animation_pointer",
    "KHR_lights_punctual",
    "KHR_materials_anisotropy",
    "KHR_materials_clearcoat",
    "KHR_materials_dispersion",
    "KHR_materials_ior",
    "KHR_materials_iridescence",
    "KHR_materials_sheen",
    "KHR_materials_specular",
    "KHR_materials_variants",
    "KHR_materials_volume",
    "KHR_node_hoverability",
    "KHR_node_selectability",
    "KHR_xmp_json_ld",
    "EXT_lights_ies",
    "EXT_lights_image_based",
}
_POINTS_AND_LINES = (0, 1, 2, 3)
_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_DEEPEST = 500
_FLOATS, _COLOUR_INTEGERS = 5126, (5121, 5123)
# How many numbers an attribute may have for each vertex.
_WIDTHS = {"POSITION": (3,), "COLOR_0": (3, 4), "TEXCOORD": (2,), "JOINTS": (4,), "WEIGHTS": (4,)}
_NUMBERED = ("TEXCOORD_", "JOINTS_", "WEIGHTS_")


@dataclass(frozen=True)
class _Placed:
    """A node of the scene and its world transform."""

    node: Object
    world: np.ndarray


def read_gltf(path: Path) -> list[MeshPart]:
    """The parts of a `.glb` or `.gltf` file's default scene, in its rest pose.

    Raises:
        ValueError: it cannot be read, or requires an extension that is not known.
    """
    file = GltfFile(path)
    _check_extensions(file, path)
    try:
        return list(_parts(file, path))
    except KeyError as error:
        raise ValueError(f"its JSON is damaged: something lacks its {error.args[0]}") from error
    except (TypeError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(
            "its JSON is damaged: it has a value where another kind of value should be"
        ) from error


def _check_extensions(file: GltfFile, path: Path) -> None:
    required = file.names("extensionsRequired")
    known = _READ | _WITHOUT_EFFECT
    if unknown := [name for name in required if name not in known]:
        raise ValueError(f"it requires {', '.join(unknown)}, which is not read: export it without")
    # Where these are not required, there is an uncompressed copy of what they hold; if not, that is an error.
    checked = {
        _DRACO,
        "EXT_meshopt_compression",
        "KHR_meshopt_compression",
        "KHR_texture_basisu",
        "MSFT_texture_dds",
    }
    if ignored := [name for name in file.names("extensionsUsed") if name not in known | checked]:
        log.warning("%s: the extensions %s are not read", path, ", ".join(ignored))


def _parts(file: GltfFile, path: Path) -> Iterator[MeshPart]:
    materials = Materials(file)
    placed = _place_nodes(file)
    for number, item in placed.items():
        if "mesh" not in item.node:
            continue
        mesh = file.item("meshes", item.node["mesh"])
        given = item.node.get("weights") or mesh.get("weights") or []
        weights = numbers(given, len(given), "weights of morph targets", np.zeros(0)).tolist()
        transforms = _instances(file, item)
        for primitive in mesh.get("primitives") or []:
            faces, attributes = _geometry(file, primitive, weights, path)
            if not len(faces):
                continue
            colours = materials.face_colours(primitive.get("material"), faces, attributes)
            points = attributes["POSITION"]
            for world in transforms:
                if "skin" in item.node and "JOINTS_0" in attributes:
                    vertices = _skinned(file, item.node["skin"], placed, points, attributes, number)
                else:
                    vertices = points @ world[:3, :3].T + world[:3, 3]
                mirrored = np.linalg.det(world[:3, :3]) < 0
                yield MeshPart(
                    materials.name(primitive.get("material")),
                    vertices,
                    faces[:, ::-1] if mirrored else faces,
                    colours.colours,
                    colours.opacity,
                )


def _place_nodes(file: GltfFile) -> dict[int, _Placed]:
    """The visible nodes by number, parents first: of the default scene, or of all roots without a scene."""
    nodes = file.document.get("nodes") or []
    if file.document.get("scenes"):
        roots = file.item("scenes", file.document.get("scene", 0)).get("nodes") or []
    else:
        children = {child for node in nodes for child in node.get("children") or []}
        roots = [number for number in range(len(nodes)) if number not in children]
    placed: dict[int, _Placed] = {}
    waiting: list[tuple[Any, np.ndarray, int]] = [(number, np.eye(4), 0) for number in reversed(roots)]
    while waiting:
        number, parent, depth = waiting.pop()
        node = file.item("nodes", number)
        if number in placed or depth > _DEEPEST:
            raise ValueError(f"its node {number} has several parents, or is its own")
        visible = (node.get("extensions") or {}).get("KHR_node_visibility", {}).get("visible", True)
        if not visible:
            continue
        world = parent @ _local_transform(node)
        placed[number] = _Placed(node, world)
        waiting += [(child, world, depth + 1) for child in reversed(node.get("children") or [])]
    return placed


def _local_transform(node: Object) -> np.ndarray:
    if node.get("matrix") is not None:
        return numbers(node["matrix"], 16, "a node's matrix", np.eye(4).ravel()).reshape(4, 4).T
    return _compose(
        numbers(node.get("translation"), 3, "a node's translation", np.zeros(3)),
        numbers(node.get("rotation"), 4, "a node's rotation", np.array([0.0, 0, 0, 1])),
        numbers(node.get("scale"), 3, "a node's scale", np.ones(3)),
    )


def _compose(translation: np.ndarray, rotation: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(4, 4) of a translation, a quaternion (x, y, z, w) and scales."""
    x, y, z, w = rotation / max(float(np.linalg.norm(rotation)), 1e-12)
    result = np.eye(4)
    result[:3, :3] = rotation_matrix(w, x, y, z) * scale
    result[:3, 3] = translation
    return result


def _instances(file: GltfFile, item: _Placed) -> list[np.ndarray]:
    """The world transforms of a node's mesh: one, or one for each instance (EXT_mesh_gpu_instancing)."""
    instancing = (item.node.get("extensions") or {}).get("EXT_mesh_gpu_instancing")
    if instancing is None:
        return [item.world]
    named: Object = instancing.get("attributes") or {}
    counts = [file.item("accessors", index).get("count", 0) for index in named.values()]
    count = max([0, *counts])
    # Attributes of other names are the application's own, of any type.
    plain = {
        "TRANSLATION": np.zeros((count, 3)),
        "ROTATION": np.tile([0.0, 0, 0, 1], (count, 1)),
        "SCALE": np.ones((count, 3)),
    }
    moves, turns, scales = (
        file.accessor(named[name]) if name in named else values for name, values in plain.items()
    )
    if any(
        each.shape != right.shape for each, right in zip((moves, turns, scales), plain.values(), strict=True)
    ):
        raise ValueError("the instances of a node have transforms of other counts or types than they should")
    return [item.world @ _compose(*parts) for parts in zip(moves, turns, scales, strict=True)]


def _geometry(
    file: GltfFile, primitive: Object, weights: list[float], path: Path
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The triangles (F, 3) of a primitive, and its attributes with morph targets added."""
    mode = primitive.get("mode", _TRIANGLES)
    if mode in _POINTS_AND_LINES:
        return np.zeros((0, 3), np.int64), {}
    named: dict[str, int] = primitive.get("attributes") or {}
    packed = _DRACO in (primitive.get("extensions") or {})
    accessors = [*named.values(), *([primitive["indices"]] if "indices" in primitive else [])]
    if packed and not all("bufferView" in file.item("accessors", number) for number in accessors):
        raise ValueError(f"its geometry is compressed with Draco ({_DRACO}): export it without compression")
    if "POSITION" not in named:
        return np.zeros((0, 3), np.int64), {}
    attributes = {
        name: file.accessor(number, _mend_colour(file, name, number, path)).astype(np.float64)
        for name, number in named.items()
        if name in _WIDTHS or name.startswith(_NUMBERED)
    }
    for name, values in attributes.items():
        if values.shape[1] not in _WIDTHS.get(name, _WIDTHS.get(name.split("_")[0], ())):
            raise ValueError(f"a primitive's {name} has {values.shape[1]} numbers for each vertex")
    for weight, target in zip(weights, primitive.get("targets") or [], strict=False):
        for name, number in target.items() if weight else ():
            if name in attributes:
                attributes[name] = _morphed(name, attributes[name], float(weight), file.accessor(number))
    count = len(attributes["POSITION"])
    if any(len(values) != count for values in attributes.values()):
        raise ValueError("a primitive's attributes are not equally many")
    corners = file.accessor(primitive["indices"])[:, 0] if "indices" in primitive else np.arange(count)
    if corners.dtype.kind != "i":
        raise ValueError("a primitive's indices are no integers")
    if len(corners) and not 0 <= corners.min() <= corners.max() < count:
        raise ValueError("its faces refer to vertices that do not exist")
    return _triangles(corners, mode), attributes


def _mend_colour(file: GltfFile, name: str, number: object, path: Path) -> bool:
    """True for integers of `COLOR_0` without `normalized`, which the standard demands."""
    accessor = file.item("accessors", number)
    if name != "COLOR_0" or accessor.get("componentType") == _FLOATS or accessor.get("normalized"):
        return False
    if accessor.get("componentType") not in _COLOUR_INTEGERS:
        raise ValueError("a COLOR_0 has integers that are not of 8 or 16 bits without a sign")
    log.warning("%s: a COLOR_0 has integers that are not marked as normalised: they are taken so", path)
    return True


def _morphed(name: str, values: np.ndarray, weight: float, target: np.ndarray) -> np.ndarray:
    """Values with a morph target added; a colour's may leave out the alpha."""
    width = min(target.shape[1], values.shape[1]) if name == "COLOR_0" else values.shape[1]
    if len(target) != len(values) or target.shape[1] < width:
        raise ValueError(f"a morph target of {name} has another size than what it changes")
    result = values.copy()
    result[:, :width] += weight * target[:, :width]
    return result


def _triangles(corners: np.ndarray, mode: object) -> np.ndarray:
    """(F, 3) of a list of corners: triangles, a strip or a fan."""
    if mode == _TRIANGLES:
        return corners[: len(corners) // 3 * 3].reshape(-1, 3)
    if mode not in (_STRIP, _FAN):
        raise ValueError(f"a primitive has the unknown mode {mode}")
    if len(corners) < 3:
        return np.zeros((0, 3), np.int64)
    if mode == _FAN:
        return np.stack([corners[1:-1], corners[2:], np.full(len(corners) - 2, corners[0])], axis=1)
    faces = np.stack([corners[:-2], corners[1:-1], corners[2:]], axis=1)
    faces[1::2] = faces[1::2][:, [0, 2, 1]]
    return faces


def _skinned(
    file: GltfFile,
    index: object,
    placed: dict[int, _Placed],
    points: np.ndarray,
    attributes: dict[str, np.ndarray],
    number: int,
) -> np.ndarray:
    """(V, 3): vertices where their joints are in the rest pose; the node's own transform has no effect."""
    skin = file.item("skins", index)
    joints = skin["joints"]
    if missing := [joint for joint in joints if joint not in placed]:
        raise ValueError(f"the skin of its node {number} has the joint {missing[0]}, which the scene lacks")
    world = np.stack([placed[joint].world for joint in joints])
    if "inverseBindMatrices" in skin:
        given = file.accessor(skin["inverseBindMatrices"])
        if given.shape[1] != 16 or len(given) < len(world):
            raise ValueError(f"the skin of its node {number} lacks an inverse bind matrix for each joint")
        inverse = given.reshape(-1, 4, 4).transpose(0, 2, 1)
        world = world @ inverse[: len(world)]
    result, total = np.zeros_like(points), np.zeros((len(points), 1))
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    for name in sorted(each for each in attributes if each.startswith("JOINTS_")):
        partner = name.replace("JOINTS", "WEIGHTS")
        if partner not in attributes:
            raise ValueError(f"a primitive has {name} and no {partner}")
        weights, used = attributes[partner], attributes[name].astype(np.int64)
        if used.size and not 0 <= used.min() <= used.max() < len(world):
            raise ValueError(f"the skin of its node {number} has fewer joints than its vertices name")
        for column in range(used.shape[1]):
            weight = weights[:, column : column + 1]
            moved = np.einsum("vij,vj->vi", world[used[:, column]][:, :3], homogeneous)
            result += weight * moved
            total += weight
    return result / np.where(total == 0, 1, total)
