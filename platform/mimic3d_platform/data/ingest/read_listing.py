"""What data sets are made from: archives and folders of images whose cameras are told in many ways."""

from __future__ import annotations

import posixpath

from mimic3d_platform.data.ingest import colmap, eg3d, nerf, table
from mimic3d_platform.data.ingest.listing import Listing
from mimic3d_platform.data.ingest.source_files import Source
from mimic3d_platform.errors import UserError

FORMS = {"eg3d": eg3d, "nerf": nerf, "colmap": colmap, "table": table}

_WANTED = {
    "eg3d": "dataset.json (EG3D)",
    "nerf": "transforms.json (NeRF)",
    "colmap": "sparse/0/cameras.bin and images.bin (COLMAP)",
    "table": "cameras.csv or cameras.json (a table)",
}


def read_listing(
    source: Source,
    *,
    form: str | None = None,
    cameras: str | None = None,
    by_folder: bool | None = None,
    partial: bool = False,
) -> Listing:
    """The images and cameras of a source.

    Args:
        form: a key of `FORMS`; found by what the source holds when None.
        cameras: the listing's name within the source, where it is not the usual one.
        by_folder: images of one folder show one object; by the form's own rule when None.
        partial: leave out images without a camera and cameras without an image, instead of refusing them.
    Raises:
        UserError: the source has no cameras of any form, or they cannot be used.
    """
    if form is not None and form not in FORMS:
        raise UserError(f"unknown form {form}: give one of {', '.join(FORMS)}")
    if cameras is not None:
        place = posixpath.normpath(cameras)
        if place not in source.entries:
            raise UserError(f"{source.uri} has no file {cameras}: name the cameras' file within the source")
        form = form or _form_of(place)
        return FORMS[form].read(source, place, by_folder=by_folder, partial=partial)
    for name in [form] if form else FORMS:
        if (place := FORMS[name].find(source)) is not None:
            return FORMS[name].read(source, place, by_folder=by_folder, partial=partial)
    wanted = _WANTED[form] if form else ", ".join(_WANTED.values())
    raise UserError(f"no cameras are found in {source.uri}: every image needs one; add {wanted}")


def _form_of(place: str) -> str:
    """The form of a listing whose name was given: by how such files are named, else a table."""
    name = posixpath.basename(place)
    if name.startswith("transforms"):
        return "nerf"
    if name in ("images.bin", "images.txt"):
        return "colmap"
    return "eg3d" if name == eg3d.LISTING else "table"
