"""Reading Wavefront OBJ files and their MTL materials.

Colours (`Kd`, `Ke`, vertex colours, textures) are sRGB. A texture (`map_Kd`) is multiplied by `Kd` only where
`Kd` is a colour: exporters write any grey, black among them, beside a texture that replaces it. A wholly
invisible material (`d 0`, `Tr 1`) is opaque, since programs that count `Tr` the other way write that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mimic3d_platform.data.render.mesh_parts import NEUTRAL, MeshPart, at_sample_points
from mimic3d_platform.data.render.polygons import triangulate
from mimic3d_platform.data.render.textures import Texture, decode_texture, find_file

log = logging.getLogger(__name__)

# Statements of curved surfaces and of other files, without which a part of the shape would be missing.
_SHAPES_NOT_READ = ("curv", "curv2", "surf", "cstype", "deg", "bmat", "call", "csh", "con")
# Options of a texture without an effect on its colours at this size, and how many values they have.
_IDLE_OPTIONS = {"-blendu": 1, "-blendv": 1, "-boost": 1, "-texres": 1, "-cc": 1, "-bm": 1, "-type": 1}


@dataclass
class _Map:
    """A texture of a material, and what its options do."""

    texture: Texture
    scale: np.ndarray
    offset: np.ndarray
    base: float
    gain: float
    channel: str

    def read(self, places: np.ndarray) -> np.ndarray:
        """(…, 4) at texture coordinates (…, 2) that count from the bottom left."""
        moved = places * self.scale + self.offset
        values = self.texture.read(np.stack([moved[..., 0], 1 - moved[..., 1]], axis=-1))
        values[..., :3] = np.clip(self.base + self.gain * values[..., :3], 0, 1)
        return values


@dataclass
class _Material:
    diffuse: np.ndarray | None = None
    emissive: np.ndarray = field(default_factory=lambda: np.zeros(3))
    opacity: float = 1.0
    texture: _Map | None = None
    opacity_map: _Map | None = None


@dataclass
class _Faces:
    """The polygons of one material: for each, the indices of its corners and of their texture coordinates."""

    corners: list[list[int]] = field(default_factory=list)
    places: list[list[int]] = field(default_factory=list)


def read_obj(path: Path) -> list[MeshPart]:
    """The parts of an OBJ file, one for each material.

    Raises:
        ValueError: it cannot be read, or it needs a material, a texture or a statement that is not read.
    """
    points, colours, places, groups, libraries = _parse(_lines(path.read_bytes()))
    if not any(faces.corners for faces in groups.values()):
        raise ValueError("it has no faces")
    materials: dict[str, _Material] = {}
    for library in libraries:
        place = find_file(path.parent, library)
        if place is None:
            raise ValueError(f"its material file {library} is missing: put it beside the mesh")
        materials = _materials(place) | materials
    if lacking := sorted(name for name in groups if name and name not in materials):
        if libraries:
            raise ValueError(f"its material {lacking[0]} is not in {', '.join(libraries)}")
        log.warning("%s names materials and no material file: it is drawn grey", path)
    return [
        _part(name, materials.get(name), faces, points, colours, places)
        for name, faces in groups.items()
        if faces.corners
    ]


def _lines(data: bytes) -> Iterator[list[str]]:
    """The words of each statement; continued lines are joined."""
    text = data.removeprefix(b"\xef\xbb\xbf")
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        decoded = text.decode("utf-16", errors="replace")
    else:
        try:
            decoded = text.decode()
        except UnicodeDecodeError:
            decoded = text.decode("latin-1")
    lines = decoded.replace("\r\n", "\n").replace("\r", "\n").replace("\\\n", " ").split("\n")
    for line in lines:
        words = line.split()
        if words and not words[0].startswith("#"):
            yield words


def _parse(
    lines: Iterator[list[str]],
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, dict[str, _Faces], list[str]]:
    """Points (V, 3), vertex colours (V, 3) or None, texture coordinates (T, 2), faces by material, MTLs."""
    points: list[list[float]] = []
    colours: dict[int, list[float]] = {}
    places: list[list[float]] = []
    groups: dict[str, _Faces] = {}
    libraries: list[str] = []
    faces = groups.setdefault("", _Faces())
    for words in lines:
        kind = words[0]
        try:
            if kind == "v":
                values = [float(word) for word in words[1:]]
                points.append(values[:3])
                if len(values) < 3:
                    raise ValueError("fewer than 3 numbers")
                if len(values) >= 6:
                    colours[len(points) - 1] = values[3:6] if len(values) == 6 else values[-4:-1]
            elif kind == "vt":
                values = [_number(word) for word in words[1:3]]
                places.append(values if len(values) == 2 else [*values, 0.0])
            elif kind in ("f", "fo"):  # codespell:ignore fo
                corner, place = _corners(words[1:], len(points), len(places))
                faces.corners.append(corner)
                faces.places.append(place)
            elif kind == "usemtl":
                faces = groups.setdefault(" ".join(words[1:]), _Faces())
            elif kind == "mtllib":
                several = len(words) > 2 and all(word.lower().endswith(".mtl") for word in words[1:])
                libraries += words[1:] if several else [" ".join(words[1:])]
            elif kind == "usemap" and words[1:] != ["off"]:
                raise ValueError("a texture map without a material")
            elif kind in _SHAPES_NOT_READ:
                raise ValueError("curved surfaces and other files are not read: export polygons")
        except (ValueError, IndexError) as error:
            raise ValueError(f"its line {' '.join(words)[:60]!r} is not read ({error})") from error
    shade = None
    if colours:
        shade = np.full((len(points), 3), np.nan)
        shade[list(colours)] = list(colours.values())
        with np.errstate(invalid="ignore"):
            if np.nanmax(shade) > 1:
                shade /= 255
        shade = shade.clip(0, 1)
    place_array = np.array(places, dtype=np.float64).reshape(-1, 2)
    return np.array(points, dtype=np.float64).reshape(-1, 3), shade, place_array, groups, libraries


def _number(word: str) -> float:
    """A number, NaN for what C libraries write for one: `-nan(ind)`, `1.#QNAN`."""
    try:
        return float(word)
    except ValueError:
        lower = word.lower()
        if "nan" in lower or "#ind" in lower or "#inf" in lower:
            return float("nan")
        raise


def _corners(words: list[str], points: int, places: int) -> tuple[list[int], list[int]]:
    """The indices of a face's points and texture coordinates, counted from 0; -1 for none of the latter."""
    corners, chosen = [], []
    for word in words:
        parts = word.split("/")
        corners.append(_index(parts[0], points))
        chosen.append(_index(parts[1], places) if len(parts) > 1 and parts[1] else -1)
    if len(corners) < 3:
        raise ValueError("a face has at least 3 corners")
    return corners, chosen


