"""glTF 2.0 is read as the standard defines it; what is not read is named."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import png
from gltf_samples import QUAD, Gltf, at, base, quad
from PIL import Image

from mimic3d_platform.data.render.meshes import Mesh, load_folder, load_mesh

WHITE = png(np.full((4, 4, 3), 255, np.uint8))


def load(data: bytes, tmp_path: Path) -> Mesh:
    path = tmp_path / "a.glb"
    path.write_bytes(data)
    return load_mesh(path, identifier="a")


@pytest.mark.parametrize(
    ("mode", "indices", "area"),
    [
        (4, [0, 1, 2, 0, 2, 3], 1.0),
        (5, [0, 1, 3, 2], 1.0),
        (6, [0, 1, 2, 3], 1.0),
        (4, None, 0.5),
    ],
    ids=["triangles", "strip", "fan", "without indices"],
)
def test_every_way_of_triangles(mode: int, indices: list[int] | None, area: float, tmp_path: Path) -> None:
    file = Gltf()
    primitive: dict[str, Any] = {"attributes": {"POSITION": file.accessor(QUAD)}, "mode": mode}
    if indices is not None:
        primitive["indices"] = file.accessor(np.array(indices, np.uint8))
    mesh = load(file.scene(primitive).glb(), tmp_path)
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    normals = np.cross(b - a, c - a) / 2
    assert normals.sum(axis=0) == pytest.approx([0, 0, area]), "all face the same way"


def sparse_quad() -> Gltf:
    """The square with its third corner moved by a sparse accessor that has no buffer view."""
    file = Gltf()
    moved = file.view(QUAD[1:].tobytes())
    file.document["accessors"].append(
        {
            "componentType": 5126,
            "type": "VEC3",
            "count": 4,
            "sparse": {
                "count": 3,
                "indices": {
                    "bufferView": file.view(np.array([1, 2, 3], np.uint8).tobytes()),
                    "componentType": 5121,
                },
                "values": {"bufferView": moved},
            },
        }
    )
    return file.scene({"attributes": {"POSITION": 0}, "mode": 6})


def quantized_quad() -> Gltf:
    file = Gltf(extensionsRequired=["KHR_mesh_quantization"], extensionsUsed=["KHR_mesh_quantization"])
    points = file.accessor((QUAD * 127).astype(np.int8), True)
    return file.scene({"attributes": {"POSITION": points}, "mode": 6}, [{"mesh": 0, "scale": [4, 4, 4]}])


def morphed_quad() -> Gltf:
    file = Gltf()
    flat = file.accessor(QUAD * np.array([1, 0, 1], np.float32))
    target = {"POSITION": file.accessor(QUAD * np.array([0, 2, 0], np.float32))}
    file.scene({"attributes": {"POSITION": flat}, "mode": 6, "targets": [target]})
    file.document["meshes"][0]["weights"] = [0.5]
    return file


def skinned_quad() -> Gltf:
    """A flat strip whose upper corners hang on a joint that lifts them; the node's own is ignored."""
    file = Gltf()
    low = QUAD * np.array([1, 0, 1], np.float32)
    joints = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], np.uint8)
    weights = np.tile(np.array([255, 0, 0, 0], np.uint8), (4, 1))
    attributes = {
        "POSITION": file.accessor(low),
        "JOINTS_0": file.accessor(joints),
        "WEIGHTS_0": file.accessor(weights, True),
    }
    nodes = [{"mesh": 0, "skin": 0, "scale": [9, 1, 1]}, {"children": [2]}, {"translation": [0, 1, 0]}]
    file.document["skins"] = [{"joints": [1, 2]}]
    return file.scene({"attributes": attributes, "mode": 6}, nodes)


def instanced_quad() -> Gltf:
    """A thin strip, twice (EXT_mesh_gpu_instancing): the second one above the first."""
    file = Gltf(extensionsUsed=["EXT_mesh_gpu_instancing"], extensionsRequired=["EXT_mesh_gpu_instancing"])
    strip = file.accessor(QUAD * np.array([1, 0.5, 1], np.float32))
    moves = file.accessor(np.array([[0, 0, 0], [0, 0.5, 0]], np.float32))
    extension = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": moves}}}
    return file.scene({"attributes": {"POSITION": strip}, "mode": 6}, [{"mesh": 0, "extensions": extension}])


