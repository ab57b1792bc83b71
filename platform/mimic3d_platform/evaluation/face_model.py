"""The face model of `mimic3d evaluate --faces`: dlib's detector, landmarks and embedding.

Its files come with the package face-recognition-models and are verified against pinned digests; dlib reads
them without executing anything. The landmarks were trained on images that exclude commercial use (300-W).
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mimic3d.evaluation.face_pose import Face, FaceModel
from mimic3d_platform.errors import UserError
from mimic3d_platform.storage.digests import sha256_of_file

LANDMARKS, EMBEDDING = "shape_predictor_68_face_landmarks.dat", "dlib_face_recognition_resnet_model_v1.dat"
SHA256 = {
    LANDMARKS: "fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f",
    EMBEDDING: "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
}
# Of the 68 landmarks, those of `face_pose.AVERAGE_FACE`.
_CHOSEN = (30, 8, 36, 45, 48, 54)
# Smaller images are enlarged to this side: the detector finds faces of 40 pixels of it and more.
_SIDE = 256


@functools.lru_cache(maxsize=1)
def load_face_model() -> FaceModel:
    """The model, loaded once in a process; of several faces in an image it takes the largest.

    Raises:
        UserError: the packages are not installed, or a file has another digest.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations or importlib.util.find_spec("dlib") is None:
        raise UserError("dlib or face-recognition-models is not installed: pip install 'mimic3d[faces]'")
    import dlib  # Of an extra.

    folder = Path(spec.submodule_search_locations[0]) / "models"
    for name, digest in SHA256.items():
        if not (folder / name).is_file() or sha256_of_file(folder / name) != digest:
            raise UserError(f"{folder / name} is not that of face-recognition-models 0.3.0: install it again")
    detect = dlib.get_frontal_face_detector()
    find_landmarks = dlib.shape_predictor(str(folder / LANDMARKS))
    embed = dlib.face_recognition_model_v1(str(folder / EMBEDDING))

    def find(image: Tensor) -> Face | None:
        pixels = _pixels(image)
        found = detect(pixels, 1)
        if not found:
            return None
        landmarks = find_landmarks(pixels, max(found, key=lambda box: box.area()))
        points = [(landmarks.part(number).x + 0.5, landmarks.part(number).y + 0.5) for number in _CHOSEN]
        embedding = np.array(embed.compute_face_descriptor(pixels, landmarks))
        return Face(torch.from_numpy(embedding), torch.tensor(points) / len(pixels))

    return find


def _pixels(image: Tensor) -> np.ndarray:
    """(R, R, 3) uint8 of (3, R, R) in [-1, 1], R at least `_SIDE`."""
    side = max(image.shape[-1], _SIDE)
    enlarged = interpolate(image[None].float(), side, mode="bicubic", antialias=True)[0]
    return ((enlarged.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy()
