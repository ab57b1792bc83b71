"""OBJ, MTL and PLY as Blender, MeshLab, Maya and scanners write them; what is not read is named."""

import struct
from pathlib import Path

import numpy as np
import pytest
from data_samples import png

from mimic3d_platform.data.render.meshes import Mesh, load_folder, load_mesh

QUAD = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
UV = "vt 0.25 0.75\n" * 4
FACE = "f 1/1 2/2 3/3 4/4\n"
OBJ = f"mtllib m.mtl\n{QUAD}{UV}usemtl Body\n{FACE}"
# Red on the left half, blue on the right, green in the lower half.
ATLAS = np.zeros((8, 8, 3), np.uint8)
ATLAS[:, :4], ATLAS[:, 4:], ATLAS[4:] = [255, 0, 0], [0, 0, 255], [0, 255, 0]
RED, GREEN, BLUE = np.eye(3)
WHITE = png(np.full((4, 4, 3), 255, np.uint8))
BLACK = png(np.zeros((4, 4, 3), np.uint8))


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def load(folder: Path, files: dict[str, str | bytes]) -> Mesh:
    write(folder, files)
    return load_mesh(folder / next(iter(files)), identifier="a")


def coloured(colour: str) -> dict[str, str | bytes]:
    """A square of vertices of one colour."""
    return {"a.obj": "".join(f"{line} {colour}\n" for line in QUAD.splitlines()) + "f 1 2 3 4\n"}


def textured(
    line: str, texture: bytes = png(ATLAS), obj: str = OBJ, place: str = "t.png"
) -> dict[str, str | bytes]:
    return {"a.obj": obj, "m.mtl": f"newmtl Body\nKd 0.8 0.8 0.8\n{line}\n", place: texture}


COLOURS = {
    "a grey Kd beside a texture, as Blender writes it": (textured("map_Kd t.png"), RED),
    "black Kd beside a texture": (textured("Kd 0 0 0\nmap_Kd t.png"), RED),
    "a coloured Kd tints": (textured("Kd 1 0.5 0\nmap_Kd t.png", WHITE), [1, 0.5, 0]),
    "blanks": (textured("map_Kd my t.png", place="my t.png"), RED),
    "quotes": (textured('map_Kd "my t.png"', place="my t.png"), RED),
    "backslashes": (textured("map_Kd tex\\t.png", place="tex/t.png"), RED),
    "another case": (textured("map_Kd T.PNG"), RED),
    "a path of another machine": (textured("map_Kd C:\\Users\\me\\t.png"), RED),
    "offset": (textured("map_Kd -o 0.5 0 0 t.png"), BLUE),
    "scale and offset": (textured("map_Kd -s 2 1 1 -o 0.25 0 0 t.png"), BLUE),
    "options without an effect": (textured("map_Kd -blendu on -texres 64 -clamp off t.png"), RED),
    "base and gain": (textured("map_Kd -mm 0.25 0.5 t.png", WHITE), [0.75, 0.75, 0.75]),
    "clamp": (textured("map_Kd -clamp on t.png", obj=OBJ.replace("vt 0.25", "vt 1.25")), BLUE),
    "v counts from the bottom": (textured("map_Kd t.png", obj=OBJ.replace("0.75", "0.25")), GREEN),
    "16 bits of grey": (textured("map_Kd t.png", png(np.full((4, 4), 40000, np.uint16))), [0.61] * 3),
    "emission": ({"a.obj": OBJ, "m.mtl": "newmtl Body\nKd 0 0 0\nKe 0.2 0.4 0\n"}, [0.2, 0.4, 0]),
    "emission times its texture": (textured("Kd 0 0 0\nKe 1 1 1\nmap_Ke t.png"), RED),
    "emission in part": (textured("Kd 0 0 0\nKe 0.5 1 1\nmap_Ke t.png"), [0.5, 0, 0]),
    "an emissive texture without Ke": (textured("Kd 0 0 0\nmap_Ke t.png"), RED),
    "a black emissive texture": (textured("map_Kd t.png\nKe 1 1 1\nmap_Ke k.png") | {"k.png": BLACK}, RED),
    "black emission reads no texture": (textured("map_Kd t.png\nKe 0 0 0\nmap_Ke none.png"), RED),
    "Kd up to 255": (textured("Kd 255 51 0"), [1, 0.2, 0]),
    "Kd a little above 1": (textured("Kd 1.2 0.5 0"), [1, 0.5, 0]),
    "a comment that ends in a backslash": (textured("# C:\\tex\\\nKd 1 0 0"), RED),
    "a comment behind a statement that ends in one": (textured("d 1 # C:\\\nKd 1 0 0"), RED),
    "blanks behind a backslash": (textured("Kd 1 \\ \n0 \\\n0"), RED),
    "two blanks in a name": (textured("map_Kd -s 1 1 1 my  t.png", place="my  t.png"), RED),
    "a comment behind a texture": (textured("map_Kd t.png # red"), RED),
    "a comment in a texture's name": (textured("map_Kd t #1.png", place="t #1.png"), RED),
    "an empty map_Kd before another": (textured("map_Kd\nmap_Kd t.png"), RED),
    "an accent of its own": (textured("map_Kd \u00e4.png", place="a\u0308.png"), RED),
    "an accent that is none": (textured("map_Kd A\u0308.png", place="\u00e4.png"), RED),
    "a comment behind a face": (textured("Kd 1 0 0", obj=OBJ.replace("4/4\n", "4/4 # c\n")), RED),
    "a comment behind usemtl": (textured("Kd 1 0 0", obj=OBJ.replace("Body\n", "Body # c\n")), RED),
    "a quoted library": (textured("Kd 1 0 0", obj=OBJ.replace("m.mtl", '"m.mtl" # c')), RED),
    "faces before vertices": (
        textured("Kd 1 0 0", obj="mtllib m.mtl\nusemtl Body\n" + FACE + QUAD + UV),
        RED,
    ),
    "one value of Kd": ({"a.obj": OBJ, "m.mtl": "newmtl Body\nKd 0.3\n"}, [0.3] * 3),
    "Tr 1 is opaque": ({"a.obj": OBJ, "m.mtl": "newmtl Body\nKd 0.5 0.5 0.5\nTr 1\n"}, [0.5] * 3),
    "two libraries": (
        {"a.obj": OBJ.replace("m.mtl", "n.mtl m.mtl"), "m.mtl": "newmtl Body\nKd 1 0 0\n", "n.mtl": ""},
        RED,
    ),
    "UTF-8 marks": ({"a.obj": "\ufeff" + OBJ, "m.mtl": "\ufeffnewmtl Body\nKd 1 0 0\n"}, RED),
    "colours of vertices": (coloured("0.8 0.1 0.1"), [0.8, 0.1, 0.1]),
    "colours of vertices up to 255": (coloured("204 51 0"), [0.8, 0.2, 0]),
    "colours of vertices that are rounded": (coloured("1.00001 0.5 0"), [1, 0.5, 0]),
}


