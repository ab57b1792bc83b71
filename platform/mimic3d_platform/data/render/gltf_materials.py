"""Colours of glTF 2.0 materials at the faces of a primitive.

Factors and vertex colours are linear light and multiply; base colour and emissive textures are sRGB.
Texture coordinates count from the top left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mimic3d_platform.data.render.gltf_file import GltfFile, Object, numbers
from mimic3d_platform.data.render.mesh_parts import at_sample_points, to_linear, to_srgb
from mimic3d_platform.data.render.textures import Texture, decode_texture

_WRAPS = {33071: "clamp", 33648: "mirror", 10497: "repeat"}
_SPECULAR = "KHR_materials_pbrSpecularGlossiness"
_TRANSFORM = "KHR_texture_transform"
# Other places of a texture's image. Pillow reads WebP and AVIF; KTX2 and DDS need an image to fall back on.
_IMAGES_READ = ("EXT_texture_webp", "EXT_texture_avif")
_IMAGES_NOT_READ = ("KHR_texture_basisu", "MSFT_texture_dds")


@dataclass(frozen=True)
class FaceColours:
    """Colours of the faces of a primitive: (F, 3) sRGB and (F,) opacity, both in [0, 1]."""

    colours: np.ndarray
    opacity: np.ndarray


class Materials:
    """The materials of a glTF file."""

    def __init__(self, file: GltfFile) -> None:
        self._file = file
        self._textures: dict[int, Texture] = {}

    def name(self, index: object) -> str:
        """The name of a material; `material N` if it has none, empty for the default material."""
        if index is None:
            return ""
        return str(self._file.item("materials", index).get("name") or f"material {index}")

    def face_colours(
        self, index: object, faces: np.ndarray, attributes: dict[str, np.ndarray]
    ) -> FaceColours:
        """The colours of faces: means over seven points of each.

        Args:
            index: of the material; None for the default one.
            faces: (F, 3).
            attributes: `COLOR_0` (V, 3 or 4), linear light, and `TEXCOORD_n` (V, 2), where present.
        Raises:
            ValueError: a texture is missing, broken, or in a format that is not read.
        """
        material: Object = {} if index is None else self._file.item("materials", index)
        extensions: Object = material.get("extensions") or {}
        unlit = "KHR_materials_unlit" in extensions
        if not unlit and (specular := extensions.get(_SPECULAR)) is not None:
            factor, texture = specular.get("diffuseFactor"), specular.get("diffuseTexture")
        else:
            metal = material.get("pbrMetallicRoughness") or {}
            factor, texture = metal.get("baseColorFactor"), metal.get("baseColorTexture")
        base = np.broadcast_to(numbers(factor, 4, "a base colour", np.ones(4)), (len(faces), 1, 4))
        if texture is not None:
            base = base * self._read(texture, faces, attributes)
        if "COLOR_0" in attributes:
            own = np.asarray(attributes["COLOR_0"], np.float64)
            own = np.concatenate(
                [own[:, :3], own[:, 3:] if own.shape[1] > 3 else np.ones((len(own), 1))], axis=1
            )
            base = base * at_sample_points(own.clip(0, 1)[faces])
        light = base[..., :3]
        if not unlit:  # by that extension the base colour alone is drawn
            light = light + self._emission(material, extensions, faces, attributes)
        colours = to_srgb(light.clip(0, 1)).mean(axis=1)
        opacity = self._opacity(material, extensions, base[..., 3].clip(0, 1))
        return FaceColours(colours, opacity)

    def _emission(
        self, material: Object, extensions: Object, faces: np.ndarray, attributes: dict[str, np.ndarray]
    ) -> np.ndarray:
        """(F or 1, 7 or 1, 3) linear light that the surface gives by itself."""
        glow = numbers(material.get("emissiveFactor"), 3, "an emissive factor", np.zeros(3))
        strength = (extensions.get("KHR_materials_emissive_strength") or {}).get("emissiveStrength", 1.0)
        light = (glow * numbers(strength, 1, "an emissive strength", np.ones(1)))[None, None]
        texture = material.get("emissiveTexture")
        return light * self._read(texture, faces, attributes)[..., :3] if texture and glow.any() else light

    def _opacity(self, material: Object, extensions: Object, alpha: np.ndarray) -> np.ndarray:
        """(F,): alpha is used only as the material's alpha mode says; transmission lets light through too."""
        mode = material.get("alphaMode", "OPAQUE")
        if mode == "MASK":
            cutoff = numbers(material.get("alphaCutoff"), 1, "an alpha cutoff", np.full(1, 0.5))
            seen = (alpha >= cutoff).mean(axis=1)
            opacity = (seen >= 0.5).astype(np.float64)
        elif mode == "BLEND":
            opacity = alpha.mean(axis=1)
        elif mode == "OPAQUE":
            opacity = np.ones(len(alpha))
        else:
            raise ValueError(f"a material has the alphaMode {mode}: OPAQUE, MASK and BLEND are read")
        factor = (extensions.get("KHR_materials_transmission") or {}).get("transmissionFactor")
        passed = float(numbers(factor, 1, "a transmission factor", np.zeros(1))[0])
        # Some of the light is reflected at any glass: a face that transmits all is seen nevertheless.
        return opacity * (1 - 0.8 * min(max(passed, 0.0), 1.0))

    def _read(self, info: Object, faces: np.ndarray, attributes: dict[str, np.ndarray]) -> np.ndarray:
        """(F, 7, 4): a texture's colours in linear light, and its alpha, at the sample points of faces."""
        move: Object = (info.get("extensions") or {}).get(_TRANSFORM) or {}
        name = f"TEXCOORD_{move.get('texCoord', info.get('texCoord', 0))}"
        if name not in attributes:
            raise ValueError(f"a texture needs {name}, which a primitive lacks")
        places = at_sample_points(np.asarray(attributes[name], np.float64)[faces])
        if move:
            scale = numbers(move.get("scale"), 2, "a texture's scale", np.ones(2))
            offset = numbers(move.get("offset"), 2, "a texture's offset", np.zeros(2))
            turn = float(numbers(move.get("rotation"), 1, "a texture's rotation", np.zeros(1))[0])
            sine, cosine = np.sin(turn), np.cos(turn)
            places = places * scale
            x, y = places[..., 0], places[..., 1]
            places = np.stack([cosine * x + sine * y, cosine * y - sine * x], axis=-1) + offset
        values = self._texture(info.get("index")).read(places)
        values[..., :3] = to_linear(values[..., :3])
        return values

    def _texture(self, index: Any) -> Texture:
        texture = self._file.item("textures", index)
        if index not in self._textures:
            sampler = self._file.item("samplers", texture["sampler"]) if "sampler" in texture else {}
            wraps = [sampler.get(key, 10497) for key in ("wrapS", "wrapT")]
            if unknown := [wrap for wrap in wraps if wrap not in _WRAPS]:
                raise ValueError(f"a sampler wraps by the unknown mode {unknown[0]}")
            pixels = self._image(texture)
            self._textures[index] = Texture(pixels, (_WRAPS[wraps[0]], _WRAPS[wraps[1]]))
        return self._textures[index]

    def _image(self, texture: Object) -> np.ndarray:
        extensions = texture.get("extensions") or {}
        source = next((extensions[name]["source"] for name in _IMAGES_READ if name in extensions), None)
        source = texture.get("source", source)
        if source is None:
            unread = [name for name in _IMAGES_NOT_READ if name in extensions]
            raise ValueError(
                f"a texture is compressed with {unread[0]}: export it with PNG or JPEG textures"
                if unread
                else "a texture has no image"
            )
        image = self._file.item("images", source)
        name = str(image.get("name") or image.get("uri", f"number {source}"))
        name = f"number {source}" if name.startswith("data:") else name
        if "bufferView" in image:
            return decode_texture(self._file.view(image["bufferView"])[0], name)
        if not isinstance(image.get("uri"), str):
            raise ValueError(f"its images[{source}] has no uri and no bufferView")
        return decode_texture(self._file.read_uri(image["uri"], "texture"), name)
