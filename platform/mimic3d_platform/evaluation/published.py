"""Published FIDs, and whether an evaluation may be set beside them."""

from __future__ import annotations

from mimic3d.evaluation.metric import PROTOCOL_EXTRACTOR
from mimic3d_platform.evaluation.measured import Measured

# FID of 50,000 images, of the papers themselves: Mimic3D's tables, WYSIWYG, GGHead, CGS-GAN.
PUBLISHED: tuple[tuple[str, ...], ...] = (
    ("system", "FFHQ 256²", "FFHQ 512²", "cats 256²", "cats 512²", "renders in 3D"),
    ("EG3D", "4.80", "4.70", "3.41", "2.72", "no"),
    ("GRAM / GRAM-HD", "13.8 / 10.4", "– / 12.2", "13.4", "7.67", "yes"),
    ("GMPI", "11.4", "8.29", "–", "7.67", "yes"),
    ("EpiGRAF", "9.71", "9.92", "6.93", "–", "yes"),
    ("Mimic3D, 3D branch", "5.14", "5.37", "4.14", "4.29", "yes"),
    ("WYSIWYG", "–", "4.97", "–", "4.23", "yes"),
    ("GGHead / CGS-GAN", "–", "4.34 / 4.94", "–", "–", "yes"),
)
PROTOCOL_IMAGES = 50_000
# The words of data sets that the numbers are of, in the names of one's own copies of them.
_SETS = ("ffhq", "afhq", "cat")
_RESOLUTIONS = (256, 512)


def published_for(measured: Measured) -> tuple[tuple[tuple[str, ...], ...], str]:
    """The rows of `PUBLISHED` that an evaluation may be set beside, or none and why not."""
    facts = measured.facts
    reasons = []
    if facts.get("extractor") != PROTOCOL_EXTRACTOR:
        reasons.append(f"the features are of {facts.get('extractor')}, not of the Inception of 2015")
    if int(facts.get("images", 0)) < PROTOCOL_IMAGES:
        reasons.append(f"{facts.get('images')} images were measured, not {PROTOCOL_IMAGES}")
    name = str(facts.get("data", "")).rstrip("/").rpartition("/")[2].lower()
    if not any(word in name for word in _SETS):
        reasons.append(f"the data set {name or '(unknown)'} is not FFHQ or AFHQ cats")
    if int(facts.get("resolution", 0)) not in _RESOLUTIONS:
        reasons.append(f"the images are {facts.get('resolution')} pixels a side, not 256 or 512")
    return (PUBLISHED[1:], "") if not reasons else ((), "; ".join(reasons))
