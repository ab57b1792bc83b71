"""The colours of glTF 2.0: factors, vertex colours, textures and emission."""

from base64 import b64encode
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from data_samples import png
from gltf_samples import QUAD, Gltf, at, base, quad

from mimic3d.export.mesh import save_mesh
from mimic3d_platform.data.render.mesh_parts import to_linear, to_srgb
from mimic3d_platform.data.render.meshes import Mesh, load_mesh

HALF = np.array([0.5, 0.2, 0.05])
WHITE = png(np.full((4, 4, 3), 255, np.uint8))
BROWN = png(np.full((4, 4, 3), [200, 120, 60], np.uint8))
# Red on the left half, blue on the right, green below.
ATLAS = np.zeros((8, 8, 3), np.uint8)
ATLAS[:, :4], ATLAS[:, 4:], ATLAS[4:] = [255, 0, 0], [0, 0, 255], [0, 255, 0]
RED, GREEN, BLUE = np.eye(3)


def load(data: bytes, tmp_path: Path) -> Mesh:
    path = tmp_path / "a.glb"
    path.write_bytes(data)
    return load_mesh(path, identifier="a")


def unmarked(colour: np.ndarray) -> bytes:
    """A square whose COLOR_0 has integers without `normalized`."""
    file = Gltf()
    attributes = {"POSITION": file.accessor(QUAD), "COLOR_0": file.accessor(np.tile(colour, (4, 1)))}
    return file.scene({"attributes": attributes, "mode": 6}).glb()


CLAMP, MIRROR = {"wrapS": 33071, "wrapT": 33071}, {"wrapS": 33648, "wrapT": 33648}
COLOURS = {
    "a factor is linear": (quad(base(baseColorFactor=[*HALF, 1])), to_srgb(HALF)),
    "COLOR_0 is linear": (quad(colour=HALF.astype(np.float32)), to_srgb(HALF)),
    "COLOR_0 of 8 bits": (
        quad(colour=np.array([128, 51, 13, 255], np.uint8)),
        to_srgb(np.array([128, 51, 13]) / 255),
    ),
    "COLOR_0 of 16 bits": (quad(colour=(HALF * 65535).astype(np.uint16)), to_srgb(HALF)),
    "COLOR_0 times a factor": (
        quad(base(baseColorFactor=[0.5, 0.5, 0.5, 1]), HALF.astype(np.float32)),
        to_srgb(HALF / 2),
    ),
    "a texture is sRGB": (quad(base(True), None, at(0.5, 0.5), BROWN), np.array([200, 120, 60]) / 255),
    "a texture times a factor": (
        quad(base(True, baseColorFactor=[0.5, 1, 1, 1]), None, at(0.5, 0.5), BROWN),
        to_srgb(to_linear(np.array([200, 120, 60]) / 255) * [0.5, 1, 1]),
    ),
    "a texture times COLOR_0": (
        quad(base(True), HALF.astype(np.float32), at(0.5, 0.5), WHITE),
        to_srgb(HALF),
    ),
    "v counts from the top": (quad(base(True), None, at(0.25, 0.25), png(ATLAS)), RED),
    "offset": (quad(base(True, {"offset": [0.5, 0]}), None, at(0.25, 0.25), png(ATLAS)), BLUE),
    "scale before offset": (
        quad(base(True, {"offset": [0.5, 0], "scale": [0.5, 0.5]}), None, at(0.25, 0.25), png(ATLAS)),
        BLUE,
    ),
    "anticlockwise, as v counts downwards": (
        quad(base(True, {"rotation": -np.pi / 2}), None, at(0.75, 0.75), png(ATLAS)),
        GREEN,
    ),
    "texture coordinates of 16 bits": (
        quad(base(True), None, np.array([49151, 16383], np.uint16), png(ATLAS)),
        BLUE,
    ),
    "repeated": (quad(base(True), None, at(1.25, -0.75), png(ATLAS)), RED),
    "clamped": (quad(base(True), None, at(1.25, 0.25), png(ATLAS), CLAMP), BLUE),
    "mirrored": (quad(base(True), None, at(1.75, 0.25), png(ATLAS), MIRROR), RED),
    "no material is white": (quad(), np.ones(3)),
    "emission": (quad(base(baseColorFactor=[0, 0, 0, 1]) | {"emissiveFactor": HALF.tolist()}), to_srgb(HALF)),
    "emissive strength": (
        quad(
            base(baseColorFactor=[0, 0, 0, 1])
            | {
                "emissiveFactor": (HALF / 4).tolist(),
                "extensions": {"KHR_materials_emissive_strength": {"emissiveStrength": 4}},
            }
        ),
        to_srgb(HALF),
    ),
    "unlit without emission": (
        quad(
            base(baseColorFactor=[*HALF, 1])
            | {"emissiveFactor": [0, 1, 0], "extensions": {"KHR_materials_unlit": {}}}
        ),
        to_srgb(HALF),
    ),
    "COLOR_0 of 8 bits that is not marked as normalised": (
        unmarked(np.array([128, 51, 13, 255], np.uint8)),
        to_srgb(np.array([128, 51, 13]) / 255),
    ),
    "specular and glossiness": (
        quad({"extensions": {"KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": [*HALF, 1]}}}),
        to_srgb(HALF),
    ),
    "opaque whatever the alpha": (quad(base(baseColorFactor=[*HALF, 0])), to_srgb(HALF)),
    "16 bits of grey": (
        quad(base(True), None, at(0.5, 0.5), png(np.full((4, 4), 40000, np.uint16))),
        np.full(3, 40000 / 65535),
    ),
}


