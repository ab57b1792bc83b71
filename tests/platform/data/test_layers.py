"""Within data/, every folder stands on format/ alone; of the platform, it uses clusters and storage."""

import ast
from pathlib import Path

import mimic3d_platform.data
from source_files import syntax_tree

FOLDER = Path(mimic3d_platform.data.__file__).parent
PACKAGE = "mimic3d_platform"
BELOW = {"cluster", "storage", "settings", "errors"}
# What a part of data/ may import besides itself.
PARTS = {
    "__init__": set(),
    "format": set(),
    "stream": {"format"},
    "render": {"format"},
    "ingest": {"format"},
    "inspect": {"format"},
    "export_eg3d": {"format", "ingest"},
}


def imports_of(file: Path) -> set[tuple[str, ...]]:
    """The platform's modules that a file imports, wherever in the file, as tuples of names."""
    modules = set()
    for node in ast.walk(syntax_tree(file)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            modules |= {f"{PACKAGE}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    return {tuple(module.split(".")) for module in modules if module.startswith(f"{PACKAGE}.")}


def test_every_part_imports_only_what_lies_below_it() -> None:
    files = sorted(FOLDER.rglob("*.py"))
    assert len(files) > 30
    found = {}
    for file in files:
        part = file.relative_to(FOLDER).parts[0].removesuffix(".py")
        for _, *names in imports_of(file):
            allowed = names[1] in PARTS[part] | {part} if names[0] == "data" else names[0] in BELOW
            if not allowed:
                found[str(file.relative_to(FOLDER))] = ".".join(names)
    assert found == {}
