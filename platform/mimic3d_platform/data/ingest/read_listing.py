"""Reading a source's listing, in whichever of the known forms it is."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import Protocol

from mimic3d_platform.data.ingest import colmap, eg3d, nerf, table
from mimic3d_platform.data.ingest.listing import Listing
from mimic3d_platform.data.ingest.source_files import Source, is_hidden, normal_name
from mimic3d_platform.errors import UserError


class ReadForm(Protocol):
    """Reads the listing at `place` within a source; `named` if the user named the file."""

    def __call__(
        self, source: Source, place: str, *, by_folder: bool | None, partial: bool, named: bool
    ) -> Listing: ...


@dataclass(frozen=True)
class Form:
    """A way in which programs store posed images.

    Attributes:
        listings: names of the listing below the folder that holds the set, the preferred one first.
        files: the files that make a source of this form, for error messages.
    """

    listings: tuple[str, ...]
    read: ReadForm
    files: str


FORMS = {
    "eg3d": Form(eg3d.LISTINGS, eg3d.read, "dataset.json (EG3D)"),
    "nerf": Form(nerf.LISTINGS, nerf.read, "transforms.json (NeRF)"),
    "colmap": Form(colmap.LISTINGS, colmap.read, "sparse/0/cameras.bin and images.bin (COLMAP)"),
    "table": Form(table.LISTINGS, table.read, "cameras.csv or cameras.json (a table)"),
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
        by_folder: as `listing.identities_of`; by the form's own rule when None.
        partial: leave out images without a camera and cameras without an image, instead of raising.
    Raises:
        UserError: the source has no cameras in any known form, or its listing cannot be used.
    """
    if form is not None and form not in FORMS:
        raise UserError(f"unknown form {form}: give one of {', '.join(FORMS)}")
    if cameras is not None:
        place = normal_name(cameras)
        if place not in source.entries:
            raise UserError(f"{source.uri} has no file {cameras}: name the cameras' file within the source")
        chosen = FORMS[form or _form_of(place)]
        return chosen.read(source, place, by_folder=by_folder, partial=partial, named=True)
    forms = [FORMS[form]] if form else list(FORMS.values())
    if (found := _at_top(source, forms) or _in_one_folder(source, forms)) is not None:
        chosen, place = found
        return chosen.read(source, place, by_folder=by_folder, partial=partial, named=False)
    files = FORMS[form].files if form else ", ".join(each.files for each in FORMS.values())
    models = [place for place in source.entries if posixpath.basename(place) in ("images.bin", "images.txt")]
    if models and form in (None, "colmap"):
        raise UserError(
            f"no cameras are found where {source.uri} usually has them, but a COLMAP model: read it with "
            f"--cameras {models[0]}"
        )
    raise UserError(f"no cameras are found in {source.uri}: every image needs one; add {files}")


def _is_complete(source: Source, place: str) -> bool:
    """Whether the files of a listing are there: COLMAP's images file needs its cameras file beside it."""
    folder, file = posixpath.split(place)
    beside = posixpath.join(folder, file.replace("images", "cameras"))
    return place in source.entries and (not file.startswith("images.") or beside in source.entries)


def _at_top(source: Source, forms: list[Form]) -> tuple[Form, str] | None:
    places = ((form, name) for form in forms for name in form.listings)
    return next((found for found in places if _is_complete(source, found[1])), None)


def _in_one_folder(source: Source, forms: list[Form]) -> tuple[Form, str] | None:
    """The listing of a set that lies in a folder of the source, as most zips are made.

    Raises:
        UserError: several folders hold sets.
    """
    found: dict[str, tuple[Form, str]] = {}
    for form in forms:
        for name in form.listings:
            if name.startswith("images."):
                continue  # A model without the folder `sparse` is looked for at the top alone.
            for place in source.entries:
                folder = place.removesuffix(f"/{name}")
                if folder != place and not is_hidden(place) and _is_complete(source, place):
                    found.setdefault(folder, (form, place))
    # A set's own folders may look like sets: `a/colmap` beside `a/transforms.json`.
    tops = [
        folder
        for folder in found
        if not any(folder.startswith(f"{other}/") for other in found if other != folder)
    ]
    if len(tops) > 1:
        listed = ", ".join(found[folder][1] for folder in sorted(tops)[:3])
        raise UserError(
            f"{source.uri} holds {len(tops)} sets ({listed}{', …' if len(tops) > 3 else ''}): give one of "
            "their folders, or name one file with --cameras"
        )
    return found[tops[0]] if tops else None


def _form_of(place: str) -> str:
    """The form of a listing that the user named: by how such files are usually named, else a table."""
    name = posixpath.basename(place)
    if name.startswith("transforms"):
        return "nerf"
    if name in ("images.bin", "images.txt"):
        return "colmap"
    return "eg3d" if name == eg3d.LISTING else "table"
