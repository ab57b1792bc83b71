"""Pictures, videos and meshes out of a generator."""
