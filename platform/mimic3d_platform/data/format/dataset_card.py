"""The card of a data set: a README that people, and Hugging Face, read beside the data."""

from __future__ import annotations

import math

from mimic3d_platform.data.format.manifest import Manifest

# Tells Hugging Face which files to load.
_CONFIGURATION = (
    "---",
    "configs:",
    "- config_name: default",
    '  data_files: "part-*.parquet"',
    "---",
)


def dataset_card(manifest: Manifest) -> str:
    """Markdown: what the data set holds, how it was made, whose models it shows, its licences."""
    lines = [
        *_CONFIGURATION,
        "",
        f"# A mimic3d data set: {manifest.count} images of {manifest.identities} identities",
        "",
        f"- Images: {manifest.resolution}×{manifest.resolution}, {len(manifest.shards)} Parquet shards,",
        f"  columns {', '.join(manifest.columns)}",
        f"- Fingerprint: `{manifest.fingerprint}`",
    ]
    for name, (low, high) in sorted(manifest.cameras.items()):
        unit, scale = ("°", 180 / math.pi) if name in ("yaw", "pitch") else ("", 1.0)
        lines.append(f"- Camera {name}: {low * scale:.4g}{unit} to {high * scale:.4g}{unit}")
    steps = {key: value for key, value in manifest.provenance.items() if key != "models"}
    if steps:
        lines += ["", "## How it was made", ""]
        lines += [f"- {key}: {value}" for key, value in sorted(steps.items())]
    models = manifest.provenance.get("models", [])
    if models:
        changed = "Repainted and scaled" if manifest.provenance.get("colourings", 1) else "Scaled"
        lines += ["", "## The models", "", f"{changed}; the shapes are their authors'.", ""]
        lines += ["| model | author | licence | source |", "|---|---|---|---|"]
        for model in models:
            cells = [model[key].replace("|", "\\|") for key in ("name", "author", "licence", "source")]
            lines.append(f"| {' | '.join(cells)} |")
    if manifest.licences:
        lines += ["", "## Licences", ""] + [f"- {licence}" for licence in manifest.licences]
    return "\n".join(lines) + "\n"
