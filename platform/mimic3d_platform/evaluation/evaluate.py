"""Measures a generator or images against a data set, as Ray tasks: `mimic3d evaluate` and `compare`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mimic3d.evaluation import registry as metric_registry
from mimic3d.features.registry import EXTRACTORS
from mimic3d_platform import storage, tracking
from mimic3d_platform.cluster.resources import Processors
from mimic3d_platform.cluster.tasks import run_pieces
from mimic3d_platform.data.format.dataset import open_dataset
from mimic3d_platform.errors import UserError
from mimic3d_platform.evaluation import feature_weights
from mimic3d_platform.evaluation.face_model import load_face_model
from mimic3d_platform.evaluation.known_shapes import load_known_shapes
from mimic3d_platform.evaluation.measured import Measured, PartCost
from mimic3d_platform.evaluation.merge import lacking_of, merge_pieces
from mimic3d_platform.evaluation.pieces import Plan, measure_piece
from mimic3d_platform.evaluation.report import FILE as REPORT
from mimic3d_platform.evaluation.report import ReportSubject, report_page
from mimic3d_platform.evaluation.report_pictures import draw_pictures
from mimic3d_platform.evaluation.subject import Subject
from mimic3d_platform.evaluation.subjects import GeneratorSubject, open_subject
from mimic3d_platform.evaluation.training_curves import training_curves
from mimic3d_platform.evaluation.truncation import TRUNCATIONS
from mimic3d_platform.models import registry
from mimic3d_platform.settings import DEFAULT_RUNS_URI
from mimic3d_platform.storage.digests import sha256_of_file
from mimic3d_platform.storage.uris import without_login
from mimic3d_platform.tracking import EXPERIMENT
from mimic3d_platform.tracking.logger import File, RunLogger
from mimic3d_platform.tracking.server import client, conflict_suppressed, tracking_errors
from mimic3d_platform.tracking.tags import DATA_TAG

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SEED = 0
VIEWS_OF_OBJECT = 30
# Images of a subject that no config says a number for.
IMAGES = 50_000
OBJECTS = 50


@dataclass(frozen=True)
class Options:
    """Options of an evaluation. Where one is None, the generator's config decides; of images, all are taken.

    Attributes:
        images: of the subject, for metrics of fidelity.
        objects: whose views are compared.
        views: of each object.
        network: the feature network; the best available when None.
        fields: whether radiance fields are fitted to the views, about half a minute of a CPU for each object
            and branch.
        seed: of everything that is drawn.
        workers: Ray tasks at once; as many as the cluster has GPUs, else CPUs, when None.
        truncation: whether fidelity is measured over truncation too, of generators.
        known_shapes: a folder of the meshes that the data set was rendered from, or `known_shapes.CARS`.
        faces: whether metrics of faces are measured, by dlib.
        here: measure in this process, without Ray.
    """

    images: int | None = None
    objects: int | None = None
    views: int = VIEWS_OF_OBJECT
    network: str | None = None
    fields: bool = True
    seed: int = SEED
    workers: int | None = None
    truncation: bool = False
    known_shapes: str | None = None
    faces: bool = False
    here: bool = False


@dataclass(frozen=True)
class Evaluation:
    """The metrics and pictures of a subject, and the run in MLflow that they were logged to."""

    report: ReportSubject
    run_id: str

    @property
    def measured(self) -> Measured:
        return self.report.measured


def evaluate(
    uri: str,
    data_uri: str | None = None,
    options: Options | None = None,
    *,
    cache_uri: str = DEFAULT_RUNS_URI,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measures all metrics that a subject allows, and logs them to a run in MLflow.

    Metrics of a registered model are logged to the model too; the run is a child of the one that trained it.

    Args:
        uri, data_uri: as `subjects.open_subject`.
        cache_uri: where pieces are stored; see `pieces`.
        on_progress: called with the pieces measured and all pieces; the report's pictures are the last.
    Raises:
        UserError: nothing to measure at `uri`, no such data set, or a service that does not answer.
    """
    tracking.check_tracking()
    options = options or Options()
    subject, data_uri = open_subject(uri, data_uri, options.seed)
    plan = _plan(subject, data_uri, options, cache_uri)
    # The report's pictures are one more piece.
    pieces = len(plan.pieces()) + 1

    def advance(done: int, _: int) -> None:
        if on_progress is not None:
            on_progress(done, pieces)

    measured = _measure(plan, options, advance)
    version = None
    if isinstance(subject, GeneratorSubject) and registry.is_registered(subject.pinned):
        version = registry.version_of(subject.pinned)
    digest, fingerprint = subject.digest[:12], str(measured.facts["data fingerprint"])[:8]
    counts = [measured.facts[fact] for fact in ("images", "objects", "views", "seed", "metrics version")]
    protocol = "-".join(map(str, counts))
    tags = {
        "mimic3d.model": without_login(subject.uri),
        "mimic3d.model.sha256": subject.digest,
        DATA_TAG: str(measured.facts["data fingerprint"]),
        "mimic3d.frechet": str(measured.facts["extractor"]),
    }
    run_id = tracking.start_or_resume_run(
        EXPERIMENT,
        f"evaluate-{digest}-{fingerprint}-{measured.facts['extractor']}-{protocol}",
        {"model": subject.uri, "data": data_uri, "evaluation": measured.facts},
        tags,
        parent_run_id=version.run_id if version else None,
    )
    with tracking.closed_after(run_id):
        manifest = open_dataset(data_uri)
        facts = {"images": manifest.count, "resolution": manifest.resolution}
        tracking.log_dataset(run_id, data_uri, manifest.fingerprint, facts, context="evaluation")
        registry.log_model_metrics(run_id, measured.flat(), version)
        [pictures] = run_pieces(draw_pictures, 1, plan, here=options.here, gpu=plan.gpu)
        advance(pieces, pieces)
        link = tracking.run_url(run_id)
        report = ReportSubject(measured, pictures, training_curves(uri, version, cache_uri), link)
        _log_report(report, run_id, version)
    return Evaluation(report, run_id)


