"""docs/troubleshooting.md quotes messages as the program prints them."""

import ast
import re
from pathlib import Path

from source_files import syntax_tree

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ELLIPSIS = "…"


def messages() -> str:
    """All texts of the sources, a line each; what is filled in is an ellipsis."""
    lines = []
    for file in sorted([*(ROOT / "platform").rglob("*.py"), *(ROOT / "mimic3d").rglob("*.py")]):
        for node in ast.walk(syntax_tree(file)):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else ELLIPSIS for part in node.values]
                lines.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                lines.append(node.value)
    return "\n".join(lines).replace("`", "")


def test_quoted_messages_are_in_the_sources() -> None:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| ")]
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row) if " " in text]
    assert len(quoted) > 30
    sources = messages()
    numbers = re.compile(r"\d+")  # Filled in from constants.
    missing = [
        text
        for text in quoted
        for part in numbers.sub(ELLIPSIS, text).split(ELLIPSIS)
        if part.strip(" ();:") not in sources
    ]
    assert missing == []
