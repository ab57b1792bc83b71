"""The manifest's file: a Parquet file of no rows, in whose metadata the manifest and the card are.

A folder of Parquet files alone is read as a whole by pandas, pyarrow, polars, DuckDB, Ray Data and Hugging
Face's datasets; files of other kinds stop some of them. Sets of older versions have a `manifest.json` and a
`README.md` instead, which are read as well.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from mimic3d_platform import storage
from mimic3d_platform.data.format.dataset_card import dataset_card
from mimic3d_platform.data.format.manifest import (
    FORMER_CARD,
    FORMER_MANIFEST,
    MANIFEST,
    Manifest,
)
from mimic3d_platform.errors import UserError

_MANIFEST_KEY, _CARD_KEY = b"mimic3d.manifest", b"mimic3d.card"


def manifest_file(manifest: Manifest, schema: pa.Schema) -> bytes:
    """The content of the manifest's file.

    Args:
        schema: of the shards; the file has the same, so that programs read it as one more, empty shard.
    """
    texts = {_MANIFEST_KEY: manifest.to_json(), _CARD_KEY: dataset_card(manifest).encode()}
    sink = pa.BufferOutputStream()
    # Closed at once, it has no row group: one of no rows is an error to Hugging Face's reader.
    pq.ParquetWriter(sink, schema.with_metadata(texts)).close()
    return sink.getvalue().to_pybytes()


def find_manifest(uri: str) -> str | None:
    """The URI of the manifest's file of the data set at `uri`; None if there is none."""
    places = (storage.join(uri, name) for name in (MANIFEST, FORMER_MANIFEST))
    return next((place for place in places if storage.exists(place)), None)


def read_manifest(uri: str) -> Manifest | None:
    """The manifest of the data set at `uri`; None if there is none.

    Raises:
        UserError: it is damaged or of another version, or storage cannot be reached.
    """
    place = find_manifest(uri)
    return None if place is None else parse_manifest(storage.read_bytes(place), uri)


def parse_manifest(data: bytes, uri: str) -> Manifest:
    """The manifest of a file's content, of today's or of the former kind.

    Args:
        uri: the data set's folder, for error messages.
    Raises:
        UserError: as `Manifest.from_json`.
    """
    if not data.startswith(b"PAR1"):
        return Manifest.from_json(data, uri)
    return Manifest.from_json(_texts(data, uri).get(_MANIFEST_KEY, b"{}"), uri)


def read_card(uri: str) -> bytes:
    """The card of the data set at `uri`, Markdown.

    Raises:
        UserError: there is no data set, or storage cannot be reached.
    """
    place = find_manifest(uri)
    if place is None:
        raise UserError(f"there is no data set at {uri}: check the URI")
    if place == storage.join(uri, FORMER_MANIFEST):
        return storage.read_bytes(storage.join(uri, FORMER_CARD))
    return _texts(storage.read_bytes(place), uri).get(_CARD_KEY, b"")


def _texts(data: bytes, uri: str) -> dict[bytes, bytes]:
    try:
        return pq.read_schema(pa.BufferReader(data)).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"the manifest of {uri} is damaged ({MANIFEST}): write the data set again") from error
