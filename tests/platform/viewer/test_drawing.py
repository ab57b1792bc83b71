"""Pictures of the drawing session: those that the generator renders, and what is made of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mimic3d.cameras import look_at, on_sphere, pixel_grid, rays
from mimic3d.export.latents import latents_of_seeds
from mimic3d.export.orbits import front
from mimic3d.networks.generator import Generator
from mimic3d.rendering.images import to_uint8
from mimic3d_platform.models.model_uris import load_generator
from mimic3d_platform.viewer import drawing, pictures
from mimic3d_platform.viewer.drawing import DrawingSession, Picture
from mimic3d_platform.viewer.view_settings import ViewSettings, shown_by

Settings = Callable[..., ViewSettings]


def drawn(session: DrawingSession, settings: ViewSettings, *, coarse: bool = False) -> Picture:
    """The picture at the end of the steps."""
    steps = session.draw(settings, coarse=coarse)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value


def test_a_sharp_picture_is_what_the_generator_renders(session: DrawingSession, settings: Settings) -> None:
    generator, config = session.model.generator, session.model.config
    camera = front(config.camera)
    with torch.no_grad():
        w = generator.mapping(latents_of_seeds(config.model, [3]), camera)
        planes = generator.planes(w)
        for shown, branch in (("3D branch", "3d"), ("2D branch", "2d")):
            wanted = to_uint8(generator.view(planes, w, camera, branch).image[0]).permute(1, 2, 0).numpy()
            picture = drawn(session, settings(seed=3, shown=shown, size=64, samples=48))
            assert np.abs(picture.pixels.astype(int) - wanted).max() <= 1, branch
            assert (picture.size, picture.samples, picture.coarse) == (64, 48, False)


def test_a_coarse_picture_is_smaller_and_like_the_sharp_one(
    session: DrawingSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_rate", 2e5)  # Of a machine on which 32² would take too long.
    wanted = settings(size=64, samples=48)
    coarse = drawn(session, wanted, coarse=True)
    assert coarse.coarse and coarse.pixels.shape == (16, 16, 3) and coarse.samples == 12
    sharp = drawn(session, wanted)
    small = pictures.resized(torch.from_numpy(sharp.pixels).permute(2, 0, 1).float(), 16)
    assert np.abs(coarse.pixels - small.permute(1, 2, 0).numpy()).mean() < 12


def test_planes_are_computed_once_for_an_object(
    session: DrawingSession, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    planes = Generator.planes

    def counted(self: Generator, *arguments: object, **keywords: object) -> object:
        calls.append(1)
        return planes(self, *arguments, **keywords)

    monkeypatch.setattr(Generator, "planes", counted)
    for yaw in (0.0, 0.4, 0.8):
        drawn(session, settings(yaw, seed=11))
    drawn(session, settings(seed=11, shown="2D branch", channel="depth"))
    assert len(calls) == 1
    drawn(session, settings(seed=12))
    drawn(session, settings(seed=11, truncation=0.5))
    assert len(calls) == 3
    # Only as many are kept as there is memory for, the newest at least.
    monkeypatch.setattr(drawing, "PLANES_BYTES", 0)
    drawn(session, settings(seed=13))
    drawn(session, settings(seed=13))
    drawn(session, settings(seed=12))
    assert len(calls) == 5


def test_the_camera_of_g_is_not_the_camera_that_looks(session: DrawingSession, settings: Settings) -> None:
    side = settings(1.2)
    fixed, follows = (
        session.latent(side.identity),
        session.latent(settings(conditioning=side.camera).identity),
    )
    assert torch.equal(fixed, session.latent(settings(0.3).identity))
    assert not torch.allclose(fixed, follows)


def test_two_latents_are_interpolated_and_mixed_by_layer(session: DrawingSession, settings: Settings) -> None:
    first, second = (session.latent(settings(seed=seed).identity) for seed in (1, 2))
    pair = {"seed": 1, "second_seed": 2}
    half = session.latent(settings(blend="interpolate", share=0.25, **pair).identity)
    torch.testing.assert_close(half, 0.75 * first + 0.25 * second)
    mixed = session.latent(settings(blend="mix", second_layers=3, **pair).identity)
    torch.testing.assert_close(mixed, torch.cat([first[:, :3], second[:, 3:]], dim=1))
    average = session.latent(settings(truncation=0.0).identity)
    torch.testing.assert_close(average, session.model.generator.backbone.mapping.w_avg.expand_as(average))


def test_branches_stand_side_by_side_or_are_subtracted(session: DrawingSession, settings: Settings) -> None:
    two, three = (drawn(session, settings(shown=f"{n}D branch", size=64)).panels[0] for n in (2, 3))
    both = drawn(session, settings(shown="side by side", size=64))
    assert np.array_equal(both.panels[0], two) and np.array_equal(both.panels[1], three)
    assert both.pixels.shape[1] == 64 * 2 + 2
    difference = drawn(session, settings(shown="difference", size=64)).pixels
    expected = (4 * np.abs(two.astype(int) - three)).clip(max=255)
    assert np.abs(difference - expected).mean() < 6 and 4 < difference.mean() < 100


def test_depth_normals_and_opacity_show_the_car_before_an_empty_background(
    session: DrawingSession, settings: Settings
) -> None:
    depth, normals, opacity = (
        drawn(session, settings(0.6, channel=channel)).pixels for channel in ("depth", "normals", "opacity")
    )
    corner, middle = (slice(0, 4), slice(0, 4)), (slice(14, 20), slice(14, 20))
    assert depth[corner].max() < 60 and depth[middle].min() > 90
    assert opacity[corner].max() < 60 and opacity[middle].min() > 200
    assert normals[corner].min() > 200, "the background is white"
    # Seen from above, surfaces in the middle mostly face up or to the camera: green is +y.
    assert normals[middle][..., 1].mean() > 140


def test_normals_of_a_sphere_point_away_from_its_middle() -> None:
    position = on_sphere(torch.tensor([0.5]), torch.tensor([0.3]), 2.0)
    camera = look_at(position, focal=3.0)
    origins, directions = rays(camera, pixel_grid(32))
    along = -(origins * directions).sum(-1)
    depth = along - (0.6**2 - ((origins**2).sum(-1) - along**2)).clamp(min=0).sqrt()
    found = pictures.normals(depth.view(1, 1, 32, 32), camera)[0, :, 12:20, 12:20]
    points = (origins + directions * depth[..., None]).view(32, 32, 3)[12:20, 12:20]
    wanted = torch.nn.functional.normalize(points, dim=-1).permute(2, 0, 1)
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("aspect", "panels", "shape"),
    [(2.0, 1, (8, 16)), (0.5, 1, (8, 4)), (1.0, 2, (17, 17)), (4.0, 2, (8, 32))],
)
def test_a_canvas_has_the_browsers_proportions(aspect: float, panels: int, shape: tuple[int, int]) -> None:
    canvas = pictures.on_canvas([torch.zeros(3, 8, 8)] * panels, aspect, paper=1.0)
    assert canvas.shape[:2] == shape
    # All of each picture is there, except on a canvas narrower than one.
    assert (canvas == 128).all(-1).sum() == panels * 8 * min(8, shape[1])


def test_another_model_is_drawn_from_the_next_picture_on(settings: Settings) -> None:
    generator, config = load_generator("builtin:cars")
    own = DrawingSession(generator, config, "first")
    before = drawn(own, settings())
    other, _ = load_generator("builtin:cars")
    other.decoder.net["2"].bias[0] = -100.0  # No density anywhere.
    own.replace_model(other, config, "second")
    after = drawn(own, settings())
    assert own.model.name == "second" and before.pixels.min() < 150 and after.pixels.min() > 250


def test_a_generator_of_one_branch_offers_that_branch() -> None:
    assert shown_by(("2d",)) == ("2D branch",) and shown_by(("3d",)) == ("3D branch",)
    assert "difference" in shown_by(("2d", "3d"))
