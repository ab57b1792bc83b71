"""The format of a data set: Parquet shards, their manifest, camera labels and image files."""
