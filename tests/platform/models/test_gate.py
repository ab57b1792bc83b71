"""An alias moves only to a version that is measurably better, and every decision is recorded."""

import json
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from mimic3d.evaluation.registry import lower_is_better
from mimic3d_platform.errors import UserError
from mimic3d_platform.models import alias_claim, gate, registry
from mimic3d_platform.models.gate import promote
from mimic3d_platform.models.registration import register_generator
from mimic3d_platform.tracking import start_or_resume_run
from mimic3d_platform.tracking.server import client

FID, DETAIL = "fid_inception2015/3d", "field_detail/3d"
Register = Callable[..., int]


def measured(fid: float, agreement: float | None = None) -> dict[str, float]:
    """A Fréchet distance and an agreement of views, each with an interval of ±0.5."""
    values = {FID: fid} | ({DETAIL: agreement} if agreement is not None else {})
    ends = {"_low": -0.5, "_high": 0.5}
    return values | {f"{name}{end}": value + by for name, value in values.items() for end, by in ends.items()}


@pytest.fixture
def register(
    stack, name: str, generator_folder: Callable[..., Path], no_previews, monkeypatch: pytest.MonkeyPatch
) -> Register:
    """Registers another generator with metrics that a run measured on `data` with `images`."""
    monkeypatch.setattr(alias_claim, "SETTLE_S", 0.2)
    made = 0

    def make(metrics: Mapping[str, float], data: str = "cars", images: int = 50) -> int:
        nonlocal made
        made += 1
        output = {"output": {"metric_images": images, "metric_identities": 4}}
        run = start_or_resume_run(f"test-{uuid.uuid4().hex[:8]}", "run", output, {"mimic3d.data": data})
        return register_generator(generator_folder(f"made-{made}", made), name, run, metrics)

    return make


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        ("fid3d_inception2015/3d", True),
        ("kd_mobilenetv2/2d", True),
        ("fields_depth/3d", True),
        ("floaters/3d", True),
        ("warp_lpips_vgg16/2d", True),
        ("warp_psnr/3d", False),
        ("precision_inception2015/3d", False),
    ],
)
def test_which_direction_of_a_metric_is_better(metric: str, lower: bool) -> None:
    assert lower_is_better(metric) is lower


def decision_of(name: str, version: int) -> dict:
    tags = client().get_model_version(name, str(version)).tags
    return json.loads(tags["mimic3d.gate.champion"])


def test_the_gate_passes_the_first_version_and_then_only_better_ones(name: str, register: Register) -> None:
    first = register(measured(10.0, 30.0))
    assert promote(name, first, "champion").line == "version 1 is champion: no version had this alias before"
    assert promote(name, first, "champion").line == "version 1 is champion already"

    within = promote(name, register(measured(9.5, 30.0)), "champion")
    assert not within.passed and registry.aliases_of(name) == {"champion": 1}
    assert within.line == (
        f"version 1 stays champion, not version 2: {FID} is not better beyond the intervals "
        f"({FID} 9.5 (9 to 10) against 10 (9.5 to 10.5); "
        f"{DETAIL} 30 (29.5 to 30.5) against 30 (29.5 to 30.5))"
    )
    assert decision_of(name, 2)["passed"] is False
    assert decision_of(name, 2)["metrics"][FID] == {
        "candidate": [9.5, 9.0, 10.0],
        "present": [10.0, 9.5, 10.5],
        "data": "cars",
        "images": "50",
    }
    assert "version 1 stays champion" in client().get_model_version(name, "2").description

    inconsistent = promote(name, register(measured(8.0, 28.0)), "champion")
    assert not inconsistent.passed
    assert inconsistent.reasons == (f"the guarded metric {DETAIL} is worse beyond the intervals",)

    better = promote(name, register(measured(8.0, 29.8)), "champion")
    assert better.passed and registry.aliases_of(name) == {"champion": 4}
    assert "version 4 is champion in place of version 1" in client().get_model_version(name, "4").description

    forced = promote(name, 3, "champion", force="a demonstration")
    assert forced.passed and registry.aliases_of(name) == {"champion": 3}
    assert decision_of(name, 3)["forced"] == "a demonstration"
    assert "forced: a demonstration" in forced.line


def test_numbers_of_other_data_sets_and_sample_sizes_are_not_compared(name: str, register: Register) -> None:
    promote(name, register(measured(10.0)), "champion")
    for number, other in enumerate(({"data": "faces"}, {"images": 500}), start=2):
        decision = promote(name, register(measured(1.0), **other), "champion")
        assert not decision.passed and "run `mimic3d evaluate` on" in decision.line
        assert f"models:/{name}/{number} and models:/{name}/1" in decision.line
    # An evaluation of one version alone is not compared with the other's training; one of both is.
    evaluation = {"evaluation": {"images": 50, "objects": 4, "views": 8, "seed": 0}}
    for number, passes in ((2, False), (1, True)):
        experiment = f"test-{uuid.uuid4().hex[:8]}"
        run = start_or_resume_run(experiment, "evaluation", evaluation, {"mimic3d.data": "cars"})
        version = registry.version_of(f"models:/{name}/{number}")
        registry.log_model_metrics(run, measured(2.0 if number == 2 else 9.0), version)
        assert promote(name, 2, "champion").passed is passes


