"""Generator and discriminators of Mimic3D and EG3D."""