def instanced_quad_of_an_application() -> Gltf:
    """As above, with an attribute of the application's own, whose type is not read."""
    file = instanced_quad()
    own = file.accessor(np.zeros((2, 16), np.float32), type="MAT3")
    file.document["nodes"][0]["extensions"]["EXT_mesh_gpu_instancing"]["attributes"]["_OWN"] = own
    return file


def nested_quad() -> Gltf:
    """A matrix, column by column, above a rotation; another node is hidden (KHR_node_visibility)."""
    file = Gltf(extensionsUsed=["KHR_node_visibility"])
    points = file.accessor(QUAD * np.array([2, 1, 1], np.float32))
    half = np.sqrt(0.5)
    nodes: list[dict[str, Any]] = [
        {"children": [1], "matrix": [1, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 1, 0, 5, 6, 7, 1]},
        {"mesh": 0, "rotation": [0, 0, half, half]},
        {"mesh": 0, "scale": [9, 1, 1], "extensions": {"KHR_node_visibility": {"visible": False}}},
    ]
    return file.scene({"attributes": {"POSITION": points}, "mode": 6}, nodes)


@pytest.mark.parametrize(
    "make",
    [
        sparse_quad,
        quantized_quad,
        morphed_quad,
        skinned_quad,
        instanced_quad,
        instanced_quad_of_an_application,
        nested_quad,
    ],
)
def test_shapes_that_are_a_square_once_read(make: Any, tmp_path: Path) -> None:
    mesh = load(make().glb(), tmp_path)
    assert np.ptp(mesh.vertices, axis=0) == pytest.approx([1, 1, 0], abs=1e-6)


def required(name: str) -> bytes:
    return quad(extensionsUsed=[name], extensionsRequired=[name])


def draco(in_required: bool) -> bytes:
    file = Gltf(extensionsUsed=["KHR_draco_mesh_compression"])
    if in_required:
        file.document["extensionsRequired"] = ["KHR_draco_mesh_compression"]
    file.document["accessors"] = [{"componentType": 5126, "type": "VEC3", "count": 4}]
    packed = {"bufferView": file.view(b"DRACO"), "attributes": {"POSITION": 0}}
    return file.scene(
        {"attributes": {"POSITION": 0}, "mode": 6, "extensions": {"KHR_draco_mesh_compression": packed}}
    ).glb()


def without_fallback(name: str) -> bytes:
    """A texture that only an extension's image gives."""
    file = Gltf(extensionsUsed=[name])
    attributes = {"POSITION": file.accessor(QUAD), "TEXCOORD_0": file.accessor(QUAD[:, :2].copy())}
    file.document |= {"textures": [{"extensions": {name: {"source": 0}}}], "materials": [base(True)]}
    file.image(b"ktx")
    return file.scene({"attributes": attributes, "mode": 6, "material": 0}).glb()


def meshopt() -> bytes:
    file = Gltf(extensionsUsed=["EXT_meshopt_compression"])
    file.accessor(QUAD)
    file.views[0] |= {"buffer": 1, "extensions": {"EXT_meshopt_compression": {"buffer": 0}}}
    data = file.scene({"attributes": {"POSITION": 0}, "mode": 6})
    old = b'"buffers": [{'
    fallback = (
        b'"buffers": [{"byteLength": 48, "extensions": {"EXT_meshopt_compression": {"fallback": true}}}, {'
    )
    whole = data.glb()
    text = whole[20 : whole.index(b"BIN\0") - 4].replace(old, fallback).rstrip()
    first, _, second = text.partition(b'"bufferViews"')
    text = first + b'"bufferViews"' + second.replace(b'"buffer": 1,', b'"buffer": 0,', 1)
    return text


def short_target() -> bytes:
    """A morph target of two of the four vertices."""
    file = morphed_quad()
    target = {"POSITION": file.accessor(QUAD[:2])}
    file.document["meshes"][0]["primitives"][0]["targets"] = [target]
    return file.glb()


def skinned_without_weights() -> bytes:
    file = skinned_quad()
    del file.document["meshes"][0]["primitives"][0]["attributes"]["WEIGHTS_0"]
    return file.glb()


def placed(**node: Any) -> bytes:
    file = Gltf()
    return file.scene(
        {"attributes": {"POSITION": file.accessor(QUAD)}, "mode": 6}, [{"mesh": 0, **node}]
    ).glb()


