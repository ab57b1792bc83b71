"""Trains a recipe and registers its generator: what a cluster runs.

    python jobs/train.py cars64 --data s3://bucket/cars64 --name cars64-a --register cars

Services and credentials come from the environment (AWS_*, MLFLOW_TRACKING_URI, RAY_ADDRESS).
"""

from __future__ import annotations

import argparse
import sys

from mimic3d_platform.console import Console
from mimic3d_platform.jobs import train_and_register
from mimic3d_platform.launch import resolve_config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="a recipe's name or a config file")
    parser.add_argument("--data", help="the data set's folder: s3://…")
    parser.add_argument("--name", help="the run's name; the recipe's when not given")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--runs", help="the folder of all runs")
    parser.add_argument("--register", help="register the generator under this name")
    parser.add_argument("--alias", help="and give it this alias")
    arguments = parser.parse_args()
    try:
        config = resolve_config(arguments.recipe, arguments.data, arguments.overrides)
        console = Console()
        finished = train_and_register(
            config,
            arguments.name or config.recipe,
            console,
            runs_uri=arguments.runs,
            workers=arguments.workers,
            model=arguments.register,
            alias=arguments.alias,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console.metrics(finished.result.metrics)
    return 0


if __name__ == "__main__":
    sys.exit(main())
