"""Posed images from other programs to data sets."""
