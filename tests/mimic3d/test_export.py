"""Grids, orbit videos and meshes are files that others open, and show what the generator draws."""

import json
import math
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from mimic3d.config import CameraConfig, ModelConfig, RenderingConfig
from mimic3d.export.grid import image_grid, render_grid
from mimic3d.export.latents import interpolate
from mimic3d.export.mesh import extract_mesh, save_mesh
from mimic3d.export.orbits import orbit
from mimic3d.export.video import render_video, write_video
from mimic3d.networks.generator import Generator, View
from mimic3d.rendering.images import depth_image, to_uint8

MODEL = ModelConfig(
    image_resolution=32,
    neural_rendering_resolution=16,
    triplane_resolution=16,
    z_dim=16,
    w_dim=16,
    channel_base=256,
    channel_max=16,
    superresolution_input=16,
    superresolution_channels=(8, 8),
)
RENDERING = RenderingConfig(0.6, 2.6, 1.6, 6, 6, True)
ROUND = CameraConfig(radius=1.7, focal=1.0254, pivot=(0.0, 0.0, 0.0), pitch=0.3, yaw_range=math.pi)
CAMERAS = orbit(ROUND, 6)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def G() -> Generator:
    torch.manual_seed(0)
    return Generator(MODEL, RENDERING).eval()


@pytest.fixture(scope="module")
def w(G):
    return G.mapping(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), CAMERAS[:2]).detach()


class Ball(Generator):
    """A generator whose field is a known ball: radius 0.4 about (0.1, 0, 0), red where x > 0.1, else blue."""

    def field(self, planes, points, outputs=3):
        centre = torch.tensor([0.1, 0.0, 0.0])
        density = 10 + 100 * (0.4 - (points - centre).norm(dim=-1, keepdim=True))
        right = (points[..., :1] > 0.1).float()
        return density, torch.cat([right, torch.zeros_like(right), 1 - right], dim=-1)


def test_images_are_rounded_to_256_levels():
    values = torch.tensor([-1.5, -1.0, 0.0, 0.5, 1.0, 1.5])
    assert to_uint8(values).tolist() == [0, 0, 128, 191, 255, 255]


def test_a_grid_shows_every_image_in_its_place():
    colours = torch.tensor([[[1.0, -1, -1], [-1, 1, -1]], [[-1, -1, 1], [1, 1, -1]]])
    rows = [[colour.view(3, 1, 1).expand(3, 8, 8) for colour in row] for row in colours]
    plain = np.asarray(image_grid(rows, min_panel=16))
    assert plain.shape == (34, 34, 3)
    assert plain[8, 8].tolist() == [255, 0, 0]
    assert plain[8, 26].tolist() == [0, 255, 0]
    assert plain[26, 8].tolist() == [0, 0, 255]
    captioned = np.asarray(image_grid(rows, columns=[("both", 2)], captions=["a", "b"], min_panel=16))
    assert captioned.shape[0] > 34 and captioned.shape[1] > 34
    assert captioned[-8, -8].tolist() == [255, 255, 0]
    assert captioned[:14].min() < 128  # the caption's ink
    with pytest.raises(ValueError, match="one size; got none"):
        image_grid([])
    with pytest.raises(ValueError, match="one size"):
        image_grid([[torch.zeros(3, 4, 4), torch.zeros(3, 8, 8)]])


def test_a_grid_has_a_row_for_each_latent(G, w, tmp_path):
    reals = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    sheet = render_grid(G, w, CAMERAS[:2], reals=reals)
    sheet.save(tmp_path / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    assert pixels.shape[1] == 5 * 98 - 2
    shown = pixels[-96::3, -96::3]
    assert np.array_equal(shown, reals[1].permute(1, 2, 0).numpy())
    view = to_uint8(G.view(G.planes(w), w, CAMERAS[:1].expand(2, -1), "3d").image.detach())
    third = pixels[-96::3, 2 * 98 : 2 * 98 + 96 : 3]
    assert np.abs(third.astype(int) - view[1].permute(1, 2, 0).numpy().astype(int)).max() <= 1


def test_an_orbit_video_plays(G, w, tmp_path):
    import imageio.v3 as iio

    seen = []
    path = render_video(
        tmp_path / "sub" / "orbit.mp4", G, w, CAMERAS, progress=lambda done, of: seen.append((done, of))
    )
    assert seen[-1] == (6, 6)
    frames = iio.imread(path)
    assert frames.shape[0] == 6
    assert frames.shape[1] == 2 * 194 - 2
    assert frames.shape[2] >= 2 * 194 - 2
    meta = iio.immeta(path)
    assert meta["codec"] == "h264" and "yuv420p" in meta["pix_fmt"]
    assert list(path.parent.iterdir()) == [path]


def test_depth_is_white_before_the_centre_and_black_behind_it():
    depth = torch.tensor([0.9, 1.7, 2.5, 9.0]).view(1, 1, 2, 2)
    distance = CAMERAS[0, [3, 7, 11]].norm()
    image, opaque = torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 2, 2)
    view = View(image, image, depth + distance - 1.7, opaque)
    shown = depth_image(view.depth, view.opacity, CAMERAS[:1], 1.6, 4)
    assert shown.shape == (1, 3, 4, 4)
    assert shown[0, 0, ::2, ::2].tolist() == [pytest.approx([1, 0], abs=1e-5), pytest.approx([-1, -1])]
    nothing = depth_image(view.depth, opaque * 0, CAMERAS[:1], 1.6, 4)
    assert (nothing == -1).all()


