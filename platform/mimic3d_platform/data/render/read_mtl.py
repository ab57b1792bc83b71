"""Reading MTL files: the materials of OBJ files."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mimic3d_platform.data.render.mesh_parts import counted_to_255
from mimic3d_platform.data.render.obj_statements import possible_names, reason, rest_of, statements
from mimic3d_platform.data.render.textures import Texture, decode_texture, find_file, other_than_expected

log = logging.getLogger(__name__)

# Options of a texture without an effect on its colours at this size, and how many values they have.
_IDLE_OPTIONS = {"-blendu": 1, "-blendv": 1, "-boost": 1, "-texres": 1, "-cc": 1, "-bm": 1, "-type": 1}
_MAPS = ("map_kd", "map_ke", "map_d", "map_ka")


@dataclass
class Map:
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

    def read_channel(self, places: np.ndarray) -> np.ndarray:
        """(…): the number that an opacity texture gives: its alpha if it has any, else its lightness."""
        values = self.read(places)
        names = {"r": 0, "g": 1, "b": 2, "m": 3}
        if self.channel in names:
            return values[..., names[self.channel]]
        if not self.channel and (self.texture.pixels[..., 3] < 255).any():
            return values[..., 3]
        return values[..., :3] @ np.array([0.299, 0.587, 0.114])


@dataclass
class Material:
    """A material of an MTL file; what is None is not stated.

    Attributes:
        lines: of the statements that name textures, by their first word.
    """

    diffuse: np.ndarray | None = None
    emissive: np.ndarray | None = None
    opacity: float = 1.0
    texture: Map | None = None
    emissive_map: Map | None = None
    opacity_map: Map | None = None
    lines: dict[str, str] = field(default_factory=dict)


def read_mtl(path: Path) -> dict[str, Material]:
    """The materials of an MTL file by name.

    Raises:
        ValueError: a line cannot be read, or a texture is missing or broken.
    """
    data = path.read_bytes()
    if other := other_than_expected(data):
        raise ValueError(f"its material file {path.name} {other}")
    found: dict[str, Material] = {}
    material = Material()
    for words, line in statements(data):
        kind = words[0].lower()
        try:
            if kind == "newmtl":
                material = found.setdefault(" ".join(rest_of(line).split()), Material())
            elif kind == "kd":
                material.diffuse = _colour(words[1:])
            elif kind == "ke":
                material.emissive = _colour(words[1:]).clip(0, 1)
            elif kind in ("d", "tr"):
                value = float(next((word for word in words[1:] if word != "-halo"), ""))
                opacity = min(max(value if kind == "d" else 1 - value, 0.0), 1.0)
                material.opacity = opacity or 1.0
            elif kind in _MAPS and (rest_of(line) or kind not in material.lines):
                material.lines[kind] = line
        except ValueError as error:
            raise _unread(path, line, error) from error
    _scale_diffuse(path, found)
    textures: dict[Path, np.ndarray] = {}
    for name, each in found.items():
        if "map_ka" in each.lines and "map_kd" not in each.lines:
            log.warning("%s: the material %s has map_Ka without map_Kd, which is not read", path, name)
        each.texture = _map(path, each.lines.get("map_kd"), textures)
        each.opacity_map = _map(path, each.lines.get("map_d"), textures)
        if each.emissive is None or each.emissive.any():
            each.emissive_map = _map(path, each.lines.get("map_ke"), textures)
    return found


def _unread(path: Path, line: str, error: Exception) -> ValueError:
    shown = " ".join(line.split())[:60]
    return ValueError(f"its material file {path.name} has the line {shown!r}, not read ({reason(error)})")


def _scale_diffuse(path: Path, found: dict[str, Material]) -> None:
    """`Kd` of all materials in [0, 1]; a file of which one counts to 255 counts so throughout."""
    given = [material for material in found.values() if material.diffuse is not None]
    if given:
        scaled = counted_to_255(np.array([material.diffuse for material in given]), f"{path}: Kd")
        for material, colour in zip(given, scaled, strict=True):
            material.diffuse = colour


def _colour(words: list[str]) -> np.ndarray:
    """(3,) of `r g b`, or of one value for all three."""
    if words and words[0] in ("xyz", "spectral"):
        raise ValueError(f"colours as {words[0]} are not read: export red, green and blue")
    values = np.array([float(word) for word in words[:3]])
    if len(values) not in (1, 3) or not np.isfinite(values).all():
        raise ValueError("a colour has 3 numbers")
    return np.broadcast_to(values, 3)


def _map(path: Path, line: str | None, textures: dict[Path, np.ndarray]) -> Map | None:
    """The texture that a `map_…` statement names, with the options before the name."""
    if line is None:
        return None
    found = Map(Texture(np.zeros((1, 1, 4), np.uint8)), np.ones(2), np.zeros(2), 0.0, 1.0, "")
    wrap = "repeat"
    text = rest_of(line)
    place = _find(path.parent, text)
    try:
        while place is None and text.startswith("-"):
            text, wrap = _read_option(text, found, wrap)
            place = _find(path.parent, text)
        names = possible_names(text)
        if not names:
            raise ValueError("it names no texture")
    except (ValueError, IndexError) as error:
        cause = "an option lacks its value" if isinstance(error, IndexError) else error
        raise _unread(path, line, ValueError(cause)) from error
    if place is None:
        raise ValueError(f"its texture {names[-1]} is missing: put it beside the mesh")
    if place not in textures:
        textures[place] = decode_texture(place.read_bytes(), place.name)
    found.texture = Texture(textures[place], (wrap, wrap))
    return found


def _find(folder: Path, text: str) -> Path | None:
    places = (find_file(folder, name) for name in possible_names(text))
    return next((place for place in places if place is not None), None)


def _read_option(text: str, found: Map, wrap: str) -> tuple[str, str]:
    """Reads the option that a text begins with into `found`; the text after it, and how to wrap."""
    words = list(re.finditer(r"\S+", text))
    option = words.pop(0)[0].lower()
    if option in ("-s", "-o", "-t"):
        values: list[float] = []
        while words and len(values) < 3 and _is_number(words[0][0]):
            values.append(float(words.pop(0)[0]))
        default = 1.0 if option == "-s" else 0.0
        pair = np.array([*values, *[default] * 2][:2])
        if option == "-s":
            found.scale = pair
        elif option == "-o":
            found.offset = pair
        elif any(values):
            raise ValueError("the option -t (turbulence) is not read")
    elif option == "-mm":
        found.base, found.gain = float(words.pop(0)[0]), float(words.pop(0)[0])
    elif option == "-clamp":
        wrap = "clamp" if words.pop(0)[0] == "on" else "repeat"
    elif option == "-imfchan":
        found.channel = words.pop(0)[0]
        if found.channel not in ("r", "g", "b", "m", "l"):
            raise ValueError(f"the channel {found.channel} is not read")
    elif option in _IDLE_OPTIONS:
        del words[: _IDLE_OPTIONS[option]]
    else:
        raise ValueError(f"the option {option} is not known")
    return text[words[0].start() :] if words else "", wrap


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
