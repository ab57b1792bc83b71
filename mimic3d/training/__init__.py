"""The two-stage training: stages, steps, state."""
