"""Rules of style that a program can check."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRACKED = subprocess.run(
    ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split("\0")[:-1]
VAGUE = {"utils", "util", "helpers", "helper", "misc", "common", "manager"}
# Split, so that this file does not contain them.
OF_ONE_MACHINE = ["/" + "root/", "/" + "work/", "index-" + "url", "artifactory" + ".", "nexus" + "."]


def test_a_file_is_named_after_its_subject() -> None:
    assert TRACKED
    assert [path for path in TRACKED if VAGUE & {part.split(".")[0] for part in Path(path).parts}] == []


def test_no_tracked_file_has_paths_of_a_developer_s_machine() -> None:
    found = []
    for path in TRACKED:
        file = ROOT / path
        if not file.is_file() or b"\0" in (content := file.read_bytes()):
            continue
        text = content.decode(errors="replace")
        found += [f"{path}: {word}" for word in OF_ONE_MACHINE if word in text]
    assert found == []


def test_source_files_are_short_enough_to_read() -> None:
    sources = [p for p in TRACKED if p.endswith(".py") and p.startswith(("mimic3d/", "platform/", "jobs/"))]
    lengths = {
        path: len((ROOT / path).read_text(encoding="utf-8").splitlines())
        for path in sources
        if (ROOT / path).is_file()
    }
    assert {path: length for path, length in lengths.items() if length > 400} == {}