def _log_report(report: ReportSubject, run_id: str, version: ModelVersion | None) -> None:
    """Keeps the report beside the run's metrics; a registered model's tag names the run."""
    logger = RunLogger(run_id)
    logger.add(File(REPORT, report_page([report]).encode()))
    logger.flush()
    if version is not None:
        with tracking_errors("tag a model in"), conflict_suppressed():
            place = f"runs:/{run_id}/{REPORT}"
            client().set_model_version_tag(version.name, version.version, "mimic3d.report", place)


def measure(
    subject: Subject,
    data_uri: str,
    options: Options,
    *,
    cache_uri: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Measures all metrics that a subject allows, and logs nothing.

    Raises:
        UserError: the data set has images of another resolution, a file is damaged, or a service is away.
    """
    return _measure(_plan(subject, data_uri, options, cache_uri), options, on_progress)


def _measure(plan: Plan, options: Options, on_progress: Callable[[int, int], None] | None) -> Measured:
    if storage.is_s3(plan.cache_uri):
        storage.ensure_bucket(plan.cache_uri)
    total, done = len(plan.pieces()), 0

    def count(_: PartCost) -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total)

    costs = run_pieces(
        measure_piece,
        total,
        plan,
        on_result=count,
        here=options.here,
        gpu=plan.gpu,
        at_once=options.workers,
    )
    return merge_pieces(plan, costs)


def _plan(subject: Subject, data_uri: str, options: Options, cache_uri: str) -> Plan:
    manifest = open_dataset(data_uri)
    if manifest.resolution != subject.resolution:
        raise UserError(
            f"{subject.uri} has images of {subject.resolution}×{subject.resolution}, and {data_uri} of "
            f"{manifest.resolution}×{manifest.resolution}: give a data set of the same resolution"
        )
    network = options.network or feature_weights.best_available("frechet")
    if network not in EXTRACTORS:
        raise UserError(f"no feature extractor is called {network!r}; known: {', '.join(EXTRACTORS)}")
    perceptual = feature_weights.best_available("perceptual")
    if options.faces:
        load_face_model()
    images, objects = options.images or IMAGES, options.objects or OBJECTS
    if isinstance(subject, GeneratorSubject):
        images = options.images or subject.config.output.metric_images
        objects = options.objects or subject.config.output.metric_identities
    images = min(images, subject.most_images or images)
    if images < 2:
        raise UserError(f"{subject.uri} has {images} image(s): metrics need at least 2")
    return Plan(
        subject=subject,
        data_uri=data_uri,
        data=manifest,
        network=network,
        network_sha256=sha256_of_file(feature_weights.resolve(network)),
        perceptual=perceptual,
        images=images,
        objects=objects if subject.most_objects is None else min(objects, subject.most_objects),
        views=options.views,
        view_metrics=tuple(
            metric.kind
            for metric in metric_registry.VIEWS
            if not lacking_of(metric, subject, "3d")
            and (options.fields or "field" not in metric.needs)
            and (options.faces or "face model" not in metric.needs)
            and metric.network in (None, perceptual)
        ),
        seed=options.seed,
        cache_uri=cache_uri,
        gpu=not options.here and _cluster_has_gpus(),
        truncations=TRUNCATIONS if options.truncation and "truncation" in subject.has else (),
        known_shapes=load_known_shapes(options.known_shapes)
        if options.known_shapes and "density" in subject.has
        else None,
        faces=options.faces,
    )


def _cluster_has_gpus() -> bool:
    import ray

    from mimic3d_platform.cluster.connect import join_ray

    join_ray()
    resources: Mapping[str, float] = ray.cluster_resources()
    return Processors.of(resources).kind == "GPU"
