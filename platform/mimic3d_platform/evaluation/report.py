"""Writes an evaluation's report: one HTML file that needs no network, of one subject or of several."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata, resources

from mimic3d.evaluation.metric import Estimate
from mimic3d_platform.evaluation.measured import Curves, Measured, estimates_by_metric
from mimic3d_platform.evaluation.published import PUBLISHED, published_for
from mimic3d_platform.evaluation.report_pictures import Picture

FILE = "report.html"
_TEMPLATE = "report.html.jinja"
# Metrics of a training that are drawn over the images seen, by how their names begin.
CURVES = ("fid_", "fd_", "warp_detail/", "warp_psnr/")
_WIDTH, _HEIGHT, _MARGIN = 190, 14, 6


@dataclass(frozen=True)
class ReportSubject:
    """A subject of a report, its pictures and, of a generator whose training is known, its curves."""

    measured: Measured
    pictures: Sequence[Picture]
    curves: Curves
    link: str | None = None
    """Of its run in MLflow."""


@dataclass(frozen=True)
class _Cell:
    """A metric of a subject, as it is shown."""

    value: str
    interval: str
    bar: tuple[float, float, float] | None
    """Low, value and high on the row's axis, in pixels."""
    samples: str
    note: str
    best: bool = False


@dataclass(frozen=True)
class _Row:
    name: str
    cells: Sequence[_Cell]


def report_page(subjects: Sequence[ReportSubject]) -> str:
    """The report as HTML, with all pictures in it."""
    import jinja2

    template = resources.files("mimic3d_platform.evaluation").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_uri"] = _data_uri
    first = subjects[0].measured
    published, why = published_for(first)
    return environment.from_string(template).render(
        subjects=subjects,
        rows=_rows([subject.measured for subject in subjects]),
        width=_WIDTH + 2 * _MARGIN,
        height=_HEIGHT,
        curves=[
            (f"Training of {subject.measured.subject}", _training_plot(subject.curves))
            for subject in subjects
            if subject.curves
        ]
        + [
            (f"Truncation of {subject.measured.subject}", _truncation_plot(subject.measured.truncation))
            for subject in subjects
            if subject.measured.truncation
        ],
        published=published,
        published_head=PUBLISHED[0],
        why_not_published=why,
        version=metadata.version("mimic3d"),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _rows(measured: Sequence[Measured]) -> list[_Row]:
    rows = []
    for name, arrow, found in estimates_by_metric(measured):
        best = _best(found, arrow)
        cells = [
            _cell(estimate, found, each.left_out.get(name, ""), best)
            for estimate, each in zip(found, measured, strict=True)
        ]
        rows.append(_Row(f"{name} {arrow}", cells))
    return rows


def _best(found: Sequence[Estimate | None], arrow: str) -> Estimate | None:
    """The best of several, if its interval is apart from those of all others; None otherwise."""
    known = [estimate for estimate in found if estimate is not None]
    if len(known) < 2:
        return None
    best, *others = sorted(known, key=lambda estimate: estimate.value, reverse=arrow == "↑")
    if arrow == "↑":
        apart = best.low > max(other.high for other in others)
    else:
        apart = best.high < min(other.low for other in others)
    return best if apart else None


def _cell(
    estimate: Estimate | None, row: Sequence[Estimate | None], why: str, best: Estimate | None
) -> _Cell:
    if estimate is None:
        return _Cell("–", "", None, "", why)
    known = [each for each in row if each is not None]
    low, high = min(each.low for each in known), max(each.high for each in known)
    scale = _WIDTH / (high - low) if high > low else 0.0
    bar = tuple(_MARGIN + (value - low) * scale for value in (estimate.low, estimate.value, estimate.high))
    interval = f"{estimate.low:.4g} … {estimate.high:.4g}"
    return _Cell(
        f"{estimate.value:.4g}",
        interval,
        (bar[0], bar[1], bar[2]) if len(known) > 1 else None,
        str(estimate.samples),
        estimate.note,
        estimate is best,
    )


def _training_plot(curves: Curves) -> Picture:
    curves = {name: [(nimg / 1000, value) for nimg, value in points] for name, points in curves.items()}
    return _plot(curves, "Over the images seen in training", "images seen, thousands")


def _truncation_plot(curves: Curves) -> Picture:
    return _plot(curves, "Over truncation: what is lost in variety, and won in quality", "truncation")


def _plot(curves: Curves, caption: str, axis: str) -> Picture:
    """All curves, a panel for each metric, a line for each branch."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(name.partition("/")[0] for name in curves))
    figure = Figure(figsize=(4.2 * len(kinds), 3), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False).flat, kinds, strict=True):
        for name, points in curves.items():
            metric, _, branch = name.partition("/")
            if metric == kind:
                axes.plot([x for x, _ in points], [y for _, y in points], marker=".", label=branch)
        axes.set_title(kind, fontsize=10)
        axes.set_xlabel(axis, fontsize=9)
        axes.legend(fontsize=9)
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return caption, "image/svg+xml", buffer.getvalue()


def _data_uri(picture: Picture) -> str:
    _, kind, content = picture
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
