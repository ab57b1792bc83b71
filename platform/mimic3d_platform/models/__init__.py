"""A generator by its URI: training checkpoints in storage, the model registry, pictures and meshes."""
