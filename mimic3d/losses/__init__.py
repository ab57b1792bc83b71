"""Adversarial, imitation and density losses."""
