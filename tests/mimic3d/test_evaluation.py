"""Fréchet and kernel distances against closed forms, agreement of views on scenes traced by hand."""

import math

import pytest
import torch
from torch import Tensor

from mimic3d.cameras import look_at, on_sphere, pixel_grid, rays
from mimic3d.config import CameraConfig, ModelConfig, RenderingConfig
from mimic3d.evaluation.consistency import OPAQUE, DepthView, rotated, warp_view
from mimic3d.evaluation.fidelity import KernelDistance
from mimic3d.evaluation.frechet import (
    FeatureStatistics,
    covariance_root,
    frechet_distance,
    frechet_name,
    kernel_distance,
)
from mimic3d.evaluation.generated import frechet_by_branch, generated_images
from mimic3d.evaluation.metric import ViewMetric, Views
from mimic3d.evaluation.texture import spatiotemporal_texture, stack_row
from mimic3d.evaluation.views import WarpPsnr, WarpShare, two_views
from mimic3d.export.orbits import orbit
from mimic3d.features.convolutional import (
    EfficientNetLite2MiddleFeatures,
    InceptionFeatures,
    MobileNetV2Features,
)
from mimic3d.features.efficientnet_lite import efficientnet_lite2_middle
from mimic3d.features.extractor import FeatureExtractor
from mimic3d.networks.generator import Generator

RESOLUTION = 64


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


# Statistics of features.


def test_statistics_merged_from_parts_are_those_of_the_whole():
    features = torch.randn(300, 7, generator=torch.Generator().manual_seed(0)) * 3 + 5
    whole = FeatureStatistics.of([features], 7)
    parts = [FeatureStatistics.of(part.split(11), 7) for part in features.split([100, 1, 199])]
    merged = FeatureStatistics.empty(7)
    for part in parts:
        merged.merge(FeatureStatistics.from_bytes(part.to_bytes()))
    assert merged.count == 300
    torch.testing.assert_close(merged.mean, features.double().mean(0))
    torch.testing.assert_close(merged.covariance(), torch.cov(features.double().T))
    torch.testing.assert_close(merged.covariance(), whole.covariance())


def test_statistics_of_one_image_have_no_covariance():
    with pytest.raises(ValueError, match="at least 2 images; there are 1"):
        FeatureStatistics.of([torch.zeros(1, 3)], 3).covariance()


def _normal(mean: Tensor, covariance: Tensor) -> FeatureStatistics:
    return FeatureStatistics(100, mean.double(), covariance.double() * 99)


def test_frechet_distance_of_axis_aligned_normals_is_the_closed_form():
    a, b = (
        _normal(torch.tensor([1.0, 2.0]), torch.diag(torch.tensor([4.0, 9.0]))),
        _normal(torch.tensor([0.0, 4.0]), torch.diag(torch.tensor([1.0, 25.0]))),
    )
    # Squared difference of the means, and of the standard deviations (2, 3) and (1, 5).
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 1 + 4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_agrees_with_a_matrix_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    generator = torch.Generator().manual_seed(1)
    a, b = (
        FeatureStatistics.of(
            [torch.randn(200, 20, generator=generator) @ torch.randn(20, 20, generator=generator)], 20
        )
        for _ in range(2)
    )
    root = torch.from_numpy(linalg.sqrtm((a.covariance() @ b.covariance()).numpy()).real)
    expected = (a.mean - b.mean).square().sum() + (a.covariance() + b.covariance() - 2 * root).trace()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(float(expected), rel=1e-6)
    assert frechet_distance(a, b, covariance_root(a)) == frechet_distance(a, b)


def test_frechet_distance_works_with_fewer_images_than_features():
    features = torch.randn(10, 50, generator=torch.Generator().manual_seed(2))
    a = FeatureStatistics.of([features], 50)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(a, FeatureStatistics.of([features + 2], 50)) == pytest.approx(200, rel=1e-6)


