"""Metrics of generated faces by a given face model: identity, pose and depth, after those of EG3D.

Any face model can be given (`Views.face_model`), so the metrics' names say which it is: EG3D's numbers are of
ArcFace and of Deep3DFaceRecon, and are not comparable.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from mimic3d.cameras import split_label
from mimic3d.evaluation.face_pose import Face, face_pose
from mimic3d.evaluation.metric import Direction, Need, RatioMetric, Views

# Landmarks that must show the object for depth to be compared.
_FEWEST_LANDMARKS = 4


class FaceMetric(RatioMetric):
    """A metric of views by a face model, `Views.face_model`."""

    needs: ClassVar[tuple[Need, ...]] = ("cameras", "face model")


@functools.lru_cache(maxsize=1)
def _faces(views: Views) -> list[Face | None]:
    """The face in each view, which all metrics share."""
    assert views.face_model is not None
    return [views.face_model(image) for image in views.images]


class FaceShare(FaceMetric):
    kind = "face_share_dlib"
    direction: ClassVar[Direction] = "up"
    range = "0 to 1"
    about = "share of the views in which a face is found; the other metrics of faces are of these"
    fooled_by = "anything that the detector takes for a face"

    def part(self, views: Views) -> Sequence[float]:
        faces = _faces(views)
        return float(sum(face is not None for face in faces)), float(len(faces))


class FaceIdentity(FaceMetric):
    kind = "face_identity_dlib"
    direction: ClassVar[Direction] = "up"
    range = "-1 to 1; dlib takes two faces for one person above about 0.91"
    about = "mean cosine similarity of the embeddings of two views of an object (EG3D: of ArcFace)"
    fooled_by = "one face for all objects; one image repeated"

    def part(self, views: Views) -> Sequence[float]:
        found = [
            torch.nn.functional.normalize(face.embedding.double(), dim=0)
            for face in _faces(views)
            if face is not None
        ]
        similar = [float(a @ b) for a, b in itertools.combinations(found, 2)]
        return sum(similar), float(len(similar))


class FacePose(FaceMetric):
    kind = "face_pose_dlib"
    direction: ClassVar[Direction] = "down"
    range = "0 to 180 degrees; some 5 for true faces, by the landmarks' error"
    about = (
        "mean angle by which a face turns between two views of an object, beside what the cameras turn; "
        "its pose by the landmarks of an average face (EG3D: of Deep3DFaceRecon)"
    )
    fooled_by = "cameras that hardly differ"

    def part(self, views: Views) -> Sequence[float]:
        worlds = []
        for face, camera in zip(_faces(views), views.cameras, strict=True):
            if face is not None:
                pose = split_label(camera.double())[0][:3, :3].numpy()
                worlds.append(pose @ face_pose(face.landmarks, camera)[0])
        angles = [
            math.degrees(float(Rotation.from_matrix(a.T @ b).magnitude()))
            for a, b in itertools.combinations(worlds, 2)
        ]
        return sum(angles), float(len(angles))


class FaceDepth(FaceMetric):
    kind = "face_depth_dlib"
    needs: ClassVar[tuple[Need, ...]] = ("cameras", "depth", "face model")
    direction: ClassVar[Direction] = "down"
    range = "0 to 4; 0: the average face, 2: unrelated, 4: inside out"
    about = (
        "mean squared difference of the landmarks' depth and that of an average face in their place, "
        "both of mean 0 and variance 1 (EG3D: of all of a face, of Deep3DFaceRecon)"
    )
    fooled_by = "one average face for all objects"

    def part(self, views: Views) -> Sequence[float]:
        assert views.depth is not None and views.opacity is not None
        total, count = 0.0, 0
        for number, face in enumerate(_faces(views)):
            if face is None:
                continue
            resolution = views.images.shape[-1]
            column, row = (face.landmarks * resolution).long().clamp(0, resolution - 1).unbind(1)
            shown = (views.opacity[number, 0, row, column] > 0.5).numpy()
            if shown.sum() < _FEWEST_LANDMARKS:
                continue
            expected = face_pose(face.landmarks, views.cameras[number])[1][shown]
            depth = views.depth[number, 0, row, column].double().numpy()[shown]
            total += float(np.square(_standard(expected) - _standard(depth)).mean())
            count += 1
        return total, float(count)


def _standard(values: np.ndarray) -> np.ndarray:
    """Of mean 0 and variance 1; zeros where there is no variance."""
    centred = values - values.mean()
    return centred / max(float(centred.std()), 1e-9)
