"""Data sets as sharded Parquet: writing, reading, looking."""
