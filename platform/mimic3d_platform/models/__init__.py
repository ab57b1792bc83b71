"""A generator by its URI: checkpoints, the registry, pictures of it."""