@pytest.mark.parametrize("case", COLOURS)
def test_colours(case: str, tmp_path: Path) -> None:
    data, right = COLOURS[case]
    assert load(data, tmp_path).colours == pytest.approx(np.tile(right, (2, 1)), abs=0.005)


def image(**keys: Any) -> bytes:
    """A square with a texture whose image has these keys."""
    file = Gltf(images=[keys], textures=[{"source": 0}], materials=[base(True)])
    attributes = {
        "POSITION": file.accessor(QUAD),
        "TEXCOORD_0": file.accessor(np.full((4, 2), 0.25, np.float32)),
    }
    return file.scene({"attributes": attributes, "mode": 6, "material": 0}).glb()


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("t/b.png", "t/b.png"),
        ("t\\b.png", "t/b.png"),
        ("T/B.PNG", "t/b.png"),
        ("a%20b.png", "a b.png"),
        ("\u00e4.png", "a\u0308.png"),
        ("a\u0308.png", "\u00e4.png"),
        ("data:image/png;base64," + quote(b64encode(png(ATLAS)), safe=""), "other.png"),
    ],
)
def test_a_texture_is_found_by_its_uri(uri: str, place: str, tmp_path: Path) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_bytes(png(ATLAS))
    assert load(image(uri=uri), tmp_path).colours == pytest.approx(np.tile(RED, (2, 1)))


def test_a_morph_target_of_a_colour_may_leave_out_alpha(tmp_path: Path) -> None:
    file = Gltf()
    colour = file.accessor(np.tile(np.array([0, 0.25, 0, 1], np.float32), (4, 1)))
    target = {"COLOR_0": file.accessor(np.tile(np.array([0.5, 0, 0], np.float32), (4, 1)))}
    attributes = {"POSITION": file.accessor(QUAD), "COLOR_0": colour}
    file.scene({"attributes": attributes, "mode": 6, "targets": [target]}, [{"mesh": 0, "weights": [1.0]}])
    right = to_srgb(np.array([0.5, 0.25, 0]))
    assert load(file.glb(), tmp_path).colours == pytest.approx(np.tile(right, (2, 1)), abs=1e-3)


def test_integers_of_a_colour_that_lack_their_mark_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(unmarked(np.array([128, 51, 13], np.uint8)), tmp_path)
    assert "integers that are not marked as normalised" in caplog.text


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"name": "t"}, "its images[0] has no uri and no bufferView"),
        ({"uri": ""}, "its texture has an empty uri"),
        ({"uri": "t/b.png"}, "its texture t/b.png is missing"),
    ],
)
def test_a_texture_without_a_place_is_named(keys: dict[str, str], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        load(image(**keys), tmp_path)
    assert says in str(caught.value)


@pytest.mark.parametrize("ending", ["glb", "ply"])
def test_the_meshes_of_mimic3d_mesh_keep_their_colours(ending: str, tmp_path: Path) -> None:
    import trimesh

    box = trimesh.creation.box()
    box.visual.vertex_colors = [124, 3, 200, 255]
    mesh = load_mesh(save_mesh(box, tmp_path / f"a.{ending}"), identifier="a")
    assert mesh.colours * 255 == pytest.approx(np.tile([124, 3, 200], (12, 1)), abs=0.3)
