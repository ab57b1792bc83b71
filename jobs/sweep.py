"""`mimic3d sweep` as a script, for what runs scripts: `ray job submit`, KubeRay's RayJob.

    python jobs/sweep.py sweeps/imitation.yaml --data s3://bucket/cars64 --name imitation

Services and credentials come from the environment (AWS_*, MLFLOW_TRACKING_URI, RAY_ADDRESS).
"""

from mimic3d_platform.cli import main

if __name__ == "__main__":
    main("sweep")
