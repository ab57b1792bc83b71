"""Writes what MLflow's own clients need beside a generator: `MLmodel`, its signature, environment and code.

No pip runs and no network is reached: requirements are the installed versions, and the signature is given
instead of being inferred.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

import mimic3d
from mimic3d.config import Config
from mimic3d_platform.models.version_files import CODE

# The code that a served model runs, and the parts of `mimic3d` that it imports.
_LOADER = "mimic3d_pyfunc"
_NOT_SHIPPED = ("training", "evaluation", "losses", "features")
SOURCES = "mimic3d_sources.zip"
_REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "pyyaml", "safetensors", "torch")


def write_pyfunc(
    folder: Path, config: Config, branches: tuple[str, ...], *, run_id: str, model_id: str, name: str
) -> None:
    """Writes the pyfunc flavour of a generator into its folder.

    Args:
        folder: with `generator.safetensors` and `config.yaml`, which the flavour loads from where they are.
        branches: of the generator.
    """
    import mlflow
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import Array

    numbers = Array(DataType.double)
    columns: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.long, "seed", required=False),
        ColSpec(numbers, "latent", required=False),
    ]
    columns += [
        ColSpec(DataType.double, column, required=False) for column in ("yaw", "pitch", "radius", "focal")
    ]
    columns.append(ColSpec(numbers, "label", required=False))
    params = [
        ParamSpec("branch", DataType.string, branches[-1]),
        ParamSpec("truncation", DataType.double, 1.0),
        ParamSpec("size", DataType.long, 0),
        ParamSpec("image", DataType.string, "png"),
    ]
    outputs = Schema([ColSpec(DataType.binary, "image"), ColSpec(Array(numbers), "depth")])
    signature = ModelSignature(Schema(columns), outputs, ParamSchema(params))
    pitch = config.camera.pitch
    example = pd.DataFrame({"seed": [0, 1], "yaw": [0.0, 0.5], "pitch": [pitch, pitch]})
    with tempfile.TemporaryDirectory(prefix="mimic3d-pyfunc-") as place:
        loader = Path(place, f"{_LOADER}.py")
        shutil.copyfile(Path(__file__).with_name("pyfunc_model.py"), loader)
        written = Path(place, "model")
        mlflow.pyfunc.save_model(
            written,
            loader_module=_LOADER,
            code_paths=[str(loader)],
            mlflow_model=Model(run_id=run_id, model_id=model_id, artifact_path=name),
            signature=signature,
            input_example=example,
            pip_requirements=_requirements(),
            metadata={"recipe": config.recipe, "image_resolution": config.model.image_resolution},
        )
        for cache in written.rglob("__pycache__"):
            shutil.rmtree(cache)
        _zip_sources(written / CODE / SOURCES)
        shutil.copytree(written, folder, dirs_exist_ok=True)


def _zip_sources(path: Path) -> None:
    """Writes the parts of `mimic3d` that the code imports, as one file, which Python imports from.

    Its bytes depend on the sources alone.
    """
    package = Path(mimic3d.__file__).parent
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(package.rglob("*.py")):
            parts = file.relative_to(package.parent).parts
            if parts[1] not in _NOT_SHIPPED:
                archive.writestr(zipfile.ZipInfo("/".join(parts)), file.read_bytes(), zipfile.ZIP_DEFLATED)


def _requirements() -> list[str]:
    """The packages that the code imports, in the installed versions, without local parts such as `+cpu`."""
    return [f"{package}=={metadata.version(package).partition('+')[0]}" for package in _REQUIREMENTS]
