"""The services on this machine: object storage, MLflow and Ray on loopback; and `doctor`."""

from mimic3d_platform.local.stack import StackStatus, down, status, up

__all__ = ["StackStatus", "down", "status", "up"]
