"""Imports flow down the layers of each package, and the command starts without heavy libraries.

`python tests/test_imports.py` prints the layers with their line counts and what each imports.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from source_files import syntax_tree

ROOT = Path(__file__).parents[1]
PLATFORM_LIBRARIES = {"ray", "mlflow", "boto3", "s3fs", "pyarrow", "mimic3d_platform"}
HEAVY = {"torch", "torchvision", "ray", "mlflow", "pyarrow", "trimesh", "viser", "pydantic"}
LOCAL = "mimic3d/training/local.py"

# From top to bottom: a folder or module imports from those below it. Those in one tuple do not import each
# other.
LAYERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "mimic3d": (
        ("training",),
        ("export",),
        ("evaluation",),
        ("losses",),
        ("checkpoints",),
        ("features",),
        ("networks",),
        ("rendering",),
        ("config",),
        ("sample_noise",),
        ("cameras", "randomness"),
    ),
    "mimic3d_platform": (
        ("cli",),
        ("viewer",),
        ("tuning",),
        ("training",),
        ("evaluation",),
        ("models",),
        ("data",),
        ("cluster",),
        ("local",),
        ("tracking",),
        ("storage",),
        ("settings",),
        ("errors", "console"),
    ),
}
FOLDERS = {"mimic3d": ROOT / "mimic3d", "mimic3d_platform": ROOT / "platform" / "mimic3d_platform"}


@dataclass
class Module:
    """A Python module of one of the packages, and the modules of the packages that it imports anywhere."""

    name: str
    lines: int
    imports: set[str] = field(default_factory=set)

    @property
    def layer(self) -> str:
        """The folder or module directly below the package; "" for the package itself."""
        return self.name.partition(".")[2].partition(".")[0]


def module_name(file: Path, folder: Path) -> str:
    """The dotted name of a file below a package's folder."""
    return ".".join(file.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")


def modules_of(package: str) -> dict[str, Module]:
    """The modules of a package by name."""
    folder = FOLDERS[package]
    files = {module_name(file, folder): file for file in sorted(folder.rglob("*.py"))}
    modules = {
        name: Module(name, file.read_text(encoding="utf-8").count("\n")) for name, file in files.items()
    }
    for name, file in files.items():
        for target in imported_names(file):
            # `from package import name` imports the module of that name, or the package that defines it.
            known = target if target in modules else target.rpartition(".")[0]
            if known in modules and known != name:
                modules[name].imports.add(known)
    return modules


def imported_names(file: Path) -> Iterator[str]:
    """The dotted names that a source file imports, at the top, in functions and for type checking."""
    for node in ast.walk(syntax_tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def upward_imports(package: str) -> list[str]:
    """The imports that do not go down the layers, as "importer -> imported"."""
    height = {name: -depth for depth, names in enumerate(LAYERS[package]) for name in names}
    return sorted(
        f"{module.name} -> {imported}"
        for module in modules_of(package).values()
        for imported in module.imports
        if (target := Module(imported, 0).layer) and target != module.layer
        if module.layer not in height or height[target] >= height[module.layer]
    )


def cycles(package: str) -> list[list[str]]:
    """The groups of modules that import each other, directly or through others."""
    modules = modules_of(package)

    def reachable(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            new = modules[waiting.pop()].imports - found
            found |= new
            waiting += new
        return found

    reach = {name: reachable(name) for name in modules}
    groups = {tuple(sorted(n for n in reach[name] if name in reach[n])) for name in modules}
    return [list(group) for group in sorted(groups) if group]


def loaded_after(code: str) -> set[str]:
    """The top-level packages that a new interpreter has loaded after `code`."""
    code = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'platform')]}\n{code}\n"
    code += "print('loaded', *{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split())


def test_every_folder_has_a_layer() -> None:
    for package, layers in LAYERS.items():
        found = {module.layer for module in modules_of(package).values()} - {""}
        assert found == {name for names in layers for name in names}, package


def test_imports_of_the_method_flow_down_its_layers() -> None:
    assert upward_imports("mimic3d") == []


def test_imports_of_the_platform_flow_down_its_layers() -> None:
    assert upward_imports("mimic3d_platform") == []


def test_no_modules_import_each_other() -> None:
    assert [group for package in LAYERS for group in cycles(package)] == []


def test_the_method_imports_no_platform_library() -> None:
    files = sorted((ROOT / "mimic3d").rglob("*.py"))
    assert len(files) > 20
    found = {
        str(file.relative_to(ROOT)): {name.split(".")[0] for name in imported_names(file)}
        & PLATFORM_LIBRARIES
        for file in files
    }
    # Local shards are read with pyarrow, imported on use, so that the method needs only PyTorch.
    assert {file: names for file, names in found.items() if names} == {LOCAL: {"pyarrow"}}


def test_no_module_of_the_method_loads_a_platform_library() -> None:
    loaded = loaded_after("\n".join(f"import {name}" for name in modules_of("mimic3d")))
    assert "torch" in loaded and loaded & PLATFORM_LIBRARIES == set()


def test_help_loads_no_heavy_library() -> None:
    code = "from mimic3d_platform.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass"
    loaded = loaded_after(code)
    assert "typer" in loaded and loaded & HEAVY == set()


def print_layers() -> None:
    """Prints each package's layers from top to bottom: files, lines, and the layers that they import."""
    for package, layers in LAYERS.items():
        modules = modules_of(package).values()
        print(f"{package}: {len(modules)} files, {sum(module.lines for module in modules)} lines")
        for names in layers:
            for name in names:
                own = [module for module in modules if module.layer == name]
                used = {Module(imported, 0).layer for module in own for imported in module.imports}
                below = [each for row in layers for each in row if each in used - {name}]
                lines = sum(module.lines for module in own)
                print(f"  {name:12} {len(own):3} files {lines:6} lines  imports {', '.join(below) or '-'}")
        for upward in upward_imports(package):
            print(f"  imports upwards: {upward}")
        for group in cycles(package):
            print(f"  import each other: {', '.join(group)}")


if __name__ == "__main__":
    print_layers()