def test_kernel_distance_is_unbiased_and_tells_sets_apart():
    generator = torch.Generator().manual_seed(3)
    same = [
        kernel_distance(torch.randn(60, 5, generator=generator), torch.randn(40, 5, generator=generator), 16)
        for _ in range(50)
    ]
    assert min(same) < 0 < max(same)
    assert abs(sum(same) / len(same)) < 0.2
    a, b = torch.randn(60, 5, generator=generator), torch.randn(40, 5, generator=generator) + 2
    assert kernel_distance(a, b) > 5

    def kernel(x: Tensor, y: Tensor) -> float:
        return float((x.double() @ y.double() / 5 + 1) ** 3)

    pairs = sum(kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j) / (60 * 59)
    pairs += sum(kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j) / (40 * 39)
    pairs -= 2 * sum(kernel(x, y) for x in a for y in b) / (60 * 40)
    assert kernel_distance(a, b) == pytest.approx(pairs)


def test_only_the_inception_of_2015_gives_fid_and_kid():
    assert frechet_name("inception2015", "3d") == "fid_inception2015/3d"
    assert frechet_name("mobilenetv2", "2d") == "fd_mobilenetv2/2d"
    assert KernelDistance().name("inception2015") == "kid_inception2015"
    assert KernelDistance().name("mobilenetv2") == "kd_mobilenetv2"


# Feature networks; tests/platform/evaluation/test_feature_weights.py tests where real weights are resolved.


