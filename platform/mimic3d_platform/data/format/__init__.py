"""The format of a data set: Parquet shards, their manifest, camera labels, rotations and image files."""
