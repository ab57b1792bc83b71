"""The data set's format: Parquet shards and their manifest."""
