"""Object storage, MLflow and Ray on this machine, on loopback: `mimic3d up`, `down` and `status`."""

from mimic3d_platform.local.stack import StackStatus, down, status, up

__all__ = ["StackStatus", "down", "status", "up"]
