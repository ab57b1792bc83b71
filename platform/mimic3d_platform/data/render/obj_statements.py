"""The statements of OBJ and MTL files: continued lines, comments, names that have blanks or quotes."""

from __future__ import annotations

import re
from collections.abc import Iterator

_COMMENT = re.compile(r"(?:^|\s)#")


def statements(data: bytes) -> Iterator[tuple[list[str], str]]:
    """For each statement its words without a comment, and its whole line, of which names are taken.

    A backslash at a line's end, or before blanks there, continues it; a comment is never continued.
    """
    started = ""
    for line in _decode(data).replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        whole = started + line
        started = ""
        if "\\" in line and (bare := whole.rstrip()).endswith("\\") and not _COMMENT.search(bare):
            started = bare[:-1] + " "
            continue
        if words := _words(whole):
            yield words, whole
    if words := _words(started):
        yield words, started


def _decode(data: bytes) -> str:
    text = data.removeprefix(b"\xef\xbb\xbf")
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return text.decode("utf-16", errors="replace")
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _words(line: str) -> list[str]:
    words = line.split()
    if "#" in line:
        return words[: next((place for place, word in enumerate(words) if word.startswith("#")), None)]
    return words


def reason(error: Exception) -> str:
    """Why a statement is not read, without Python's words for what is no number."""
    text = str(error)
    if found := re.match(r"(?:could not convert string to float|invalid literal for int.*): (.*)$", text):
        return f"{found[1]} is no number"
    return text


def rest_of(line: str) -> str:
    """The line without its first word; blanks within the rest are kept."""
    return line.strip().partition(line.split(maxsplit=1)[0])[2].strip()


def without_comment(text: str) -> str:
    """The text before a comment. File names may contain `#`: `possible_names` tries the whole text first."""
    return _COMMENT.split(text, maxsplit=1)[0].strip()


def possible_names(text: str) -> list[str]:
    """The names of a file that a text may mean, the likeliest first: the whole, or without a comment."""
    names = [each.strip().strip('"') for each in (text, without_comment(text))]
    return [name for name in dict.fromkeys(names) if name]
