"""Runs `mimic3d sweep` as a script: the entry point of `mimic3d submit`, `ray job submit` and RayJobs.

    python jobs/sweep.py sweeps/imitation.yaml --data s3://bucket/cars64 --name imitation

Reads services and credentials from the environment (AWS_*, MLFLOW_TRACKING_URI, RAY_ADDRESS).
"""

from mimic3d_platform.cli import main

if __name__ == "__main__":
    main("sweep")