def _index(word: str, count: int) -> int:
    number = int(word)
    index = number - 1 if number > 0 else count + number
    if number == 0 or not 0 <= index < count:
        raise ValueError(f"there is no number {number} among {count}")
    return index


def _part(
    name: str,
    material: _Material | None,
    faces: _Faces,
    points: np.ndarray,
    colours: np.ndarray | None,
    places: np.ndarray,
) -> MeshPart:
    corner, owner = triangulate(points, faces.corners)
    # A polygon's k-th corner is at its first corner's place in the flat lists, and k more.
    starts = np.cumsum([0, *(len(each) for each in faces.corners)])[owner][:, None]
    face = np.array([index for each in faces.corners for index in each])[starts + corner]
    chosen = np.array([index for each in faces.places for index in each])[starts + corner]
    count = len(face)
    opacity = np.ones(count)
    shade = np.broadcast_to(NEUTRAL, (count, 3)).copy()
    own = None if colours is None else colours[face]
    if own is not None:
        coloured = np.isfinite(own).all(axis=(1, 2))
        shade[coloured] = at_sample_points(own[coloured]).mean(axis=1)
    if material is not None:
        flat = NEUTRAL if material.diffuse is None else material.diffuse
        if material.texture is not None:
            read = material.texture.read(_texture_places(name, places, chosen))[..., :3].mean(axis=1)
            tinted = material.diffuse is not None and np.ptp(material.diffuse) > 0.01
            shade = read * flat if tinted else read
        elif own is None:
            shade[:] = flat
        else:
            shade[~coloured] = flat
        shade = np.minimum(shade + material.emissive, 1)
        opacity *= material.opacity
        if material.opacity_map is not None:
            values = material.opacity_map.read(_texture_places(name, places, chosen))
            opacity *= _channel(values, material.opacity_map).mean(axis=1)
    return MeshPart(name, points, face, shade, opacity)


