"""Generators on disk: folders of safetensors and a config, and the import of released checkpoints."""
