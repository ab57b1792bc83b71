"""Reading a source's listing, in whichever of the known forms it is."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mimic3d_platform.data.ingest import colmap, eg3d, nerf, table
from mimic3d_platform.data.ingest.listing import Listing
from mimic3d_platform.data.ingest.source_files import Source
from mimic3d_platform.errors import UserError


class ReadForm(Protocol):
    """Reads the listing at `place` within a source."""

    def __call__(self, source: Source, place: str, *, by_folder: bool | None, partial: bool) -> Listing: ...


@dataclass(frozen=True)
class Form:
    """A way in which programs store posed images.

    Attributes:
        find: the name of the listing within a source, or None if the source has none of this form.
        files: the files that make a source of this form, for error messages.
    """

    find: Callable[[Source], str | None]
    read: ReadForm
    files: str


FORMS = {
    "eg3d": Form(eg3d.find, eg3d.read, "dataset.json (EG3D)"),
    "nerf": Form(nerf.find, nerf.read, "transforms.json (NeRF)"),
    "colmap": Form(colmap.find, colmap.read, "sparse/0/cameras.bin and images.bin (COLMAP)"),
    "table": Form(table.find, table.read, "cameras.csv or cameras.json (a table)"),
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
        form: a key of `FORMS`; recognised by the source's files when None.
        cameras: the listing's name within the source, where it is not the usual one.
        by_folder: as `listing.identity_of`; by the form's own rule when None.
        partial: leave out images without a camera and cameras without an image, instead of raising.
    Raises:
        UserError: the source has no cameras in any known form, or its listing cannot be used.
    """
    if form is not None and form not in FORMS:
        raise UserError(f"unknown form {form}: give one of {', '.join(FORMS)}")
    if cameras is not None:
        place = posixpath.normpath(cameras)
        if place not in source.entries:
            raise UserError(f"{source.uri} has no file {cameras}: name the cameras' file within the source")
        return FORMS[form or _form_of(place)].read(source, place, by_folder=by_folder, partial=partial)
    for candidate in [FORMS[form]] if form else FORMS.values():
        if (found := candidate.find(source)) is not None:
            return candidate.read(source, found, by_folder=by_folder, partial=partial)
    files = FORMS[form].files if form else ", ".join(each.files for each in FORMS.values())
    raise UserError(f"no cameras are found in {source.uri}: every image needs one; add {files}")


def _form_of(place: str) -> str:
    """The form of a listing that the user named: by how such files are usually named, else a table."""
    name = posixpath.basename(place)
    if name.startswith("transforms"):
        return "nerf"
    if name in ("images.bin", "images.txt"):
        return "colmap"
    return "eg3d" if name == eg3d.LISTING else "table"
