"""Data sets made of posed images that other programs wrote: EG3D, NeRF, COLMAP, tables of cameras."""