@pytest.mark.parametrize("case", COLOURS)
def test_colours_of_an_obj(case: str, tmp_path: Path) -> None:
    files, right = COLOURS[case]
    assert load(tmp_path, files).colours == pytest.approx(np.tile(np.array(right), (2, 1)), abs=0.005)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a.obj": OBJ}, "its material file m.mtl is missing"),
        ({"a.obj": OBJ, "m.mtl": "newmtl Other\n"}, "its material Body is not in m.mtl"),
        (textured("map_Kd u.png"), "its texture u.png is missing"),
        (textured("map_Kd"), "it names no texture"),
        (textured("map_Kd t.png", b""), "its texture t.png has no bytes"),
        (textured("map_Kd t.png", b"<html>"), "it is broken, or no image"),
        (textured("map_Kd -turn 90 t.png"), "the option -turn is not known"),
        (textured("map_Kd -t 1 1 1 t.png"), "turbulence"),
        (
            textured("map_Kd t.png", obj=OBJ.replace("0.25", "-nan(ind)")),
            "texture coordinates that are not finite",
        ),
        (textured("map_Kd t.png", obj=OBJ.replace("1/1", "1")), "no texture coordinates"),
        ({"a.obj": OBJ, "m.mtl": "newmtl Body\nKd spectral a.rfl\n"}, "colours as spectral are not read"),
        ({"a.obj": QUAD + "f 1 2 3 4\ncstype bspline\n"}, "curved surfaces"),
        ({"a.obj": QUAD + "f 1 2 9\n"}, "a face of it names number 9 of its 4 vertices"),
        ({"a.obj": "mtllib\n" + QUAD + "f 1 2 3\n"}, "its statement mtllib names no file"),
        (textured("map_Kd -mm 0"), "an option lacks its value"),
        (textured("map_Kd u.png # c"), "its texture u.png is missing"),
        (textured("map_Kd t.png") | {"m.mtl": "<!DOCTYPE html>"}, "its material file m.mtl is a web page"),
        ({"a.obj": QUAD + "f 0 1 2\n"}, "there is no number 0 among 4"),
        ({"a.obj": QUAD.replace("1", "1,0") + "f 1 2 3\n"}, "is not read ('1,0' is no number)"),
        ({"a.obj": QUAD + "f 1.0 2 3\n"}, "is not read ('1.0' is no number)"),
    ],
)
def test_what_is_not_read_of_an_obj_is_named(files: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        load(tmp_path, files)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (textured("Kd 255 51 0"), "m.mtl: Kd go up to 255"),
        (coloured("204 51 0"), "a.obj: colours of vertices go up to 204"),
        (textured("map_Ka t.png"), "the material Body has map_Ka without map_Kd"),
        ({"a.obj": "#MRGB ff00ff00\n" + QUAD + "f 1 2 3\n"}, "#MRGB"),
    ],
)
def test_what_an_obj_means_in_doubt_is_logged(
    files: dict, says: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(tmp_path, files)
    assert len(caplog.records) == 1 and says in caplog.text


def test_a_bad_mesh_ends_no_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, textured("map_Kd t.png", obj=OBJ.replace("0.25", "inf")))
    write(tmp_path, {"b.obj": QUAD + "f 1 2 3 4\n"})
    assert [mesh.identifier for mesh in load_folder(tmp_path)] == ["b.obj"]
    assert "a.obj" in caplog.text


