"""Data sets rendered from meshes by ray casting."""
