"""Meshes to data sets, by ray casting."""
