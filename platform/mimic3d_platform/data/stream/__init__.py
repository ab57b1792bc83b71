"""The training stream: shards in storage, to files in the local cache, to batches in shared memory."""
