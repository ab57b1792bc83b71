"""The report is one HTML file with every number, its interval and every picture, and needs no network."""

import re
from dataclasses import replace
from html.parser import HTMLParser

from mimic3d.evaluation.metric import Estimate
from mimic3d_platform.evaluation.measured import Measured, PartCost
from mimic3d_platform.evaluation.published import published_for
from mimic3d_platform.evaluation.report import ReportSubject, report_page

FACTS: dict[str, str | int] = {
    "data": "s3://b/cars",
    "resolution": 64,
    "images": 256,
    "extractor": "mobilenetv2",
}


def measured(name: str, value: float, width: float = 1.0, **facts: str | int) -> Measured:
    estimates = {
        "fd_x/3d": Estimate(
            value, value - width, value + width, 256, "256 images for 1280 dimensions: biased"
        ),
        "warp_detail/3d": Estimate(0.8, 0.7, 0.9, 50),
    }
    directions = {"fd_x/3d": "↓", "warp_detail/3d": "↑", "field_detail/3d": "↑"}
    left_out = {"field_detail/3d": "no field is fitted <here>"}
    costs = [PartCost("generated", 256, 12.8, 900.0)]
    return Measured(name, estimates, directions, left_out, FACTS | facts, costs)


def subject(found: Measured) -> ReportSubject:
    picture = ("Samples, 3d", "image/png", b"\x89PNG")
    return ReportSubject(found, [picture], {"fd_x/3d": [(0, 900.0), (800, 400.0)]}, "http://mlflow/run")


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.sources.append(dict(attributes)["src"] or "")
        elif tag not in ("meta", "br", "line", "circle", "html"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("html", "line", "circle"):
            assert self.open.pop() == tag


def test_a_report_has_numbers_intervals_notes_pictures_curves_and_costs() -> None:
    page = report_page([subject(measured("models:/cars/3", 376.3))])
    tags = Tags(page)
    assert tags.open == [] and len(tags.sources) == 2
    assert all(source.startswith("data:image/") for source in tags.sources)
    for words in (
        "fd_x/3d ↓",
        "376.3",
        "375.3 … 377.3, of 256",
        "256 images for 1280",
        "no field is fitted &lt;here&gt;",
    ):
        assert words in page, words
    assert "generated" in page and ">50<" in page.replace(
        "\n", ""
    )  # 12.8 s of 256 images: 50 s per thousand.
    assert not re.search(r"(?:src|href)=\"(?!data:|http://mlflow/run)", page)


def test_a_curve_over_truncation_is_drawn_where_it_was_measured() -> None:
    found = replace(measured("m", 300.0), truncation={"fd_x/3d": [(0.5, 400.0), (1.0, 300.0)]})
    page = report_page([subject(found), subject(measured("n", 300.0))])
    assert "Truncation of m" in page and "Truncation of n" not in page
    assert len(Tags(page).sources) == 2 + 3


def test_a_comparison_marks_the_best_only_beyond_the_intervals() -> None:
    page = report_page([subject(measured("a", 300.0)), subject(measured("b", 320.0))])
    assert page.count('<span class="best">') == 1 and '<span class="best">300<' in page
    page = report_page([subject(measured("a", 300.0, 15)), subject(measured("b", 320.0, 15))])
    assert '<span class="best">' not in page and page.count("<circle") == 4
    uncertain = [subject(measured(*each)) for each in (("a", 300.0), ("b", 320.0), ("c", 330.0, 60))]
    assert '<span class="best">' not in report_page(uncertain)


def test_published_numbers_stand_beside_the_same_protocol_and_data_only() -> None:
    same = {"data": "s3://b/ffhq-512", "resolution": 512, "images": 50_000, "extractor": "inception2015"}
    assert published_for(measured("m", 5.0, **same))[0]
    for change, words in (
        ({"extractor": "mobilenetv2"}, "not of the Inception of 2015"),
        ({"images": 2000}, "2000 images were measured, not 50000"),
        ({"data": "s3://b/cars"}, "cars is not FFHQ or AFHQ cats"),
        ({"resolution": 64}, "64 pixels a side"),
    ):
        rows, why = published_for(measured("m", 5.0, **(same | change)))
        assert not rows and words in why
