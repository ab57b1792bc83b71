"""Runs `mimic3d data` as a script: the entry point of `mimic3d submit`, `ray job submit` and RayJobs.

    python jobs/data.py render s3://bucket/mine --meshes /shared/models --resolution 64

Reads services and credentials from the environment (AWS_*, RAY_ADDRESS).
"""

from mimic3d_platform.cli import main

if __name__ == "__main__":
    main("data")
