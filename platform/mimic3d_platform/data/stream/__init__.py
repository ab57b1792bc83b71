"""The training stream: shards to batches."""
