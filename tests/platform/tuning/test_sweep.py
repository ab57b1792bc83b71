"""Sweep files, their checks, the search for the next trial, records and reports; no service is needed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from test_training import MeanAbsolute, labels

from mimic3d.checkpoints.generator_folder import save_generator
from mimic3d.config import config_from_yaml, override
from mimic3d.networks.generator import build_generator
from mimic3d.training.trainer import Trainer
from mimic3d_platform.errors import UserError
from mimic3d_platform.models.checkpoints import CheckpointStore
from mimic3d_platform.training.run_identity import RunOrigin, claim_run
from mimic3d_platform.tuning.checks import concurrency, with_metric_names
from mimic3d_platform.tuning.report import MARKDOWN, PAGE, TABLE, WINNER, write_report
from mimic3d_platform.tuning.schema import Sweep
from mimic3d_platform.tuning.search import DONE, WAIT, Proposal, best_trials, generations, propose, size
from mimic3d_platform.tuning.stage1 import find_stage1, pin_stage1, pinned_stage1
from mimic3d_platform.tuning.sweep_file import (
    load_sweep,
    parse_sweep,
    rooted,
    sweep_differences,
    sweep_to_yaml,
)
from mimic3d_platform.tuning.trials import Trial, TrialRecords, trial_config

SWEEPS = sorted((Path(__file__).parents[3] / "sweeps").glob("*.yaml"))
METRIC, OTHER = "fd_mobilenetv2/3d", "warp_psnr/3d"
BASE = {
    "recipe": "cars-demo",
    "data": "/data/cars",
    "overrides": {"schedule.stage2_kimg": 3.2},
    "stage1": "shared",
    "space": {
        "imitation.lpips_weight": {"uniform": [0, 4]},
        "imitation.patch_gan_weight": {"choice": [0, 0.1, 0.2]},
        "optimizer.generator_lr": {"loguniform": [0.0001, 0.01]},
    },
    "objectives": [{"metric": METRIC, "mode": "min"}],
    "budget": {"trials": 8},
}


ASHA = {"schedule.stage2_kimg": 3.2, "output.metric_kimg": 0.8}
PBT = {"name": "pbt", "population": 4, "interval_kimg": 0.8}


def written(folder: Path, **changes: object) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in (BASE | changes).items() if value is not None}),
        encoding="utf-8",
    )
    return path


def loaded(folder: Path, **changes: object) -> Sweep:
    return load_sweep(written(folder, **changes))


def refusal(folder: Path, **changes: object) -> str:
    with pytest.raises(ValueError) as raised:
        loaded(folder, **changes)
    assert "\n" not in str(raised.value) and str(raised.value).startswith(f"{folder}/sweep.yaml: ")
    return str(raised.value)


def simulated(
    sweep: Sweep, stop_every: int = 0, fail: tuple[int, ...] = (), until: int = 1000
) -> list[Trial]:
    """The trials of a sweep, one after the other; their results depend on the learning rate alone."""
    trials: list[Trial] = []
    while len(trials) < until:
        proposal = propose(sweep, trials, hours=0.0)
        if proposal == DONE:
            break
        assert isinstance(proposal, Proposal)
        index = len(trials)
        trial = Trial(index, f"s-{index:03d}", proposal.point, proposal.generation, proposal.member)
        rate = trial.point["optimizer.generator_lr"]
        value = abs(math.log(rate / 0.003))
        trial = replace(trial, parent=proposal.parent, checkpoint_uri=f"/runs/{index}")
        trial = trial.with_measurement(1600, {METRIC: value, OTHER: rate}).with_measurement(
            3200, {METRIC: value / 2, OTHER: rate}
        )
        stops = stop_every and index % stop_every == 1
        status = "failed" if index in fail else "stopped" if stops else "finished"
        trials.append(replace(trial, status=status))
    return trials


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_shipped_sweep_loads_and_its_whole_space_makes_configs(path: Path) -> None:
    sweep = load_sweep(path)  # Builds the configs of all values, bounds and corners.
    for point in sweep.points.grid():
        full = sweep.points.sample(0, 0) | point
        trial = Trial(0, "t", full)
        assert trial_config(sweep, trial, "/stage1" if sweep.shares_stage1 else "", [trial])
    assert parse_sweep(sweep_to_yaml(sweep), "text") == sweep


SMALL = {
    "model.channel_base": 512,
    "model.channel_max": 8,
    "model.discriminator_channel_base": 512,
    "model.discriminator_channel_max": 8,
    "model.superresolution_channels": (8, 8),
    "model.z_dim": 8,
    "model.w_dim": 8,
    "rendering.coarse_samples": 4,
    "rendering.importance_samples": 4,
    "regularization.density_points": 20,
    "schedule.batch": 2,
    "schedule.stage1_kimg": 0,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "side"), {"eighth": 8, "quarter": 16, "half": 32, "whole": 64, "whole, 16² rays": 16}.items()
)
def test_patch_scale_is_pixels_of_the_full_image_and_each_trains(case: str, side: int) -> None:
    sweep = load_sweep(SWEEPS[0].parent / "patch-scale.yaml")
    config = override(sweep.base, sweep.points.overrides({"case": case, "seed": 0}) | SMALL)
    trainer = Trainer(config, MeanAbsolute())
    assert config.model.image_resolution == 64 and trainer.patch.resolutions[0] == side
    before = {name: weight.clone() for name, weight in trainer.patch.named_parameters()}
    images = torch.randint(256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    losses = trainer.step(images, labels()[:2], labels())
    assert all(loss.isfinite() for loss in losses.values())
    assert any(not torch.equal(weight, before[name]) for name, weight in trainer.patch.named_parameters())


def test_the_sweeps_that_the_documentation_names_exist() -> None:
    assert {"imitation", "minutes"} <= {path.stem for path in SWEEPS}
    assert len(SWEEPS) >= 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objectve": 1}, ("unknown key objectve", "did you mean objectives?")),
        ({"search": {"algoritm": "tpe"}}, ("search.algoritm", "did you mean algorithm?")),
        ({"objectives": [{"metric": "x", "mod": "min"}]}, ("objectives.0.mod", "mode")),
        ({"scheduler": {"name": "asha", "grace": 1}}, ("scheduler.grace", "did you mean grace_kimg?")),
        ({"objectives": None}, ("objectives is missing",)),
        ({"search": {"algorithm": "bohb"}}, ("search.algorithm is 'bohb'", "grid")),
        ({"space": {"imitation.lpips_wieght": {"grid": [1]}}}, ("did you mean imitation.lpips_weight?",)),
        ({"space": {"imitation.lpips_weight": {"gird": [1]}}}, ("unknown kind gird", "grid")),
        ({"space": {"imitation.lpips_weight": {"uniform": [2, 1]}}}, ("[low, high]", "low below high")),
        ({"space": {"imitation.lpips_weight": {"loguniform": [0, 1]}}}, ("more than 0",)),
        ({"space": {"imitation.lpips_weight": {"grid": [1, -1]}}}, ("lpips_weight -1", "at least 0")),
        (
            {"space": {"regularization.density_points": {"uniform": [1, 9]}}},
            ("density_points", "whole number"),
        ),
        ({"space": {"optimizer.generator_lr": {"choice": [0.1, 0.1]}}}, ("twice",)),
        ({"space": {}}, ("nothing is varied",)),
        ({"cases": {"wide": {"model.channel_mx": 8}}}, ("did you mean model.channel_max?",)),
        ({"cases": {"wide": {"model.channel_max": 8}}}, ("settled by the stage 1",)),
        ({"space": {"schedule.stage1_kimg": {"grid": [0.8]}}}, ("settled by the stage 1",)),
        ({"search": {"algorithm": "grid"}}, ("a grid cannot hold imitation.lpips_weight",)),
        ({"budget": {}}, ("goes on for ever",)),
        ({"recipe": None}, ("name either a recipe or a config file",)),
        ({"scheduler": {"name": "asha", "grace_kimg": 0.8}}, ("set output.metric_kimg",)),
        (
            {"scheduler": {"name": "asha", "grace_kimg": 99}, "overrides": {"output.metric_kimg": 0.8}},
            ("stops nothing",),
        ),
        # A trial has 3.2 kimg, the sweep's base with the shared stage 1 more.
        (
            {"scheduler": {"name": "asha", "grace_kimg": 4}, "overrides": ASHA},
            ("stops nothing; a trial has 3.2 kimg",),
        ),
        ({"scheduler": {"name": "pbt", "population": 4, "interval_kimg": 0.9}}, ("evenly",)),
        ({"scheduler": PBT, "space": {"schedule.stage2_kimg": {"choice": [3.2, 4.8]}}}, ("its length",)),
        ({"scheduler": PBT | {"factors": [0, 2]}}, ("scheduler.factors.0 is 0", "greater than 0")),
        ({"scheduler": {"name": "hyperband"}}, ("hyperband", "asha", "pbt")),
        ({"space": {"imitation.lpips_weight": {"grid": []}}}, ("grid is []; write a list",)),
        ({"space": {"imitation.lpips_weight": {"grid": [{"a": 1}]}}}, ("write numbers, text",)),
        ({"space": {"imitation.lpips_weight": {"uniform": [False, True]}}}, ("low below high",)),
        ({"space": {"imitation.lpips_weight": {"quniform": [0, 0.5, 0.2]}}}, ("divide the range evenly",)),
        ({"space": {"case": {"grid": [1]}}}, ("under cases",)),
        ({"cases": {"a": {"imitation.lpips_weight": 1}}}, ("a sets imitation.lpips_weight, which space",)),
        ({"budget": {"trials": 0}}, ("budget.trials is 0",)),
        ({"budget": {"kimg": 0.8}}, ("kimg 0.8 is less than a trial has (3.2)",)),
        ({"budget": {"hours": math.inf}}, ("budget.hours is inf", "finite")),
        ({"stage1": ""}, ("stage1 is ''",)),
        ({"overrides": {"schedule.stage1_kimg": 0}}, ("no stage 1 to share",)),
        ({"overrides": {"schedule.stage2_kimg": 0}}, ("no stage 2 to vary",)),
        ({"recipe": "cars-demo-eg3d", "overrides": {}}, ("EG3D has no stage 2",)),
        ({"objectives": [{"metric": "a/3d", "mode": "min"}] * 2}, ("a/3d is named twice",)),
        ({"trials": {"workers": 3}}, ("schedule.batch 4 cannot be split among 3 workers",)),
        ({"recipe": "cars-demoo"}, ("did you mean cars-demo?",)),
        ({"data": None}, ("no data set is named",)),
        ({"overrides": {"schedule.bath": 8}}, ("did you mean schedule.batch?",)),
    ],
)
def test_a_mistake_is_one_line_that_says_where(tmp_path: Path, changes: dict, words: tuple[str, ...]) -> None:
    said = refusal(tmp_path, **changes)
    assert all(word in said for word in words), said


def test_a_sweep_whose_trials_would_wait_for_each_other_is_refused(tmp_path: Path) -> None:
    cpus = {"CPU": 2.0, "memory": 1e9}
    assert concurrency(loaded(tmp_path), cpus) == 2
    assert concurrency(loaded(tmp_path, trials={"workers": 2}), cpus) == 1
    assert concurrency(loaded(tmp_path, trials={"workers": 2}), cpus | {"GPU": 8.0}) == 4
    for trials, words in {
        (4, None): "4 workers needs as many CPUs, the cluster has 2",
        (1, 4): "4 trials of 1 workers need 4 CPUs, the cluster has 2",
    }.items():
        with pytest.raises(UserError, match=words):
            concurrency(loaded(tmp_path, trials={"workers": trials[0], "concurrency": trials[1]}), cpus)


def test_a_random_search_is_a_function_of_its_seed(tmp_path: Path) -> None:
    sweep = loaded(tmp_path)
    points = [trial.point for trial in simulated(sweep)]
    assert len(points) == 8 and points == [trial.point for trial in simulated(sweep)]
    others = simulated(loaded(tmp_path, search={"algorithm": "random", "seed": 1}))
    assert points[0] != others[0].point
    for point in points:
        assert 0 <= point["imitation.lpips_weight"] <= 4 and point["imitation.patch_gan_weight"] in (
            0,
            0.1,
            0.2,
        )


def test_a_grid_is_every_combination_once(tmp_path: Path) -> None:
    space = {
        "imitation.lpips_weight": {"grid": [0, 1]},
        "optimizer.generator_lr": {"grid": [0.001, 0.003, 0.01]},
    }
    sweep = loaded(tmp_path, space=space, search={"algorithm": "grid"}, budget={})
    trials = simulated(sweep)
    assert size(sweep) == len(trials) == 6
    assert len({tuple(trial.point.values()) for trial in trials}) == 6
    assert best_trials(sweep, trials)[0].point["optimizer.generator_lr"] == 0.003


def test_tpe_searches_where_results_were_good_and_is_a_function_of_the_trials(tmp_path: Path) -> None:
    sweep = loaded(tmp_path, search={"algorithm": "tpe", "startup": 6}, budget={"trials": 30})
    trials = simulated(sweep, fail=(3,), stop_every=7)

    def miss(found: list[Trial]) -> float:
        return sum(abs(math.log(t.point["optimizer.generator_lr"] / 0.003)) for t in found) / len(found)

    assert miss(trials[-10:]) < 0.5 * miss(trials[:6])
    # The next trial is a function of those before it.
    again = propose(sweep, trials[:20], hours=0)
    assert isinstance(again, Proposal) and again.point == trials[20].point


def test_several_objectives_have_a_front(tmp_path: Path) -> None:
    objectives = [{"metric": METRIC, "mode": "min"}, {"metric": OTHER, "mode": "max"}]
    sweep = loaded(tmp_path, objectives=objectives, search={"algorithm": "tpe"}, budget={"trials": 16})
    trials = simulated(sweep)
    front = best_trials(sweep, trials)
    assert 1 <= len(front) < len(trials)
    for winner in front:
        beaten = [
            t
            for t in trials
            if t.metrics[METRIC] < winner.metrics[METRIC] and t.metrics[OTHER] > winner.metrics[OTHER]
        ]
        assert beaten == []


def test_a_population_copies_the_weights_of_its_best_and_perturbs_their_values(tmp_path: Path) -> None:
    scheduler = {"name": "pbt", "population": 4, "interval_kimg": 0.8}
    sweep = loaded(tmp_path, scheduler=scheduler, budget={})
    assert generations(sweep) == 4 and size(sweep) == 16
    trials = simulated(sweep, fail=(1,))
    assert len(trials) == 16
    first, second = trials[:4], trials[4:8]
    donor = min((t for t in first if t.status != "failed"), key=lambda t: t.metrics[METRIC])
    worst = max((t for t in first if t.status != "failed"), key=lambda t: t.metrics[METRIC])
    for trial in second:
        taken_over = trial.member in (1, worst.member)
        assert trial.parent == (donor.index if taken_over else trial.member)
        assert (trial.point != trials[trial.parent].point) == taken_over
        config = trial_config(sweep, trial, "/stage1", trials)
        assert config.start == f"/runs/{trial.parent}" and config.seed == sweep.base.seed + 1
        assert config.stage1_nimg == 0 and config.total_nimg == 800
    assert all(trial_config(sweep, trial, "/stage1", trials).start == "/stage1" for trial in first)
    # A generation waits for the one before.
    waiting = [*first[:3], replace(first[3], status="running")]
    assert propose(sweep, waiting, hours=0) == WAIT


def test_a_budget_ends_the_sweep(tmp_path: Path) -> None:
    assert len(simulated(loaded(tmp_path, budget={"kimg": 16}))) == 5  # Of 3.2 kimg each.
    lengths = {"schedule.stage2_kimg": {"grid": [1.6, 3.2]}}
    sweep = loaded(tmp_path, space=BASE["space"] | lengths, budget={"kimg": 8})
    running = [replace(trial, status="running") for trial in simulated(sweep, until=2)]
    assert propose(sweep, running, hours=0) != DONE  # Of 1.6 and 3.2 kimg, and 1.6 more.
    assert propose(sweep, [*running, replace(running[0], index=2)], hours=0) == DONE  # 3.2 more is too much.
    sweep = loaded(tmp_path, budget={"hours": 2})
    trials = simulated(sweep, until=3)
    assert isinstance(propose(sweep, trials, hours=1.9), Proposal)
    assert propose(sweep, trials, hours=2.0) == DONE


def test_trials_fork_from_one_stage1_and_differ_by_their_values_alone(tmp_path: Path) -> None:
    sweep = loaded(tmp_path)
    a, b = (trial_config(sweep, trial, "s3://runs/stage1", []) for trial in simulated(sweep, until=2))
    for config in (a, b):
        assert config.start == "s3://runs/stage1" and config.stage1_nimg == 0 and not config.joint
    same = replace(b, imitation=a.imitation, optimizer=a.optimizer)
    assert same == a != b


def test_cases_are_named_sets_of_overrides(tmp_path: Path) -> None:
    cases = {"both": {}, "no-gan": {"imitation.patch_gan_weight": 0}}
    sweep = loaded(tmp_path, cases=cases, space=None, search={"algorithm": "grid"}, budget={})
    weights = [
        trial_config(sweep, Trial(0, "t", point), "/s", []).imitation.patch_gan_weight
        for point in sweep.points.grid()
    ]
    assert weights == [sweep.base.imitation.patch_gan_weight, 0]


def test_records_are_read_back_unchanged(tmp_path: Path) -> None:
    sweep = loaded(tmp_path)
    trials = simulated(sweep, until=3)
    records = TrialRecords(str(tmp_path))
    for trial in trials:
        records.put(trial)
    assert TrialRecords(str(tmp_path)).all() == trials
    (tmp_path / "trials" / "001.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"001\.json is no record of a trial"):
        TrialRecords(str(tmp_path))


def test_a_trial_whose_record_was_deleted_is_proposed_again(tmp_path: Path) -> None:
    sweep = loaded(tmp_path)
    trials, records = simulated(sweep, until=4), TrialRecords(str(tmp_path))
    for trial in trials:
        records.put(trial)
    assert TrialRecords(str(tmp_path)).before_next() == trials
    (tmp_path / "trials" / "001.json").unlink()
    before = TrialRecords(str(tmp_path)).before_next()
    assert before == trials[:1]
    proposal = propose(sweep, before, hours=0)
    assert isinstance(proposal, Proposal) and proposal.point == trials[1].point


def test_an_objective_is_a_metric_that_the_runs_measure(tmp_path: Path) -> None:
    names = {"frechet/2d": "fd_mobilenetv2/2d", "warp_psnr/3d": "warp_psnr/3d"}
    objectives = [{"metric": metric, "mode": "min"} for metric in names]
    sweep = with_metric_names(loaded(tmp_path, objectives=objectives), "mobilenetv2")
    assert [objective.metric for objective in sweep.objectives] == list(names.values())
    for metric, hint in {"frechet/4d": "did you mean", "kd_x": "they measure fd_mobilenetv2/2d"}.items():
        odd = loaded(tmp_path, objectives=[{"metric": metric, "mode": "min"}])
        with pytest.raises(UserError, match=f"no run measures {metric}; {hint}"):
            with_metric_names(odd, "mobilenetv2")


def test_a_sweep_keeps_the_stage1_that_it_was_first_started_with(tmp_path: Path) -> None:
    assert pin_stage1("models:/cars/3", str(tmp_path)) == "models:/cars/3"
    assert pin_stage1("models:/cars/4", str(tmp_path)) == pinned_stage1(str(tmp_path)) == "models:/cars/3"
    assert pinned_stage1(str(tmp_path / "never started")) == ""


def test_places_of_a_sweep_are_absolute_because_trials_run_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = rooted(loaded(tmp_path, data="cars", stage1="runs/former"))
    assert sweep.base.data.uri == str(tmp_path / "cars") and sweep.stage1 == str(tmp_path / "runs" / "former")
    assert rooted(sweep) == sweep
    assert rooted(loaded(tmp_path, stage1="models:/cars/3")).stage1 == "models:/cars/3"


def test_a_named_stage1_is_verified_before_anything_starts(tmp_path: Path) -> None:
    base = loaded(tmp_path).base
    small = replace(base.model, channel_base=128, channel_max=8, z_dim=8, w_dim=8)
    config = replace(base, model=small, schedule=replace(base.schedule, stage1_kimg=0.8))
    model = {f"model.{key}": getattr(small, key) for key in ("channel_base", "channel_max", "z_dim", "w_dim")}

    def found(uri: Path | str, **changes: object) -> str:
        return find_stage1(loaded(tmp_path, stage1=str(uri), overrides=model | changes))

    save_generator(tmp_path / "generator", build_generator(config), config)
    assert found(tmp_path / "generator") == str(tmp_path / "generator")
    with pytest.raises(UserError, match=r"stage1: .* has model.z_dim 8, the sweep 16; make them the same"):
        found(tmp_path / "generator", **{"model.z_dim": 16})
    with pytest.raises(UserError, match="stage1: there is nothing at"):
        found(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"stage1: .* holds neither"):
        found(written(tmp_path).parent / "sweep.yaml")

    # A run's folder stands for the end of its stage 1, whatever came after.
    claim_run(str(tmp_path), "run", config, RunOrigin("data"))
    store = CheckpointStore(str(tmp_path), "run")
    with pytest.raises(UserError, match=r"is not at the end of its stage 1 \(800 images\) yet"):
        found(tmp_path / "run")
    kept = [store.put(tmp_path / "generator", store.new_name(nimg), nimg, {}) for nimg in (800, 1600)]
    assert found(tmp_path / "run") == kept[0].uri
    (Path(kept[0].uri) / "generator.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"stage1: the checkpoint .* is damaged"):
        found(tmp_path / "run")


def test_a_sweep_file_resolves_to_one_that_depends_on_no_other(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("schedule: {stage2_kimg: 6.4, stage1_kimg: 3.2}\n", encoding="utf-8")
    sweep = loaded(tmp_path, recipe=None, config="base.yaml", overrides={"seed": 3})
    again = parse_sweep(sweep_to_yaml(sweep), "stored")
    assert again == sweep and again.base.seed == 3 and again.base.schedule.stage2_kimg == 6.4
    assert sweep_differences(sweep, again) == []
    plain = written(tmp_path, recipe=None, config="base.yaml", overrides=None)
    other = load_sweep(plain, assignments=["seed=4"])
    assert sweep_differences(sweep, other) == ["config.seed 3 -> 4"]


@pytest.mark.parametrize("objectives", [1, 2])
def test_a_report_holds_tables_pictures_and_a_config_that_trains(tmp_path: Path, objectives: int) -> None:
    from PIL import Image

    both = [{"metric": METRIC, "mode": "min"}, {"metric": OTHER, "mode": "max"}]
    sweep = loaded(tmp_path, objectives=both[:objectives])
    trials = simulated(sweep, stop_every=3, fail=(2,))
    best = write_report(sweep, "s", trials, "s3://runs/stage1", tmp_path / "report")
    folder = tmp_path / "report"
    config = config_from_yaml((folder / WINNER).read_text(encoding="utf-8"), WINNER)
    assert config == trial_config(sweep, best[0], "s3://runs/stage1", trials)
    lines = (folder / TABLE).read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(trials) + 1 and "imitation.lpips_weight" in lines[0] and METRIC in lines[0]
    assert (folder / MARKDOWN).read_text(encoding="utf-8").splitlines()[2].startswith(f"| {best[0].index} |")
    page = (folder / PAGE).read_text(encoding="utf-8")
    names = ["parallel", "parameters", "importance", "curves", *(["front"] if objectives == 2 else [])]
    pictures = [f"{name}.png" for name in names]
    for picture in pictures:
        assert f"src='{picture}'" in page
        with Image.open(folder / picture) as image:
            assert len(image.convert("RGB").getcolors(2**24)) > 20
