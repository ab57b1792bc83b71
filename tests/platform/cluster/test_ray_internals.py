"""Private names of Ray are imported in one file, and exist in the installed Ray."""

import ast
from pathlib import Path

import pytest

from mimic3d_platform.cluster import ray_internals
from source_files import syntax_tree

ROOT = Path(__file__).parents[3]
FILE = ROOT / "platform" / "mimic3d_platform" / "cluster" / "ray_internals.py"
PRIVATE = ("_private", "_raylet", "_internal")


def imports(file: Path) -> dict[str, str]:
    """The names that a file imports from modules, with the modules."""
    nodes = [node for node in ast.walk(syntax_tree(file)) if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in nodes for alias in node.names}


@pytest.mark.parametrize("name", ray_internals._MODULES)
def test_each_private_name_exists_where_the_file_says(name: str) -> None:
    assert imports(FILE)[name] == ray_internals._MODULES[name]
    assert getattr(ray_internals, name) is not None


def test_no_other_file_imports_private_names_of_ray() -> None:
    files = [*(ROOT / "platform").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]
    assert len(files) > 80
    found = {
        str(file): module
        for file in files
        if file != FILE
        for module in imports(file).values()
        if module.startswith("ray.") and set(PRIVATE) & set(module.split("."))
    }
    assert found == {}
