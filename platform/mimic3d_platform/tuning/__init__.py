"""Sweeps of hyperparameters on Ray Tune: `mimic3d sweep` makes trials of a sweep file, and a report."""
