"""Imported packages are declared in `pyproject.toml`."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from source_files import syntax_tree

ROOT = Path(__file__).parents[1]
OWN = {"mimic3d", "mimic3d_platform", "jobs"}
# Optional networks for the imitation loss, and what dlib-bin does not list among its packages.
OPTIONAL = {"timm", "dlib"}


def imported_by(file: Path) -> set[str]:
    """The top-level packages that a file imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(syntax_tree(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def canonical(package: str) -> str:
    """A package's normalised name."""
    return re.sub(r"[-_.]+", "-", package).lower()


def test_every_imported_library_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + extras["server"] + extras["viewer"] + extras["faces"]
    declared = {canonical(re.split(r"[^\w.-]", line)[0]) for line in lines}
    packages = packages_distributions()
    undeclared = {
        name: str(file.relative_to(ROOT))
        for folder in ("mimic3d", "platform/mimic3d_platform", "jobs")
        for file in (ROOT / folder).rglob("*.py")
        for name in imported_by(file) - OWN - OPTIONAL - {"_typeshed", *sys.stdlib_module_names}
        if not declared & {canonical(package) for package in packages.get(name, [])}
    }
    assert undeclared == {}