def test_mobilenet_pools_torchvisions_features_of_resized_normalised_images():
    from torchvision.models import mobilenet_v2
    from torchvision.transforms.functional import normalize

    network = mobilenet_v2().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # As training leaves it: it does something.
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    extractor = MobileNetV2Features({k: v for k, v in network.state_dict().items() if "features" in k})
    images = torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8)
    scaled = normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    expected = network.features(scaled).mean((2, 3))
    torch.testing.assert_close(extractor(images), expected, rtol=1e-4, atol=1e-6)
    assert extractor(images[..., :33, :40]).shape == (2, extractor.dim)
    with pytest.raises(ValueError, match="not the weights of MobileNetV2"):
        MobileNetV2Features({"features.0.0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="uint8"):
        extractor(images / 255)


def test_efficientnet_lite_averages_maps_of_a_16th_of_the_size_and_refuses_other_weights():
    network = efficientnet_lite2_middle().eval()
    images = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        maps = network((images.float() - 127) / 128)
    assert maps.shape == (1, 120, 4, 4)
    extractor = EfficientNetLite2MiddleFeatures(network.state_dict())
    torch.testing.assert_close(extractor(images), maps.mean((2, 3)))
    assert extractor(images[..., :33, :40]).shape == (1, extractor.dim)
    with pytest.raises(ValueError, match="not the weights of EfficientNet-Lite2"):
        EfficientNetLite2MiddleFeatures({})


def test_inception_gives_torch_fidelitys_features(tmp_path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        """The class insists on weights; this keeps the random ones it starts with."""

        def load_state_dict(self, *args, **kwargs):
            return None

    torch.save({}, tmp_path / "none.pth")
    network = Untrained("untrained", ["2048"], str(tmp_path / "none.pth"))
    images = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    extractor = InceptionFeatures(network.state_dict())
    torch.testing.assert_close(extractor(images), network(images)[0])
    assert extractor(images).shape == (1, extractor.dim)
    with pytest.raises(ValueError, match="not the weights of Inception"):
        InceptionFeatures({})


# Agreement of views.


def _sphere_view(camera: Tensor, colour) -> DepthView:
    """A sphere of radius 0.5 on white, traced exactly; `colour` maps points (..., 3) to RGB in [-1, 1]."""
    origins, directions = rays(camera, pixel_grid(RESOLUTION))
    b = (origins * directions).sum(-1)
    inside = b.square() - (origins.square().sum(-1) - 0.25)
    hit = inside > 0
    depth = -b - inside.clamp(min=0).sqrt()
    rgb = torch.where(hit[..., None], colour(origins + directions * depth[..., None]), torch.ones(3))

    def image(values: Tensor) -> Tensor:
        return values.transpose(1, 2).unflatten(-1, (RESOLUTION, RESOLUTION))

    far = torch.where(hit, depth, torch.tensor(2.6))
    return DepthView(image(rgb), image(far[..., None]), image(hit.float()[..., None]), camera)


def _pair(yaw: float = 0.2) -> tuple[Tensor, Tensor]:
    camera = look_at(on_sphere(torch.tensor([0.3, 2.0]), torch.tensor([0.2, 0.5]), 1.7), focal=1.0254)
    return rotated(camera, -yaw / 2), rotated(camera, yaw / 2)


def _texture(points: Tensor) -> Tensor:
    return torch.sin(points * 6)


def _measured(a: DepthView, b: DepthView, *metrics: ViewMetric) -> list[float]:
    """Each metric, over the objects that both views show."""
    sums = [torch.zeros(()) for _ in metrics]
    for row in range(len(a.image)):
        images, depth, opacity, cameras = (torch.stack([x[row], y[row]]) for x, y in zip(a, b, strict=True))
        views = Views(images, cameras, 1.0, depth, opacity)
        sums = [total + torch.tensor(m.part(views)) for total, m in zip(sums, metrics, strict=True)]
    return [metric.value(total) for metric, total in zip(metrics, sums, strict=True)]


def test_views_of_one_textured_sphere_agree():
    a, b = (_sphere_view(camera, _texture) for camera in _pair())
    psnr, share = _measured(a, b, WarpPsnr(), WarpShare())
    assert psnr > 35 and share > 0.85


def test_views_with_shifted_colours_or_a_texture_on_the_screen_disagree():
    a, b = (_sphere_view(camera, _texture) for camera in _pair())
    assert _measured(a, b._replace(image=b.image * 0.5), WarpPsnr())[0] < 15
    on_screen = [view._replace(image=a.image[:1].expand(2, -1, -1, -1)) for view in (a, b)]
    assert _measured(*on_screen, WarpPsnr())[0] < 20


def test_depths_that_contradict_each_other_are_not_compared():
    a, b = (_sphere_view(camera, _texture) for camera in _pair())
    assert _measured(a, b._replace(depth=b.depth - 0.2), WarpShare())[0] < 0.02
    empty = a._replace(opacity=a.opacity * 0), b._replace(opacity=b.opacity * 0)
    psnr, share = _measured(*empty, WarpPsnr(), WarpShare())
    assert math.isnan(psnr) and share == 0


def test_occluded_pixels_are_left_out():
    """Far apart, each camera sees much that the other cannot; what both see still agrees."""
    a, b = (_sphere_view(camera, _texture) for camera in _pair(yaw=1.6))
    warped, same, visible = warp_view(a, b, b.image, 0.04)
    assert 0.1 < same.sum() / visible < 0.7
    error = (warped - a.image).square().mean(dim=1, keepdim=True)[same].mean()
    assert 10 * math.log10(4 / error) > 25


def test_a_featureless_object_agrees_with_itself():
    a, b = (_sphere_view(camera, torch.zeros_like) for camera in _pair())
    assert _measured(a, b, WarpPsnr())[0] > 45


def test_a_rotated_camera_is_the_camera_on_the_rotated_orbit():
    yaw = torch.tensor([0.1, 1.0, 3.0])
    pitch = torch.tensor([0.0, 0.4, -0.3])
    pivot = torch.tensor([0.1, 0.0, 0.2])
    camera = look_at(on_sphere(yaw, pitch, 2.0, pivot), pivot, focal=1.0)
    expected = look_at(on_sphere(yaw + 0.7, pitch, 2.0, pivot), pivot, focal=1.0)
    torch.testing.assert_close(rotated(camera, 0.7, pivot), expected, atol=1e-6, rtol=1e-5)


def test_a_textures_rows_are_one_row_of_each_frame():
    frames = torch.randn(5, 3, 8, 6)
    texture = stack_row(frames, 2)
    assert texture.shape == (3, 5, 6)
    assert torch.equal(texture[:, 4], frames[4, :, 2])
    assert torch.equal(stack_row(frames)[:, 0], frames[0, :, 4])


# With a generator, at its random initialisation.

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


@pytest.fixture(scope="module")
def G() -> Generator:
    torch.manual_seed(0)
    return Generator(MODEL, RENDERING).eval()


@pytest.fixture(scope="module")
def cameras() -> Tensor:
    return orbit(
        CameraConfig(radius=1.7, focal=1.0254, pivot=(0.0, 0.0, 0.0), pitch=0.3, yaw_range=math.pi), 7
    )


class MeanColour(FeatureExtractor):
    """Three features anyone can check."""

    name, dim = "meancolour", 3

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(255.0))

    def forward(self, images):
        return images.float().mean((2, 3)) / self.scale


def test_generated_images_do_not_depend_on_batches_workers_or_memory(G, cameras):
    for name, parameter in G.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(0.2)
    whole = list(generated_images(G, cameras, range(5), seed=1, batch=5))
    parts = [*generated_images(G, cameras, [0, 1], seed=1, batch=2)]
    parts += [*generated_images(G, cameras, [2, 3, 4], seed=1, batch=2, max_points=3000)]
    for branch in ("2d", "3d"):
        joined = torch.cat([part[branch] for part in parts])
        assert joined.dtype == torch.uint8
        assert joined.shape == (5, 3, 32, 32)
        assert (joined.int() - whole[0][branch].int()).abs().max() <= 1
    other = next(generated_images(G, cameras, [0], seed=2, branches=["3d"]))
    assert set(other) == {"3d"}
    assert not torch.equal(other["3d"], whole[0]["3d"][:1])


def test_the_frechet_distance_names_each_branch_and_is_zero_for_its_own_images(G, cameras):
    extractor = MeanColour()
    own = [part["3d"] for part in generated_images(G, cameras, range(6), seed=1, batch=4)]
    reals = FeatureStatistics.of([extractor(images) for images in own], extractor.dim)
    images = generated_images(G, cameras, range(6), seed=1, batch=4)
    found = frechet_by_branch(extractor, images, G.branches, reals)
    assert set(found) == {"fd_meancolour/2d", "fd_meancolour/3d"}
    assert found["fd_meancolour/3d"] == pytest.approx(0, abs=1e-9)
    assert found["fd_meancolour/2d"] > 1e-6


@pytest.mark.parametrize("branch", ["2d", "3d"])
def test_agreement_and_texture_of_a_generator(G, cameras, branch):
    w = G.mapping(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), cameras[:2])
    # Untrained, the field is a faint fog: made dense, there is something to compare.
    with torch.no_grad():
        bias = G.decoder.state_dict()
        last = [name for name in bias if name.endswith("bias")][-1]
        G.decoder.get_parameter(last)[0] += 30
        try:
            views = two_views(G, w[:1], cameras[:1], branch, yaw=0.1)
            small = two_views(G, w[:1], cameras[:1], branch, yaw=0.1, max_points=500)
            texture = spatiotemporal_texture(G, w[:1], cameras[:3], branch)
        finally:
            G.decoder.get_parameter(last)[0] -= 30
    assert (views.opacity >= OPAQUE).any() and WarpShare().part(views)[1] > 0
    torch.testing.assert_close(small.images, views.images, rtol=1e-3, atol=1e-3)
    assert texture.shape == (3, 3, 32)
    frame = G.view(G.planes(w[:1]), w[:1], cameras[2:3], branch).image
    assert texture.isfinite().all() and frame.shape == (1, 3, 32, 32)


def test_texture_rows_of_the_3d_branch_are_the_full_views(G, cameras):
    w = G.mapping(torch.randn(1, 16, generator=torch.Generator().manual_seed(0)), cameras[:1])
    with torch.no_grad():
        planes = G.planes(w)
        frames = torch.cat([G.view(planes, w, camera[None], "3d").image for camera in cameras[:3]])
    torch.testing.assert_close(
        spatiotemporal_texture(G, w, cameras[:3], "3d", row=5), stack_row(frames, 5), atol=1e-5, rtol=1e-4
    )
