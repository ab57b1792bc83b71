"""Metrics of a generator, and the feature networks that they and the losses stand on."""
