"""Metrics of a generator, and the feature networks that metrics and the perceptual loss are made of."""
