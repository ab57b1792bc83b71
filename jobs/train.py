"""Runs `mimic3d train` as a script: the entry point of `mimic3d submit`, `ray job submit` and RayJobs.

    python jobs/train.py cars64 --data s3://bucket/cars64 --name cars64-a --register cars

Reads services and credentials from the environment (AWS_*, MLFLOW_TRACKING_URI, RAY_ADDRESS).
"""

from mimic3d_platform.cli import main

if __name__ == "__main__":
    main("train")