def test_a_metric_without_an_interval_is_taken_as_exact_with_a_warning(name: str, register: Register) -> None:
    notes: list[str] = []
    promote(name, register({FID: 10.0, "kd_x/3d": 1.0}), "champion")
    second = register({FID: 9.9, "kd_x/3d": 2.0})
    assert not promote(name, second, "champion", metric="kd_x/3d").passed
    assert not promote(name, second, "champion", guards=["warp_psnr/3d"]).passed
    assert promote(name, second, "champion", on_note=notes.append).passed
    assert notes == [f"{FID} was logged without an interval (…_low, …_high): it is taken as exact"]


def test_a_slower_version_is_refused_where_latency_is_limited(
    name: str, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(name, register(measured(10.0)), "champion")
    second = register(measured(5.0))
    monkeypatch.setattr(gate, "_latencies", lambda *_: (0.3, 0.2))
    refused = promote(name, second, "champion", max_latency=1.2)
    assert not refused.passed and "a view takes 0.3 s against 0.2 s" in refused.line
    assert promote(name, second, "champion", max_latency=1.6).passed


def test_of_two_promotions_at_once_the_second_is_compared_with_the_first(
    name: str, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than a request takes on a busy machine.
    monkeypatch.setattr(alias_claim, "SETTLE_S", 2.0)
    promote(name, register(measured(10.0)), "champion")
    versions = [register(measured(8.0)), register(measured(6.0))]
    with ThreadPoolExecutor() as pool:
        decisions = list(pool.map(lambda version: promote(name, version, "champion"), versions))
    # Whichever was first, the best has the alias, and the other was compared with what it found.
    assert registry.aliases_of(name) == {"champion": versions[1]}
    assert decisions[1].passed
    assert decisions[0].present == (1 if decisions[0].passed else versions[1])
    assert not claims(name)


def test_a_claim_that_another_process_inserts_first_is_waited_for(
    name: str, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two clients that set a new tag at once, MLflow's server refuses one: the words are its own."""
    version = register(measured(10.0))
    set_tag = MlflowClient.set_registered_model_tag
    refused = []

    def overtaken(self: MlflowClient, model: str, key: str, value: str) -> None:
        if refused:
            return set_tag(self, model, key, value)
        refused.append(key)
        set_tag(self, model, key, f"another {time.time() - alias_claim._STALE_S + 3:.0f}")
        raise MlflowException(
            "(sqlite3.IntegrityError) UNIQUE constraint failed: registered_model_tags.workspace, "
            "registered_model_tags.key, registered_model_tags.name",
            error_code=BAD_REQUEST,
        )

    monkeypatch.setattr(MlflowClient, "set_registered_model_tag", overtaken)
    assert promote(name, version, "champion").passed
    assert refused and not claims(name)


def test_a_claim_that_was_lost_moves_no_alias(
    name: str, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(name, register(measured(10.0)), "champion")
    better, compare, key = register(measured(5.0)), gate._compare, "mimic3d.promoting.champion"

    def slowly(*arguments):
        client().set_registered_model_tag(name, key, f"another {time.time():.0f}")
        return compare(*arguments)

    monkeypatch.setattr(gate, "_compare", slowly)
    with pytest.raises(UserError, match=r"another promotion to 'champion' of .* came in between"):
        promote(name, better, "champion")
    assert registry.aliases_of(name) == {"champion": 1}
    assert claims(name) == [key], "the other's claim stays"
    assert "mimic3d.gate.champion" not in client().get_model_version(name, str(better)).tags


def claims(name: str) -> list[str]:
    return [tag for tag in client().get_registered_model(name).tags if "promoting" in tag]


def test_the_latency_of_versions_is_measured(name: str, register: Register) -> None:
    version = registry.version_of(f"models:/{name}/{register(measured(10.0))}")
    assert all(0 < seconds < 10 for seconds in gate._latencies(version, version))


@pytest.mark.parametrize(
    ("alias", "force", "words"),
    [
        ("latest", None, "reserves latest"),
        ("v1", None, "reserves latest"),
        ("champion", " ", "needs a reason"),
    ],
)
def test_a_promotion_that_mlflow_would_refuse_is_refused_without_it(
    alias: str, force: str | None, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        promote("cars", 1, alias, force=force)
