"""All metrics of `mimic3d evaluate`, in the order of its table and of docs/evaluation.md.

`python -m mimic3d.evaluation.registry` prints the docs' table.
"""

from __future__ import annotations

from mimic3d.evaluation.faces import FaceDepth, FaceIdentity, FacePose, FaceShare
from mimic3d.evaluation.fidelity import (
    Authenticity,
    ClipKernelDistance,
    Coverage,
    Density,
    FrechetDistance,
    KernelDistance,
    OtherCameraFrechetDistance,
    Precision,
    Recall,
)
from mimic3d.evaluation.fitted_field import (
    FieldDetail,
    FieldHeldOutPsnr,
    FieldPsnr,
    FieldsAgreement,
    FieldsDepth,
    FieldSsim,
)
from mimic3d.evaluation.geometry import FieldDepth, FieldNormals, Floaters, SilhouetteOverlap
from mimic3d.evaluation.metric import ARROWS, FidelityMetric, Metric, ViewMetric
from mimic3d.evaluation.shapes import ShapeChamfer, ShapeFScore, ShapeMetric
from mimic3d.evaluation.views import (
    ImitationDetail,
    ImitationPsnr,
    StripCoherence,
    WarpDetail,
    WarpHed,
    WarpLpips,
    WarpPsnr,
    WarpShare,
    WarpSsim,
)

FIDELITY: tuple[FidelityMetric, ...] = (
    FrechetDistance(),
    OtherCameraFrechetDistance(),
    KernelDistance(),
    ClipKernelDistance(),
    Precision(),
    Recall(),
    Density(),
    Coverage(),
    Authenticity(),
)
VIEWS: tuple[ViewMetric, ...] = (
    WarpDetail(),
    WarpPsnr(),
    WarpSsim(),
    WarpLpips(),
    WarpHed(),
    WarpShare(),
    StripCoherence(),
    ImitationDetail(),
    ImitationPsnr(),
    FieldDetail(),
    FieldsAgreement(),
    FieldsDepth(),
    FieldHeldOutPsnr(),
    FieldPsnr(),
    FieldSsim(),
    SilhouetteOverlap(),
    Floaters(),
    FieldDepth(),
    FieldNormals(),
    FaceShare(),
    FaceIdentity(),
    FacePose(),
    FaceDepth(),
)
# Measured of `views.two_views` while a run trains.
TRAINING_VIEWS: tuple[ViewMetric, ...] = (WarpDetail(), WarpPsnr(), WarpShare())
# Those whose difference between the branches is measured too, under the branch name `DIFFERENCE`.
COMPARED = ("warp_detail", "field_detail", "fields_detail", "field_heldout_psnr", "field_psnr")
DIFFERENCE = "3d-2d"
# Measured where the meshes are given that a data set was rendered from.
SHAPES: tuple[ShapeMetric, ...] = (ShapeChamfer(), ShapeFScore())
METRICS: tuple[Metric, ...] = (*FIDELITY, *VIEWS, *SHAPES)


def lower_is_better(metric: str) -> bool:
    """True if lower values of the metric (`fd_mobilenetv2/3d`) are better; False for unknown metrics."""
    name = metric.partition("/")[0]
    for known in METRICS:
        kinds = (known.kind, known.protocol_kind) if isinstance(known, FidelityMetric) else ()
        if name == known.name("") or name.partition("_")[0] in kinds:
            return known.direction == "down"
    return False


def table() -> str:
    """The docs' table of all metrics, in Markdown."""
    lines = ["| metric | needs | range | what it measures | what fools it |", "|---|---|---|---|---|"]
    for metric in METRICS:
        if isinstance(metric, FidelityMetric):
            protocol = f"`{metric.protocol_kind}`, " if metric.protocol_kind else ""
            shown = f"{protocol}`{metric.kind}_{metric.extractor or 'EXTRACTOR'}`"
        else:
            shown = f"`{metric.name('')}`"
        cells = (
            f"{shown} {ARROWS[metric.direction]}",
            ", ".join(metric.needs),
            metric.range,
            metric.about,
            metric.fooled_by,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
