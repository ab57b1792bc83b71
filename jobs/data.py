"""`mimic3d data` as a script, for what runs scripts: `ray job submit`, KubeRay's RayJob.

    python jobs/data.py render s3://bucket/mine --meshes /shared/models --resolution 64

Services and credentials come from the environment (AWS_*, RAY_ADDRESS).
"""

from mimic3d_platform.cli import main

if __name__ == "__main__":
    main("data")
