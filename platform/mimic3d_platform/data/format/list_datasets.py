"""Lists the data sets below a folder, by their manifests."""

from __future__ import annotations

from dataclasses import dataclass

from mimic3d_platform import storage
from mimic3d_platform.data.format.manifest import FORMAT, FORMER_MANIFEST, MANIFEST, Manifest
from mimic3d_platform.data.format.manifest_file import parse_manifest
from mimic3d_platform.data.format.parquet_schema import is_shard_name
from mimic3d_platform.errors import UserError


@dataclass(frozen=True)
class ListedDataset:
    """A data set of a listing.

    Attributes:
        manifest: None where the set is not usable.
        problem: why it is not; else empty.
    """

    uri: str
    manifest: Manifest | None
    problem: str = ""


def list_datasets(uri: str) -> list[ListedDataset]:
    """The data sets at and below `uri`, by their URIs; other programs' files of these names are left out.

    Raises:
        UserError: storage cannot be reached.
    """
    files = storage.file_sizes(uri)
    manifests: dict[str, str] = {}
    for name in (FORMER_MANIFEST, MANIFEST):
        manifests |= {place.rpartition("/")[0]: place for place in files if place.endswith(f"/{name}")}
    found = []
    for folder, place in sorted(manifests.items()):
        content = storage.read_bytes(place)
        if f'"{FORMAT}"'.encode() not in content:
            continue
        try:
            found.append(ListedDataset(folder, parse_manifest(content, folder)))
        except UserError as error:
            found.append(ListedDataset(folder, None, str(error)))
    # The folders of sets that were being written have shards, and get their manifest last.
    shards = {place.rpartition("/")[0] for place in files if is_shard_name(place.rpartition("/")[2])}
    for folder in sorted(shards - {each.uri for each in found}):
        found.append(ListedDataset(folder, None, f"half-written: it has no {MANIFEST} yet"))
    return sorted(found, key=lambda each: each.uri)
