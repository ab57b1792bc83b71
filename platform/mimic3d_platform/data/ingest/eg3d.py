"""The form of EG3D's data sets: images and a `dataset.json` of `{"labels": [[name, 25 numbers], …]}`.

FFHQ and AFHQ are zips with folders of a thousand images, `00000/img00000000.png`; ShapeNet has a folder for
each object.
"""

from __future__ import annotations

import json
import logging
import posixpath
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from mimic3d_platform.data.ingest.listing import (
    Listing,
    identities_of,
    match_images,
    refuse_unlabelled,
    to_label,
)
from mimic3d_platform.data.ingest.nerf_lens import refuse_meanings
from mimic3d_platform.data.ingest.source_files import Source, is_image
from mimic3d_platform.errors import UserError

log = logging.getLogger(__name__)

LISTING = "dataset.json"
LISTINGS = (LISTING,)

# The conventions of EG3D's labels: keys that name one of them change nothing.
_USUAL = ("opencv", "eg3d", "c2w", "cam2world", "cameratoworld", "normalized", "normalised", "pinhole")

_START = re.compile(r'\s*\{\s*"labels"\s*:\s*\[\s*')
_COMMA = re.compile(r"\s*([,\]])\s*")


def read(source: Source, place: str, *, by_folder: bool | None, partial: bool, named: bool) -> Listing:
    """The listing of a source whose `dataset.json` is at `place`.

    Raises:
        UserError: it is damaged, has no labels, or labels and images do not match and `partial` is not set.
    """
    folder = posixpath.dirname(place)
    names, labels = [], []
    for item in _items(source, place):
        pair = isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)
        if not pair:
            raise UserError(f"{place} of {source.uri} has a label that is not [name, numbers]: correct it")
        names.append(item[0])
        labels.append(to_label(item[1], f"{item[0]} in {place} of {source.uri}"))
    if not names:
        raise UserError(f"{place} of {source.uri} has no labels, and every image needs its camera: add them")
    matched = match_images(source, folder, names, place, partial)
    labelled = set(matched.entries)
    below = f"{folder}/" if folder else ""
    unlabelled = [
        name for name in source.entries if is_image(name) and name.startswith(below) and name not in labelled
    ]
    if not partial:
        refuse_unlabelled(source, place, unlabelled)
    return Listing(
        form="eg3d",
        entries=matched.entries,
        names=matched.names,
        labels=np.stack([labels[index] for index in matched.kept]),
        sizes=np.zeros((len(matched.names), 2), dtype=np.int64),
        identities=identities_of(matched.names, by_folder),
        left_out=matched.missing + unlabelled,
    )


def _check_others(content: object, where: str) -> None:
    """Refuses keys beside the labels that give their numbers another meaning; others are logged."""
    if isinstance(content, dict):
        others = {key: value for key, value in content.items() if key != "labels"}
        refuse_meanings(others, where, _USUAL)
        if others:
            log.warning("%s: the keys %s are not read", where, ", ".join(sorted(others)))


def _items(source: Source, place: str) -> Iterator[Any]:
    """The labels one by one: all labels of a million images, as Python objects, would take gigabytes."""
    broken = f"{place} of {source.uri} is not JSON"
    try:
        text = source.read(place).decode("utf-8-sig")
        start = _START.match(text)
        if start is None:
            content = json.loads(text)
            _check_others(content, f"{place} of {source.uri}")
            labels = content.get("labels") if isinstance(content, dict) else None
            yield from labels if isinstance(labels, list) else []
            return
        decoder, position = json.JSONDecoder(), start.end()
        while text[position : position + 1] not in ("]", ""):
            item, position = decoder.raw_decode(text, position)
            yield item
            comma = _COMMA.match(text, position)
            if comma is None:
                raise UserError(f"{broken} (it ends or is broken at character {position}): correct it")
            if comma[1] == "]":
                position = comma.start(1)
                break
            position = comma.end()
        if text[position : position + 1] != "]":
            raise UserError(f"{broken} (it ends in the middle): copy it again")
        # The rest of the file, with the labels left out.
        _check_others(json.loads('{"labels": [' + text[position:]), f"{place} of {source.uri}")
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{broken} ({error}): correct it") from error
