"""One run on Ray Train, from its config to its last checkpoint."""
