"""Runs `mimic3d evaluate` as a script: the entry point of `mimic3d submit`, `ray job submit` and RayJobs.

    python jobs/evaluate.py models:/cars@champion --data s3://bucket/cars64 --images 50000

Reads services and credentials from the environment (AWS_*, MLFLOW_TRACKING_URI, RAY_ADDRESS).
"""

from mimic3d_platform.cli import main

if __name__ == "__main__":
    main("evaluate")
