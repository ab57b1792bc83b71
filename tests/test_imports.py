"""What may import what: the method knows nothing of the platform, and the command answers at once."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLATFORM_LIBRARIES = {"ray", "mlflow", "boto3", "s3fs", "pyarrow", "mimic3d_platform"}
HEAVY = {"torch", "torchvision", "ray", "mlflow", "pyarrow", "trimesh"}
LOCAL = "mimic3d/training/local.py"
FILES = sorted((ROOT / "mimic3d").rglob("*.py"))


def imported_by(file: Path) -> set[str]:
    """The first parts of all names that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def loaded_after(code: str) -> set[str]:
    """The first parts of the names of all modules that a fresh interpreter holds after `code`."""
    code = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'platform')]}\n{code}\n"
    code += "print('loaded', *{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split())


def test_the_method_imports_no_platform_library() -> None:
    assert len(FILES) > 20
    found = {str(file.relative_to(ROOT)): imported_by(file) & PLATFORM_LIBRARIES for file in FILES}
    # A machine that has only PyTorch reads shards with pyarrow, once it is asked to.
    assert {file: names for file, names in found.items() if names} == {LOCAL: {"pyarrow"}}


def test_no_module_of_the_method_loads_a_platform_library() -> None:
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in FILES
    ]
    loaded = loaded_after("\n".join(f"import {module}" for module in modules))
    assert "torch" in loaded and loaded & PLATFORM_LIBRARIES == set()


def test_help_loads_no_heavy_library() -> None:
    code = "from mimic3d_platform.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass"
    loaded = loaded_after(code)
    assert "typer" in loaded and loaded & HEAVY == set()
