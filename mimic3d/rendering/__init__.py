"""Rays, tri-plane sampling and volume rendering."""
