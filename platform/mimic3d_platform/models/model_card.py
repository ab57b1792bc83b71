"""The card of a registered generator, in Markdown: a README in its files, and its description in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mimic3d.config import Config
from mimic3d_platform.models.lineage import Lineage
from mimic3d_platform.models.version_files import DATA_CARD, MODEL_CARD

LOW, HIGH = "_low", "_high"
# MLflow's limit for the description of a version is 5000; the gate's decisions are added to it.
MAX_DESCRIPTION = 5000
_FIRST_LINE = "<!-- Written by mimic3d when this generator was registered. -->"
_NOTES = "## Notes of the folder"


def has_interval(name: str, metrics: Mapping[str, float]) -> bool:
    """Whether a metric was logged with its interval, as `NAME_low` and `NAME_high`."""
    return f"{name}{LOW}" in metrics and f"{name}{HIGH}" in metrics


def metric_rows(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Names and values of metrics, each with its interval where there is one."""
    ends = {f"{name}{end}" for name in metrics if has_interval(name, metrics) for end in (LOW, HIGH)}
    return [(name, shown(metrics, name)) for name in sorted(metrics) if name not in ends]


def shown(metrics: Mapping[str, float], name: str) -> str:
    """A metric's value and, where it is known, its interval: `4.61 (4.5 to 4.75)`."""
    value = f"{metrics[name]:.4g}"
    if not has_interval(name, metrics):
        return value
    return f"{value} ({metrics[f'{name}{LOW}']:.4g} to {metrics[f'{name}{HIGH}']:.4g})"


def description(
    name: str, config: Config, branches: Sequence[str], metrics: Mapping[str, float], lineage: Lineage
) -> str:
    """The description of a version: what it draws, its data, licences, metrics and origin."""
    return "\n".join([*_summary(config, branches), *_metrics(metrics), *_origin(lineage), *_use(name)])


def write_model_card(
    folder: Path,
    name: str,
    config: Config,
    branches: Sequence[str],
    metrics: Mapping[str, float],
    lineage: Lineage,
    previews: Sequence[str],
) -> None:
    """Writes the model card into a generator's folder; a README that someone wrote there is its last part."""
    file = folder / MODEL_CARD
    notes = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    if notes.startswith(_FIRST_LINE):
        notes = notes.partition(f"\n{_NOTES}\n")[2]
    lines = [_FIRST_LINE, "", f"# {name}", "", *_summary(config, branches), *_metrics(metrics)]
    lines += _origin(lineage)
    if (folder / DATA_CARD).is_file():
        lines += ["", f"The data set's own card is [{DATA_CARD}]({DATA_CARD})."]
    if previews:
        lines += ["", "## Previews", ""]
        lines += [f"![{path}]({path})" if path.endswith(".png") else f"[{path}]({path})" for path in previews]
    lines += _use(name)
    if notes.strip():
        lines += ["", _NOTES, "", notes.strip()]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _summary(config: Config, branches: Sequence[str]) -> list[str]:
    model, camera = config.model, config.camera
    return [
        f"A 3D-aware generator ({model.architecture}, recipe {config.recipe}) of {model.image_resolution}² "
        f"images; branches: {', '.join(branches)}.",
        "",
        f"- Cameras: radius {camera.radius:g}, focal {camera.focal:g} image widths, "
        f"yaw within ±{camera.yaw_range:.3g} rad of the front",
        f"- Volume: near {config.rendering.near:g}, far {config.rendering.far:g}, "
        f"box {config.rendering.box_warp:g} world units",
    ]


def _metrics(metrics: Mapping[str, float]) -> list[str]:
    if not metrics:
        return ["", "No metrics were known at the registration; `mimic3d evaluate` measures them."]
    rows = [f"| `{name}` | {value} |" for name, value in metric_rows(metrics)]
    return ["", "| metric at the registration | value |", "|---|---|", *rows]


def _origin(lineage: Lineage) -> list[str]:
    data = lineage.get("data")
    data = data if isinstance(data, dict) else {}
    lines = ["", "## Data and licences", ""]
    if data.get("fingerprint"):
        lines += [f"- Data set `{data.get('uri')}`, fingerprint `{data['fingerprint']}`"]
    if data.get("images"):
        lines += [f"- {data['images']} images of {data.get('identities')} identities"]
    licences = data.get("licences")
    if isinstance(licences, list) and licences:
        lines += [f"- Licences of the data: {', '.join(map(str, licences))}"]
    else:
        lines += ["- Licences of the data: not known"]
    lines += ["", "## Lineage", ""]
    for key in ("run", "run_id", "stage1_checkpoint", "start", "code_version", "code_commit"):
        if lineage.get(key):
            lines.append(f"- {key.replace('_', ' ')}: `{lineage[key]}`")
    imported = lineage.get("imported_from")
    if isinstance(imported, dict):
        lines.append(f"- imported from: `{imported.get('file')}`, SHA-256 `{imported.get('sha256')}`")
    previous = lineage.get("previous")
    if isinstance(previous, dict):
        lines.append(f"- registered before from run `{previous.get('run_id')}` of {previous.get('mlflow')}")
    return lines


def _use(name: str) -> list[str]:
    return [
        "",
        "## Use",
        "",
        "Weights are safetensors. `mimic3d pull` executes nothing of the model; "
        "`mlflow.pyfunc.load_model` runs the Python code in `code/`.",
        "",
        "```sh",
        f"mimic3d pull models:/{name}/VERSION FOLDER",
        "mimic3d render FOLDER grid.png",
        "```",
    ]
