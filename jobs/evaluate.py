"""`mimic3d evaluate` as a script, for what runs scripts: `ray job submit`, KubeRay's RayJob.

    python jobs/evaluate.py models:/cars@champion --data s3://bucket/cars64 --images 50000

Services and credentials come from the environment (AWS_*, MLFLOW_TRACKING_URI, RAY_ADDRESS).
"""

from mimic3d_platform.cli import main

if __name__ == "__main__":
    main("evaluate")
