"""Mimic3D (Chen, Deng and Wang, 2023): 3D-aware GANs by 3D-to-2D imitation, in plain PyTorch."""
