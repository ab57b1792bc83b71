"""Generators on disk: safetensors and a config, nothing executable."""
