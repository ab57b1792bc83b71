"""The lens of a transforms.json: every key that changes what a number means is read, or refused by name."""

import math

import pytest

from mimic3d_platform.data.ingest.nerf_lens import ignored_keys, read_lens
from mimic3d_platform.errors import UserError

BASE = {"fl_x": 20.0, "fl_y": 22.0, "cx": 8.0, "cy": 7.0, "w": 16, "h": 16}


def lens(content: dict, frame: dict | None = None) -> tuple[float, ...]:
    return read_lens(content, frame or {}, "frame 0", lambda: (16, 16)).intrinsics


@pytest.mark.parametrize(
    ("content", "frame", "right"),
    [
        (BASE, {}, (1.25, 1.375, 0.5, 0.4375)),
        ({"camera_angle_x": 0.8}, {}, (0.5 / math.tan(0.4),) * 2 + (0.5, 0.5)),
        ({"camera_angle_y": 0.8}, {}, (0.5 / math.tan(0.4),) * 2 + (0.5, 0.5)),
        ({"x_fov": 60.0}, {}, (0.5 / math.tan(math.radians(30)),) * 2 + (0.5, 0.5)),
        ({"camera_angle_x": 0.8}, {"fl_x": 20.0}, (1.25, 1.25, 0.5, 0.5)),
        ({"fl_x": 20.0, "fl_y": 22.0}, {"camera_angle_x": 0.8}, (0.5 / math.tan(0.4),) * 2 + (0.5, 0.5)),
        ({"fl_x": 20.0, "image_width": 32, "image_height": 32}, {}, (0.625, 0.625, 0.5, 0.5)),
        (
            BASE | {"is_opengl": True, "w2c": False, "camera": "left/fisheye.png"},
            {},
            (1.25, 1.375, 0.5, 0.4375),
        ),
        (BASE | {"camera_model": "OPENCV", "k1": 0.0, "is_fisheye": False}, {}, (1.25, 1.375, 0.5, 0.4375)),
        (BASE | {"camera_model": "OPENCV_FISHEYE"}, {"camera_model": "PINHOLE"}, (1.25, 1.375, 0.5, 0.4375)),
        (
            BASE | {"rolling_shutter": [0, 0, 0], "coordinate_system": "OpenGL"},
            {},
            (1.25, 1.375, 0.5, 0.4375),
        ),
    ],
)
def test_lenses_that_are_read(content: dict, frame: dict, right: tuple) -> None:
    assert lens(content, frame) == pytest.approx(right)


