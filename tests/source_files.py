"""Syntax trees of the project's source files, for the tests that read the code."""

import ast
from pathlib import Path

TRIES = 10


def syntax_tree(file: Path) -> ast.Module:
    """Parses a source file.

    CPython 3.11 counts the depth of a tree in one place for all threads, and ends with a SystemError where
    another thread parses at the same time (github.com/python/cpython/issues/106905): it is parsed again.
    """
    text = file.read_text(encoding="utf-8")
    for _ in range(TRIES - 1):
        try:
            return ast.parse(text, str(file))
        except SystemError:
            continue
    return ast.parse(text, str(file))