def float_indices() -> bytes:
    file = Gltf()
    indices = file.accessor(np.array([0, 1, 2], np.float32))
    return file.scene({"attributes": {"POSITION": file.accessor(QUAD)}, "indices": indices}).glb()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (quad(extensionsUsed=[{}]), "its extensionsUsed is [{}]: it should be a list of names"),
        (quad(extensionsUsed=99), "its extensionsUsed is 99"),
        (quad(extensionsRequired=[1]), "its extensionsRequired is [1]"),
        (quad(extensionsRequired="KHR_foo"), 'its extensionsRequired is "KHR_foo"'),
        (float_indices(), "a primitive's indices are no integers"),
        (short_target(), "a morph target of POSITION has another size"),
        (skinned_without_weights(), "a primitive has JOINTS_0 and no WEIGHTS_0"),
        (placed(matrix=[1] * 9), "it has a node's matrix that is not 16 numbers"),
        (placed(scale=["x", 1, 1]), "it has a node's scale that is not 3 numbers"),
        (quad({"alphaMode": "MASK", "alphaCutoff": "x"}), "it has an alpha cutoff that is not 1 number"),
        (draco(True), "KHR_draco_mesh_compression"),
        (draco(False), "compressed with Draco"),
        (required("EXT_meshopt_compression"), "EXT_meshopt_compression"),
        (meshopt(), "EXT_meshopt_compression"),
        (required("KHR_gaussian_splatting"), "KHR_gaussian_splatting"),
        (required("VENDOR_unknown"), "VENDOR_unknown"),
        (without_fallback("KHR_texture_basisu"), "KHR_texture_basisu"),
        (without_fallback("MSFT_texture_dds"), "MSFT_texture_dds"),
        (quad(base(True), None, at(0.5, 0.5), b"<html>"), "it is broken, or no image"),
        (quad(base(True), None, at(np.nan, 0.5), WHITE), "not finite"),
        (quad(base(True), None, None, WHITE), "TEXCOORD_0"),
        (quad(asset={"version": "1.0"}), "glTF 1.0"),
        (quad(asset={"version": "2.0", "minVersion": "2.1"}), "glTF 2.1"),
        (quad()[:-9], "copy it again"),
        (quad(base(baseColorFactor=[0, 0, 0, 0]) | {"alphaMode": "BLEND"}), "transparent"),
        (quad(scene=7), "scenes[7]"),
    ],
)
def test_what_is_not_read_is_named(data: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        load(data, tmp_path)
    assert says in str(caught.value)


def test_extensions_that_may_be_left_out_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(quad(extensionsUsed=["KHR_materials_clearcoat", "VENDOR_unknown"]), tmp_path)
    assert "the extensions VENDOR_unknown are not read" in caplog.text


def test_a_cut_out_material_loses_its_invisible_faces(tmp_path: Path) -> None:
    pixels = np.full((4, 4, 4), 255, np.uint8)
    pixels[:, 2:, 3] = 0
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    file = Gltf()
    places = np.array([[0.1, 0.5]] * 3 + [[0.9, 0.5]] * 3, np.float32)
    attributes = {"POSITION": file.accessor(QUAD[[0, 1, 2, 0, 2, 3]]), "TEXCOORD_0": file.accessor(places)}
    file.texture(sink.getvalue())
    file.document["materials"] = [base(True) | {"alphaMode": "MASK"}]
    mesh = load(file.scene({"attributes": attributes, "material": 0}).glb(), tmp_path)
    assert len(mesh.faces) == 1


def test_a_gltf_file_with_its_buffer_beside(tmp_path: Path) -> None:
    file = Gltf().scene({"attributes": {}, "mode": 6})
    primitive = file.document["meshes"][0]["primitives"][0]
    primitive["attributes"] = {"POSITION": file.accessor(QUAD)}
    whole = file.glb()
    text = whole[20 : whole.index(b"BIN\0") - 4].rstrip()
    (tmp_path / "a b.bin").write_bytes(whole[whole.index(b"BIN\0") + 4 :])
    (tmp_path / "a.gltf").write_bytes(text.replace(b'"buffers": [{', b'"buffers": [{"uri": "a%20b.bin", '))
    (mesh,) = load_folder(tmp_path)
    assert np.ptp(mesh.vertices, axis=0) == pytest.approx([1, 1, 0])
    (tmp_path / "a b.bin").unlink()
    with pytest.raises(ValueError, match=r"its buffer a%20b\.bin is missing"):
        load_mesh(tmp_path / "a.gltf", identifier="a")
