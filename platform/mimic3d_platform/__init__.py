"""The platform around `mimic3d`: object storage, Ray, MLflow and the `mimic3d` command."""