def test_a_wide_opacity_map_cuts_faces_out(tmp_path: Path) -> None:
    mask = np.zeros((4, 4), np.uint8)
    mask[:, 2:] = 255
    obj = OBJ.replace(UV, "vt 0.9 0.5\n" * 4 + "vt 0.1 0.5\n" * 3) + "f 1/5 2/6 3/7\n"
    assert len(load(tmp_path, textured("map_d t.png", png(mask), obj)).faces) == 2


def area(mesh: Mesh) -> float:
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


L_SHAPE = [(0, 0), (4, 0), (4, 1), (1, 1), (1, 4), (0, 4)]
# A square with a square hole, joined to the outline by an edge there and back.
FRAME = [(0, 0), (4, 0), (4, 4), (0, 4), (0, 0), (1, 1), (1, 3), (3, 3), (3, 1), (1, 1)]
DART = [(0, 0), (4, 1), (0, 4), (1, 1)]


@pytest.mark.parametrize(("outline", "right"), [(L_SHAPE, 7 / 16), (FRAME, 12 / 16), (DART, 6 / 16)])
@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("ending", ["obj", "ply"])
def test_polygons_that_are_not_convex(
    outline: list, right: float, turn: int, ending: str, tmp_path: Path
) -> None:
    points = outline[turn:] + outline[:turn]
    if outline is FRAME:  # its corner that closes it stays where it is
        points = outline
    rows = [f"{x} 0 {y}" for x, y in points]
    numbers = range(len(points))
    if ending == "obj":
        text = (
            "".join(f"v {row}\n" for row in rows) + "f " + " ".join(str(each + 1) for each in numbers) + "\n"
        )
    else:
        text = ply_header(len(points), "", 1) + "".join(f"{row}\n" for row in rows)
        text += f"{len(points)} " + " ".join(map(str, numbers)) + "\n"
    assert area(load(tmp_path, {f"a.{ending}": text})) == pytest.approx(right)


def ply_header(
    vertices: int, more: str, faces: int, form: str = "ascii", of_faces: str = "", top: str = ""
) -> str:
    return (
        f"ply\nformat {form} 1.0\n{top}element vertex {vertices}\nproperty float x\nproperty float y\n"
        f"property float z\n{more}element face {faces}\nproperty list uchar int vertex_indices\n"
        f"{of_faces}end_header\n"
    )


POINTS = ("0 0 0", "1 0 0", "1 1 0", "0 1 0")


def colours_of(kind: str) -> str:
    return "".join(f"property {kind} {name}\n" for name in ("red", "green", "blue"))


PLY = {
    "8 bits": (ply_header(4, colours_of("uchar"), 1), "204 51 0", "", [0.8, 0.2, 0]),
    "16 bits": (ply_header(4, colours_of("ushort"), 1), "52428 13107 0", "", [0.8, 0.2, 0]),
    "32 bits up to 255": (ply_header(4, colours_of("int"), 1), "204 51 0", "", [0.8, 0.2, 0]),
    "32 bits without a sign": (ply_header(4, colours_of("uint"), 1), "204 51 0", "", [0.8, 0.2, 0]),
    "16 bits up to 255": (ply_header(4, colours_of("ushort"), 1), "204 51 0", "", [0.8, 0.2, 0]),
    "all of 32 bits": (
        ply_header(4, colours_of("uint"), 1),
        "4294967295 858993459 0",
        "",
        [1, 0.2, 0],
    ),
    "capitals": (
        ply_header(4, colours_of("uchar").replace("red", "Red").replace("blue", "BLUE"), 1),
        "204 51 0",
        "",
        [0.8, 0.2, 0],
    ),
    "a comment that names no texture, without coordinates": (
        ply_header(4, colours_of("uchar"), 1, top="comment TextureFile\n"),
        "204 51 0",
        "",
        [0.8, 0.2, 0],
    ),
    "floating point": (ply_header(4, colours_of("float"), 1), "0.8 0.2 0", "", [0.8, 0.2, 0]),
    "of faces, as MeshLab writes them": (
        ply_header(4, "", 1, of_faces=colours_of("uchar")),
        "",
        "204 51 0",
        [0.8, 0.2, 0],
    ),
    "a texture, as Blender writes coordinates": (
        ply_header(4, "property float s\nproperty float t\n", 1, top="comment TextureFile t.png\n"),
        "0.25 0.75",
        "",
        RED,
    ),
    "a texture, as MeshLab writes coordinates": (
        ply_header(
            4, "", 1, of_faces="property list uchar float texcoord\n", top="comment TextureFile t.png\n"
        ),
        "",
        "8" + " 0.75 0.75" * 4,
        BLUE,
    ),
}


