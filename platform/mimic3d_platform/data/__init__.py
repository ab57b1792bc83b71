"""Data sets as sharded Parquet: writing, reading, streaming to training, and inspecting them.

    format/         the files of a data set and its manifest, camera labels, image files
    stream/         the training stream: order, cache on local disk, loader processes
    render/         data sets rendered from meshes
    ingest/         data sets made of posed images that other programs wrote
    inspect/        numbers and pictures of a data set, duplicates, verification
    export_eg3d.py  a data set as the zip that EG3D's tools read

Every folder imports `format/` and none of the others; `export_eg3d` also reads names from `ingest/`. Of the
rest of the platform, this package imports `cluster`, `storage` and the leaves.
"""