def _texture_places(name: str, places: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(F, 7, 2): the texture coordinates of the sample points of faces."""
    if (chosen < 0).any():
        raise ValueError(f"its material {name} has a texture and a face of it has no texture coordinates")
    return at_sample_points(places[chosen])


def _channel(values: np.ndarray, chosen: _Map) -> np.ndarray:
    """(…): the number that an opacity texture gives: its alpha if it has any, else its lightness."""
    names = {"r": 0, "g": 1, "b": 2, "m": 3}
    if chosen.channel in names:
        return values[..., names[chosen.channel]]
    if not chosen.channel and (chosen.texture.pixels[..., 3] < 255).any():
        return values[..., 3]
    return values[..., :3] @ np.array([0.299, 0.587, 0.114])


def _materials(path: Path) -> dict[str, _Material]:
    """The materials of an MTL file by name."""
    found: dict[str, _Material] = {}
    material = _Material()
    textures: dict[Path, np.ndarray] = {}
    for words in _lines(path.read_bytes()):
        kind = words[0].lower()
        try:
            if kind == "newmtl":
                material = found.setdefault(" ".join(words[1:]), _Material())
            elif kind == "kd":
                material.diffuse = _colour(words[1:])
            elif kind == "ke":
                material.emissive = _colour(words[1:])
            elif kind in ("d", "tr"):
                value = float(next((word for word in words[1:] if word != "-halo"), ""))
                opacity = min(max(value if kind == "d" else 1 - value, 0.0), 1.0)
                material.opacity = opacity or 1.0
            elif kind == "map_kd":
                material.texture = _map(words[1:], path.parent, textures)
            elif kind == "map_d":
                material.opacity_map = _map(words[1:], path.parent, textures)
        except (ValueError, IndexError) as error:
            reason = str(error) or type(error).__name__
            if reason.startswith("its texture"):
                raise
            raise ValueError(
                f"its material file {path.name} has the line {' '.join(words)[:60]!r}, not read ({reason})"
            ) from error
    return found


def _colour(words: list[str]) -> np.ndarray:
    """(3,) of `r g b`, or of one value for all three."""
    if words and words[0] in ("xyz", "spectral"):
        raise ValueError(f"colours as {words[0]} are not read: export red, green and blue")
    values = np.array([float(word) for word in words[:3]])
    if len(values) not in (1, 3) or not np.isfinite(values).all():
        raise ValueError("a colour has 3 numbers")
    return np.broadcast_to(values, 3).clip(0, 1)


def _map(words: list[str], folder: Path, textures: dict[Path, np.ndarray]) -> _Map:
    """The texture that a `map_…` statement names, with the options before the name."""
    scale, offset, base, gain, wrap, channel = np.ones(2), np.zeros(2), 0.0, 1.0, "repeat", ""
    whole = " ".join(words).strip('"')
    place = find_file(folder, whole)
    rest = list(words)
    while place is None and rest and rest[0].startswith("-"):
        option = rest.pop(0).lower()
        if option in ("-s", "-o", "-t"):
            values: list[float] = []
            while rest and len(values) < 3 and _is_number(rest[0]):
                values.append(float(rest.pop(0)))
            default = 1.0 if option == "-s" else 0.0
            pair = np.array([*values, *[default] * 2][:2])
            if option == "-s":
                scale = pair
            elif option == "-o":
                offset = pair
            elif any(values):
                raise ValueError("the option -t (turbulence) is not read")
        elif option == "-mm":
            base, gain = float(rest.pop(0)), float(rest.pop(0))
        elif option == "-clamp":
            wrap = "clamp" if rest.pop(0) == "on" else "repeat"
        elif option == "-imfchan":
            channel = rest.pop(0)
            if channel not in ("r", "g", "b", "m", "l"):
                raise ValueError(f"the channel {channel} is not read")
        elif option in _IDLE_OPTIONS:
            del rest[: _IDLE_OPTIONS[option]]
        else:
            raise ValueError(f"the option {option} is not known")
    name = " ".join(rest).strip('"') if place is None else whole
    if not name:
        raise ValueError("it names no texture")
    place = place or find_file(folder, name)
    if place is None:
        raise ValueError(f"its texture {name} is missing: put it beside the mesh")
    if place not in textures:
        textures[place] = decode_texture(place.read_bytes(), name)
    return _Map(Texture(textures[place], (wrap, wrap)), scale, offset, base, gain, channel)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