@pytest.mark.parametrize("case", PLY)
def test_colours_of_a_ply(case: str, tmp_path: Path) -> None:
    header, of_vertex, of_face, right = PLY[case]
    text = header + "".join(f"{point} {of_vertex}\n" for point in POINTS) + f"4 0 1 2 3 {of_face}\n"
    for ends in ("\n", "\r\n", "\r"):
        files = {"a.ply": text.replace("\n", ends), "t.png": png(ATLAS)}
        assert load(tmp_path, files).colours == pytest.approx(np.tile(np.array(right), (2, 1)), abs=0.005)


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_binary_ply_of_mixed_polygons(order: str, tmp_path: Path) -> None:
    sign = "<" if order == "little" else ">"
    data = ply_header(5, colours_of("ushort"), 2, f"binary_{order}_endian").encode()
    for x, y in ((0, 0), (1, 0), (1, 1), (0, 1), (2, 0.5)):
        data += struct.pack(f"{sign}3f3H", x, y, 0, 52428, 13107, 0)
    data += struct.pack(f"{sign}B4i", 4, 0, 1, 2, 3) + struct.pack(f"{sign}B3i", 3, 1, 4, 2)
    mesh = load(tmp_path, {"a.ply": data})
    assert area(mesh) == pytest.approx(1.5 / 4) and mesh.colours[0] == pytest.approx([0.8, 0.2, 0], abs=1e-4)
    with pytest.raises(ValueError, match="is cut off"):
        load(tmp_path, {"a.ply": data[:-3]})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (ply_header(4, "", 1, top="comment TextureFile t.png\n"), "no texture coordinates"),
        (ply_header(4, "", 1, form="text"), "format 'text'"),
        (ply_header(4, "", 1, of_faces="property int material_index\n"), "material indices"),
        ("solid a\n", "it is not PLY"),
    ],
)
def test_what_is_not_read_of_a_ply_is_named(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        load(tmp_path, {"a.ply": text + "\n".join(POINTS) + "\n4 0 1 2 3 0\n"})


ST = "property float s\nproperty float t\n"


@pytest.mark.parametrize(
    ("text", "row", "says"),
    [
        (ply_header(4, colours_of("uchar"), 1), "300 0 0", "property red has the value 300: its type holds"),
        (ply_header(4, colours_of("uchar"), 1), "0.5 0 0", "property red has the value 0.5: its type holds"),
        (ply_header(4, colours_of("int"), 1), "1000 0 0", "its colours go up to 1000 in the type int32"),
        (ply_header(4, colours_of("int"), 1), "-1 0 0", "its colours go down to -1"),
        (ply_header(4, ST, 1, top="comment TextureFile\n"), "0 0", "TextureFile names no file"),
        (ply_header(4, "", 1).replace("list uchar ", ""), "", "vertex_indices is one value"),
        (ply_header(4, "", 1).replace("uchar int", "uchar float"), "", "not finite"),
        (ply_header(4, "", 1).replace("float x", "list uchar float x"), "", "its property x is a list"),
        (ply_header(4, "", 1).replace("end_header", "end"), "", "no end_header"),
        (ply_header(4, "", 1).replace("float x", "half x"), "", "'property half x', not read .the type half"),
        (ply_header(4, "", 1).replace("vertex 4", "vertex"), "", "'element vertex', not read .it is incompl"),
        ("ply\nformat ascii 1.0\nproperty float x\n", "", "'property float x', not read .it is incomplete"),
    ],
)
def test_values_of_a_ply_that_do_not_fit_are_named(text: str, row: str, says: str, tmp_path: Path) -> None:
    rows = "".join(f"{point} {row}\n" for point in POINTS)
    with pytest.raises(ValueError, match=says):
        load(tmp_path, {"a.ply": f"{text}{rows}4 0 1 2 {'inf' if says == 'not finite' else 3}\n"})
