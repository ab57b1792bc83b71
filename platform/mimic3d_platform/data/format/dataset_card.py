"""The card of a data set: a README that people read beside the data."""

from __future__ import annotations

import math
from collections.abc import Iterable

from mimic3d_platform.data.format.manifest import Manifest
from mimic3d_platform.data.render.meshes import Mesh


def model_records(meshes: Iterable[Mesh]) -> list[dict[str, str]]:
    """Who made what under which terms, for a manifest's provenance."""
    return [
        {
            "identifier": mesh.identifier,
            "name": mesh.name,
            "author": mesh.author,
            "licence": mesh.licence,
            "source": mesh.source,
        }
        for mesh in meshes
    ]


def card(manifest: Manifest) -> str:
    """Markdown: what the set holds, how it was made, and whose models are in it."""
    lines = [
        # What Hugging Face reads before a folder of Parquet.
        "---",
        "configs:",
        "- config_name: default",
        '  data_files: "part-*.parquet"',
        "---",
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
    made = {key: value for key, value in manifest.provenance.items() if key != "models"}
    if made:
        lines += ["", "## How it was made", ""] + [f"- {key}: {value}" for key, value in sorted(made.items())]
    models = manifest.provenance.get("models", [])
    if models:
        lines += ["", "## The models", "", "Recoloured and scaled; the shapes are their authors'.", ""]
        lines += ["| model | author | licence | source |", "|---|---|---|---|"]
        for model in models:
            cells = [model[key].replace("|", "\\|") for key in ("name", "author", "licence", "source")]
            lines.append(f"| {' | '.join(cells)} |")
    if manifest.licences:
        lines += ["", "## Licences", ""] + [f"- {licence}" for licence in manifest.licences]
    return "\n".join(lines) + "\n"