def test_depths_are_beside_their_images(G, w):
    sheet = np.asarray(render_grid(G, w, CAMERAS[:2], branches=["3d"], depth=True))
    assert sheet.shape[1] == 4 * 98 - 2
    view = G.view(G.planes(w), w, CAMERAS[1:2].expand(2, -1), "3d")
    expected = to_uint8(depth_image(view.depth, view.opacity, CAMERAS[1:2].expand(2, -1), 1.6, 32))
    shown = sheet[-96::3, 3 * 98 : 3 * 98 + 96 : 3].astype(int)
    assert np.abs(shown - expected[1].permute(1, 2, 0).numpy().astype(int)).max() <= 1


def test_a_video_goes_from_latent_to_latent(G, w, tmp_path):
    import imageio.v3 as iio

    way = interpolate(w, 4)[:, None]
    still = CAMERAS[:1].expand(4, -1)
    render_video(tmp_path / "way.mp4", G, way, still, branches=["3d"], depth=True)
    frames = iio.imread(tmp_path / "way.mp4")
    assert frames.shape[:2] == (4, 2 * 194 - 2)
    expected = to_uint8(G.view(G.planes(w), w, still[:2], "3d").image.detach()).permute(0, 2, 3, 1)
    shown = frames[:, 3:192:6, -189::6].astype(int)
    for frame, identity in ((0, 0), (2, 1)):
        assert np.abs(shown[frame] - expected[identity].numpy()).mean() < 6


def test_a_video_keeps_its_colours(tmp_path):
    import imageio.v3 as iio

    frames = [np.full((33, 47, 3), colour, np.uint8) for colour in ((250, 20, 20), (20, 20, 250))]
    shown = iio.imread(write_video(tmp_path / "colours.mp4", frames))
    assert shown.shape == (2, 32, 46, 3)
    assert np.abs(shown[:, 10, 10].astype(int) - [(250, 20, 20), (20, 20, 250)]).max() < 8


def test_a_webp_has_all_frames_to_the_last_colour(tmp_path):
    from PIL import Image

    frames = [np.full((33, 47, 3), colour, np.uint8) for colour in ((250, 20, 20), (20, 20, 250))]
    with Image.open(write_video(tmp_path / "colours.webp", frames)) as shown:
        assert (shown.n_frames, shown.size, shown.info["loop"]) == (2, (47, 33), 0)
        for number, frame in enumerate(frames):
            shown.seek(number)
            assert np.array_equal(np.asarray(shown.convert("RGB")), frame)


def test_invalid_videos_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"written as .mp4 or .webp; got orbit.avi"):
        write_video(tmp_path / "orbit.avi", [np.zeros((8, 8, 3), np.uint8)])
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "orbit.mp4", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["ply", "glb"])
def test_a_mesh_is_the_level_set_coloured_and_closed(w, tmp_path, ending):
    import trimesh

    ball = Ball(MODEL, RENDERING).eval()
    path = save_mesh(extract_mesh(ball, w[:1], resolution=48, max_points=1000), tmp_path / f"ball.{ending}")
    mesh = trimesh.load(path, force="mesh")
    mesh.merge_vertices()
    radii = np.linalg.norm(mesh.vertices - [0.1, 0, 0], axis=1)
    assert np.abs(radii - 0.4).max() < 0.002
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=0.02)  # positive: faces look outwards
    if ending == "ply":
        places, colours = np.asarray(mesh.vertices), mesh.visual.vertex_colors[:, :3] / 255
    else:
        document, body = glb_document(path)
        count, start = document["accessors"][0]["count"], document["bufferViews"][1]["byteOffset"]
        places = np.frombuffer(body, "<f4", 3 * count).reshape(-1, 3)
        colours = np.frombuffer(body, "<u2", 4 * count, start).reshape(-1, 4)[:, :3] / 65535
    assert (colours[places[:, 0] > 0.11] == [1, 0, 0]).all()
    assert (colours[places[:, 0] < 0.09] == [0, 0, 1]).all()


