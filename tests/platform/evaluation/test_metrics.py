"""What `mimic3d evaluate` measures of generators and of images that no generator here made."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
import trimesh
from data_samples import camera_of, png

import metrics_of_ranks
from mimic3d.checkpoints.generator_folder import save_generator
from mimic3d.config import Config, override
from mimic3d.config.recipes import get_recipe
from mimic3d.evaluation.registry import DIFFERENCE
from mimic3d.networks.generator import build_generator
from mimic3d_platform import storage
from mimic3d_platform.data.format.dataset_writer import DatasetWriter
from mimic3d_platform.errors import UserError
from mimic3d_platform.evaluation import feature_weights, pieces
from mimic3d_platform.evaluation.evaluate import Options, measure
from mimic3d_platform.evaluation.measured import Measured, comparison
from mimic3d_platform.evaluation.metrics import Evaluator
from mimic3d_platform.evaluation.subjects import open_subject

SIDE = 32
PICTURES = [np.random.default_rng(row).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for row in range(24)]
OPTIONS = Options(images=24, objects=2, views=5, fields=False, here=True)


def write_dataset(folder: Path, rows: range, side: int = SIDE) -> str:
    """A data set of noise: three views of each object."""
    writer = DatasetWriter(str(folder), side, {"tool": "test"}, columns=("image", "camera", "identity"))
    for row in rows:
        picture = PICTURES[row][:side, :side]
        camera = camera_of(300 * row).numpy()
        writer.write({"image": png(picture), "camera": camera, "identity": f"object {row // 3}"})
    writer.close()
    return str(folder)


@pytest.fixture(scope="module")
def reals(tmp_path_factory) -> str:
    return write_dataset(tmp_path_factory.mktemp("sets") / "reals", range(24))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def config(reals: str) -> Config:
    settings = {"data.uri": reals, "output.metric_images": 24, "output.metric_identities": 2}
    return override(get_recipe("cars-demo"), settings)


@pytest.fixture(scope="module")
def generator(config: Config, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "generator"
    torch.manual_seed(0)
    save_generator(folder, build_generator(config), config)
    return str(folder)


def measured(uri: str, data: str | None, cache: str, options: Options = OPTIONS) -> Measured:
    subject, data = open_subject(uri, data, options.seed)
    return measure(subject, data, options, cache_uri=cache)


@pytest.fixture(scope="module")
def of_generator(generator: str, cache: str) -> Measured:
    return measured(generator, None, cache)


def test_both_branches_have_every_metric_with_its_interval(of_generator: Measured) -> None:
    kinds = {name.split("_")[0] for name in of_generator.estimates}
    assert of_generator.left_out["field_psnr/3d"] == "no field is fitted (--no-fields)"
    assert of_generator.left_out["imitation_psnr/2d"] == "compares the 3D branch with this one"
    network = feature_weights.best_available("perceptual")
    used, other = "lpips_vgg16", "perceptual_hedvgg16"
    if network != "lpips-vgg16":
        used, other = other, used
    assert of_generator.estimates[f"warp_{used}/3d"].value > 0
    assert of_generator.left_out[f"warp_{other}/3d"] == f"the perceptual distance is {network}"
    assert kinds >= {
        "fd",
        "fd3d",
        "kd",
        "precision",
        "recall",
        "density",
        "coverage",
        "warp",
        "strip",
        "imitation",
    }
    assert {name.split("/")[1] for name in of_generator.estimates} == {"2d", "3d", DIFFERENCE}
    for name, estimate in of_generator.estimates.items():
        assert np.isfinite(estimate.value), name
        assert estimate.low <= estimate.value <= estimate.high, name
    both, more = (
        [of_generator.estimates[f"warp_detail/{branch}"].value for branch in names]
        for names in (("2d", "3d"), (DIFFERENCE,))
    )
    assert more[0] == pytest.approx(both[1] - both[0])
    flat = of_generator.flat()
    assert len(flat) == 3 * len(of_generator.estimates)
    assert (
        flat["fd_efficientnetlite2mid/3d_low"]
        <= flat["fd_efficientnetlite2mid/3d"]
        <= flat["fd_efficientnetlite2mid/3d_high"]
    )
    [row] = [row for row in of_generator.rows() if row[0] == "fd_efficientnetlite2mid/3d ↓"]
    assert row[3:] == ("24", "24 images for 120 dimensions: biased upwards")


def test_fidelity_over_truncation_ends_in_the_metrics_without_it(
    of_generator: Measured, generator: str, reals: str, tmp_path: Path
) -> None:
    cache = str(tmp_path)
    found = measured(generator, None, cache, replace(OPTIONS, truncation=True))
    assert found.estimates == of_generator.estimates and not of_generator.truncation
    for branch in ("2d", "3d"):
        for kind in ("fd", "precision", "recall"):
            name = f"{kind}_efficientnetlite2mid/{branch}"
            points = dict(found.truncation[name])
            assert list(points) == [0.5, 0.7, 0.85, 1.0]
            assert points[1.0] == found.estimates[name].value
    distances = dict(found.truncation["fd_efficientnetlite2mid/3d"])
    assert len(set(distances.values())) == 4, "each truncation has images of its own"
    assert not measured(reals, reals, cache, replace(OPTIONS, truncation=True)).truncation


def test_shapes_are_compared_with_the_meshes_where_they_are_given(
    generator: str, reals: str, tmp_path: Path
) -> None:
    meshes, cache = tmp_path / "meshes", str(tmp_path / "cache")
    meshes.mkdir()
    trimesh.creation.box((1, 0.5, 0.5)).export(meshes / "box.ply")
    trimesh.creation.icosphere(2, 1.0).export(meshes / "ball.ply")
    options = replace(OPTIONS, known_shapes=str(meshes))
    found = measured(generator, None, cache, options)
    for branch in ("2d", "3d"):
        chamfer = found.estimates.get(f"shape_chamfer/{branch}")
        if chamfer is None:  # The density of random weights may cross no level.
            assert found.left_out[f"shape_chamfer/{branch}"] == "no object has a surface"
        else:
            assert 0 < chamfer.value < 2 and f"shape_fscore/{branch}" in found.estimates
    assert not any(name.startswith("shape_") for name in measured(reals, reals, cache, options).estimates)
    with pytest.raises(UserError, match="no mesh folder at"):
        measured(generator, None, cache, replace(OPTIONS, known_shapes=str(tmp_path / "absent")))


def test_a_run_measures_the_same_distance_while_it_trains(
    of_generator: Measured, config: Config, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = feature_weights.best_available("frechet")
    trained = Evaluator(config, network, str(tmp_path)).measure(build_generator(config).eval())
    for branch in ("2d", "3d"):
        name = f"fd_{network}/{branch}"
        assert of_generator.estimates[name].value == pytest.approx(trained[name], rel=1e-4)


def test_two_ranks_measure_what_one_does_and_damaged_statistics_are_made_again(
    of_generator: Measured, config: Config, tmp_path: Path
) -> None:
    network = feature_weights.best_available("frechet")
    for damaged in (False, True):
        if damaged:  # As object storage that was killed may leave it.
            [statistics] = tmp_path.rglob("*.safetensors")
            statistics.write_bytes(statistics.read_bytes()[:-9])
            (tmp_path / "rendezvous").unlink(missing_ok=True)
        torch.multiprocessing.spawn(metrics_of_ranks.measure, (str(tmp_path), config, network), nprocs=2)
        one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
        assert one == other
        for branch in ("2d", "3d"):
            name = f"fd_{network}/{branch}"
            assert one[name] == pytest.approx(of_generator.estimates[name].value, rel=1e-4)


def test_an_evaluation_resumes_with_the_pieces_that_are_missing(
    of_generator: Measured, generator: str, cache: str, monkeypatch
) -> None:
    made = []
    write_bytes = storage.write_bytes
    monkeypatch.setattr(storage, "write_bytes", lambda uri, data: made.append(uri) or write_bytes(uri, data))
    assert measured(generator, None, cache).estimates == of_generator.estimates
    assert not made
    lost = Path(storage.list_files(storage.join(cache, pieces.FOLDER), ".safetensors")[0])
    lost.unlink()
    assert measured(generator, None, cache).estimates == of_generator.estimates
    assert [Path(uri).name for uri in made] == [lost.name]
    lost.write_bytes(lost.read_bytes()[:-9])  # As object storage that was killed may leave it.
    assert measured(generator, None, cache).estimates == of_generator.estimates
    assert [Path(uri).name for uri in made] == [lost.name] * 2


def test_the_same_images_in_a_folder_a_zip_and_a_data_set_have_the_same_metrics(
    reals: str, cache: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    labels = []
    for row in range(12):
        file = folder / f"object{row // 3}" / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(PICTURES[row]))
        labels.append([file.relative_to(folder).as_posix(), camera_of(300 * row).tolist()])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}), encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for file in folder.rglob("*.*"):
            archive.write(file, file.relative_to(folder))
    subjects = [folder, tmp_path / "images.zip", write_dataset(tmp_path / "set", range(12))]
    found = [
        measured(str(subject), reals, cache, Options(images=12, fields=False, here=True))
        for subject in subjects
    ]
    names = set(found[0].estimates)
    assert names >= {
        f"{kind}_efficientnetlite2mid/images" for kind in ("fd", "precision", "recall", "coverage")
    }
    for other in found[1:]:
        for name in names:
            expected = found[0].estimates[name].value
            assert other.estimates[name].value == pytest.approx(expected, rel=1e-3, abs=1e-3), name
    assert "no two cameras" in found[0].left_out["fd3d_efficientnetlite2mid/images"]
    before = open_subject(str(folder), reals, 0)[0].digest
    corrected = [[name, camera_of(3 * row).tolist()] for row, (name, _) in enumerate(labels)]
    (folder / "dataset.json").write_text(json.dumps({"labels": corrected}), encoding="utf-8")
    assert open_subject(str(folder), reals, 0)[0].digest != before, "other cameras give other metrics"
    header, rows = comparison(found)
    assert header == ["metric", *map(str, subjects)]
    [row] = [row for row in rows if row[0] == "fd_efficientnetlite2mid/images ↓"]
    assert len(row) == 4 and len({cell.split()[0] for cell in row[1:]}) == 1


def test_images_of_the_set_itself_are_the_nearest(reals: str, cache: str, tmp_path: Path) -> None:
    bright = tmp_path / "bright"
    bright.mkdir()
    for row in range(24):
        (bright / f"{row}.png").write_bytes(png(200 + PICTURES[row] // 5))
    same, other = (measured(str(uri), reals, cache, OPTIONS) for uri in (reals, bright))
    name = "fd_efficientnetlite2mid/images"
    assert same.estimates[name].value == pytest.approx(0, abs=1e-2)
    assert other.estimates[name].value > 1
    assert same.estimates["precision_efficientnetlite2mid/images"].value == 1


def test_bad_subjects_are_one_line(reals: str, cache: str, tmp_path: Path) -> None:
    sizes = tmp_path / "sizes"
    sizes.mkdir()
    for row, side in enumerate((SIDE, SIDE, 16)):
        (sizes / f"{row}.png").write_bytes(png(PICTURES[row][:side, :side]))
    with pytest.raises(UserError, match=r"png of .* is \d+×\d+, others are \d+×\d+"):
        measured(str(sizes), reals, cache)
    with pytest.raises(UserError, match="give a data set of the same resolution"):
        measured(write_dataset(tmp_path / "small", range(3), 16), reals, cache)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "0.png").write_bytes(png(PICTURES[0]))
    with pytest.raises(UserError, match=r"has 1 image\(s\)"):
        measured(str(alone), reals, cache)
    with pytest.raises(UserError, match="name the data set of real images with --data"):
        open_subject(str(alone), None, 0)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("no image", encoding="utf-8")
    with pytest.raises(UserError, match="holds no image"):
        open_subject(str(tmp_path / "text"), reals, 0)
    with pytest.raises(UserError, match="there is nothing at"):
        open_subject(str(tmp_path / "nowhere"), reals, 0)
    with pytest.raises(UserError, match="no feature extractor is called 'vgg19'"):
        measured(reals, reals, cache, Options(images=4, here=True, network="vgg19"))
