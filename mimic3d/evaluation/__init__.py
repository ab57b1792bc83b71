"""Metrics of a generator: fidelity of its images and multi-view consistency."""