def test_a_mesh_that_fills_the_box_is_closed_at_its_sides(w):
    ball = Ball(MODEL, RENDERING).eval()
    mesh = extract_mesh(ball, w[:1], resolution=16, level=-200)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(1.6**3, rel=0.02)


def test_a_mesh_may_be_open_at_the_sides_and_be_of_one_piece(w):
    class Balls(Generator):
        """A ball that the box cuts, and a smaller one, apart from it."""

        def field(self, planes, points, outputs=3):
            large = 0.5 - (points - torch.tensor([0.6, 0.0, 0.0])).norm(dim=-1, keepdim=True)
            small = 0.2 - (points + torch.tensor([0.5, 0.0, 0.0])).norm(dim=-1, keepdim=True)
            return 10 + 100 * torch.maximum(large, small), torch.zeros(*points.shape[:2], outputs)

    balls = Balls(MODEL, RENDERING)
    whole = extract_mesh(balls, w[:1], resolution=32)
    assert whole.is_watertight and whole.body_count == 2
    open_one = extract_mesh(balls, w[:1], resolution=32, watertight=False, largest_only=True)
    assert open_one.body_count == 1 and not open_one.is_watertight
    assert open_one.bounds[0, 0] == pytest.approx(0.1, abs=0.01)
    assert open_one.bounds[1, 0] == pytest.approx(0.8, abs=0.01)


def glb_document(path):
    """The JSON document of a GLB file, and its binary chunk."""
    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    assert struct.unpack_from("<I", data, 8)[0] == len(data)
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def test_a_ply_has_srgb_colours_and_a_glb_linear_ones_of_16_bits_on_a_material_that_is_no_metal(tmp_path):
    import trimesh

    mesh = trimesh.creation.box()
    mesh.visual.vertex_colors = [188, 64, 3, 255]
    ply = trimesh.load(save_mesh(mesh, tmp_path / "box.ply"), force="mesh")
    assert (ply.visual.vertex_colors[:, :3] == [188, 64, 3]).all()

    document, body = glb_document(save_mesh(mesh, tmp_path / "box.glb"))
    primitive = document["meshes"][0]["primitives"][0]
    colours = document["accessors"][primitive["attributes"]["COLOR_0"]]
    assert colours["normalized"] and colours["componentType"] == 5123
    view = document["bufferViews"][colours["bufferView"]]
    stored = np.frombuffer(body, "<u2", 4, view["byteOffset"]) / 65535
    assert stored == pytest.approx([0.502886, 0.051269, 3 / 255 / 12.92, 1], abs=1e-5)
    material = document["materials"][primitive["material"]]["pbrMetallicRoughness"]
    assert material["metallicFactor"] == 0
    assert (mesh.visual.vertex_colors[:, 0] == 188).all()


def test_invalid_meshes_are_refused(G, w, tmp_path):
    with pytest.raises(ValueError, match=r"no surface: the density reaches .* lower level"):
        extract_mesh(G, w[:1], resolution=8, level=1e6)
    with pytest.raises(ValueError, match="from one latent; got 2"):
        extract_mesh(G, w, resolution=8)
    with pytest.raises(ValueError, match="branch is '4d'"):
        extract_mesh(G, w[:1], branch="4d")
    mesh = extract_mesh(Ball(MODEL, RENDERING), w[:1], resolution=8)
    with pytest.raises(ValueError, match=r".ply or .glb; got car.stl"):
        save_mesh(mesh, tmp_path / "car.stl")


def test_both_branches_have_a_surface(G, w):
    with torch.no_grad():
        density = G.field(G.planes(w[:1]), torch.zeros(1, 1, 3))[0].item()
    coarse = extract_mesh(G, w[:1], branch="2d", resolution=8, level=density - 3)
    both = extract_mesh(G, w[:1], branch="3d", resolution=8, level=density - 3)
    assert len(coarse.vertices) and len(both.vertices)