@pytest.mark.parametrize("on_frame", [False, True], ids=["whole file", "frame"])
@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"camera_model": "OPENCV_FISHEYE"}, "the lens OPENCV_FISHEYE (camera_model)"),
        ({"camera_model": "EQUIRECTANGULAR"}, "EQUIRECTANGULAR"),
        ({"camera_model": "ORTHOPHOTO"}, "ORTHOPHOTO"),
        ({"camera_model": "SOMETHING_NEW"}, "no pinhole or not known"),
        ({"camera_type": "omnidirectional"}, "camera_type"),
        ({"is_fisheye": True}, "is_fisheye"),
        ({"ftheta_p0": 0.0, "ftheta_p1": 0.9}, "ftheta_p1"),
        ({"latlong": True}, "latlong"),
        ({"equirectangular": True}, "equirectangular"),
        ({"orthographic": 1}, "orthographic"),
        ({"distortion_params": [0.1] * 6}, "distortion_params"),
        ({"rolling_shutter": [0, 0, 0.5, 0]}, "rolling_shutter"),
        ({"k5": 0.3}, "distorted lens (k5)"),
        ({"p3": 0.3}, "distorted lens (p3)"),
        ({"s1": 0.3}, "distorted lens (s1)"),
        ({"skew": 2.0}, "distorted lens (skew)"),
        ({"shift_x": 0.1}, "shift_x"),
        ({"focal_length_mm": 35}, "focal_length_mm"),
        ({"sensor_width": 36}, "sensor_width"),
        ({"angle_unit": "degrees"}, "angle_unit"),
        ({"coordinate_system": "opencv"}, "coordinate_system"),
        ({"from_na": True}, "from_na"),
        ({"intrinsics": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}, "intrinsics"),
        ({"camera_angle_x": 40.0}, "camera_angle_x of 40, which is no angle of view: give it in radians"),
        ({"camera_angle_x": -0.8}, "no angle of view"),
        ({"camera_angle_x": 2.0}, "contradict each other"),
        ({"x_fov": 190}, "between 0 and 180 degrees"),
        ({"fl_x": 1.25}, "no lens sees so wide"),
        ({"cx": 0.5}, "a principal point of 0.5 and an image of 16×16: give cx and cy in pixels"),
        ({"fl_x": "20"}, "a fl_x that is not a number"),
        ({"fl_x": 10**400}, "a fl_x that is not a number"),
        ({"projection_type": "fisheye"}, "the lens fisheye (projection_type)"),
        ({"projection": "orthographic"}, "the lens orthographic (projection)"),
        ({"type": "PANO"}, "the lens PANO (type)"),
        ({"model": "OPENCV_FISHEYE"}, "the lens OPENCV_FISHEYE (model)"),
        ({"dist_coeffs": [0.1, 0, 0, 0]}, "dist_coeffs"),
        ({"D": [0.1, 0, 0, 0]}, "the key D"),
        ({"radial": [0.1, 0]}, "radial"),
        ({"omega": 0.9}, "omega"),
        ({"b1": 0.9}, "b1"),
        ({"center_x": 4}, "center_x"),
        ({"ppx": 4}, "ppx"),
        ({"camera_matrix": [[20, 0, 4], [0, 20, 8], [0, 0, 1]]}, "camera_matrix"),
        ({"downscale_factor": 2}, "downscale_factor"),
        ({"zoom": 2}, "zoom"),
        ({"w2c": True}, "w2c"),
        ({"pose_type": "w2c"}, "pose_type"),
        ({"world_to_camera": True}, "world_to_camera"),
        ({"opencv": True}, "opencv"),
        ({"is_opengl": False}, "is_opengl: false, but poses are read as"),
        ({"flip_y": True}, "flip_y"),
        ({"transposed": True}, "transposed"),
        ({"world_up": [0, 0, 1]}, "world_up"),
        ({"shutter": "rolling"}, "shutter"),
        ({"readout_time": 0.01}, "readout_time"),
        ({"transform_matrix_start": [[1]]}, "transform_matrix_start"),
    ],
)
def test_lenses_and_units_that_are_refused_by_name(keys: dict, says: str, on_frame: bool) -> None:
    with pytest.raises(UserError) as caught:
        if on_frame and keys == {"camera_angle_x": 2.0}:
            lens(BASE, {**BASE, **keys})  # a frame's focal length alone would replace the file's
        else:
            lens(*((BASE, keys) if on_frame else ({**BASE, **keys}, None)))
    assert says in str(caught.value) and "frame 0" in str(caught.value)


def test_degrees_are_refused_without_a_focal_length_in_pixels() -> None:
    for degrees in (3.0, 30.0, 40.0, 90.0):
        with pytest.raises(UserError, match="radians"):
            lens({"camera_angle_x": degrees})


def test_focal_lengths_that_no_lens_has_and_half_a_size_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"x_fov of 0\.8, a focal length of 71\.62 image sizes: no lens sees so little"
    ):
        lens({"x_fov": 0.8})
    with pytest.raises(UserError, match="a w and a width that differ"):
        lens(BASE | {"width": 32})
    for key, other in (("w", "h"), ("h", "w")):
        with pytest.raises(UserError, match=f"{key} without {other}: give both, or neither"):
            lens({"fl_x": 20.0, key: 32})


def test_other_keys_are_named() -> None:
    frames = [{"file_path": "a", "transform_matrix": [], "mask_path": "m"}, {"depth_file_path": "d"}]
    assert ignored_keys([{"frames": frames, "aabb_scale": 4, "w": 1}, *frames]) == [
        "aabb_scale",
        "depth_file_path",
        "mask_path",
    ]
