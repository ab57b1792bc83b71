"""Numbers and pictures of a data set: `mimic3d data inspect`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mimic3d_platform import storage
from mimic3d_platform.data.format.dataset import open_dataset, read_cameras
from mimic3d_platform.data.format.scene import scene_of
from mimic3d_platform.data.inspect.camera_plot import camera_plot
from mimic3d_platform.data.inspect.contact_sheet import contact_sheet
from mimic3d_platform.data.inspect.duplicates import find_duplicates


def inspect_dataset(
    uri: str,
    out_png: str | Path | None = None,
    *,
    cameras_png: str | Path | None = None,
    duplicates: bool = False,
    here: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The numbers of the data set at `uri`, as `mimic3d data inspect` prints them; pictures on request.

    Args:
        out_png: path or URI of a contact sheet to write.
        cameras_png: path or URI of a plot of the cameras to write.
        duplicates: read every image and report duplicates.
        here: look for duplicates in this process instead of on Ray.
        on_progress: called with the images that were read for duplicates, and all images.
    Returns:
        counts, resolution, columns, bytes, camera ranges (angles in degrees), fingerprint and licences; as
        `config`, the keys that suit the set's cameras (`--set rendering=auto` sets them).
    Raises:
        UserError: as `open_dataset`; a shard is broken; a picture cannot be written.
    """
    manifest = open_dataset(uri)
    if out_png is not None:
        storage.write_bytes(out_png, contact_sheet(uri, manifest))
    if cameras_png is not None:
        storage.write_bytes(cameras_png, camera_plot(read_cameras(uri), uri))
    scene = scene_of(manifest, read_cameras(uri)) if "camera" in manifest.columns else None
    angles = ("yaw", "pitch")
    numbers = {
        "uri": uri,
        "images": manifest.count,
        "identities": manifest.identities,
        "resolution": manifest.resolution,
        "columns": manifest.columns,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "cameras": {
            name: [math.degrees(value) if name in angles else value for value in limits]
            for name, limits in manifest.cameras.items()
        },
        "config": scene.overrides() if scene is not None else {},
        "fingerprint": manifest.fingerprint,
        "licences": manifest.licences,
    }
    if duplicates:
        found = find_duplicates(uri, manifest, here=here, on_progress=on_progress)
        numbers["duplicates"] = {"exact": vars(found.exact), "near": vars(found.near)}
    return numbers
