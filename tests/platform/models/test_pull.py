"""A pulled model equals the registered one; what was changed, cut or made to leave the folder is refused."""

import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fault_proxy import FaultProxy
from mimic3d.checkpoints.generator_folder import load_generator
from mimic3d_platform import local, storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.models import model_uris, registry
from mimic3d_platform.models import pull as pull_module
from mimic3d_platform.models.pull import pull, verify_folder, verify_version
from mimic3d_platform.models.registration import register_generator
from mimic3d_platform.storage.digests import parse_sha256sums, sha256, sha256_of_file
from mimic3d_platform.tracking.server import client

Make = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("no_previews")


class _Poison:
    """Makes the file `marker` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def uri(run_id: str, name: str, generator_folder: Make) -> str:
    return f"models:/{name}/{register_generator(generator_folder(), name, run_id, {})}"


def put(uri: str, tmp_path: Path, name: str, content: bytes) -> None:
    """Replaces or adds a file in the artifacts of a version."""
    model = registry.logged_model_of(registry.version_of(uri))
    assert model is not None
    file = tmp_path / "changed" / Path(name).name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    folder = str(Path(name).parent) if "/" in name else None
    client().log_model_artifact(model.model_id, str(file), folder)


def tampered_list(uri: str, tmp_path: Path, change: Callable[[str], str]) -> None:
    """Changes a version's list of digests, and the tag with its digest."""
    version = registry.version_of(uri)
    listed = tmp_path / "listed"
    listed.mkdir(exist_ok=True)
    pull_module._download(version, "SHA256SUMS", str(listed))
    text = change((listed / "SHA256SUMS").read_text(encoding="utf-8"))
    put(uri, tmp_path, "SHA256SUMS", text.encode())
    client().set_model_version_tag(version.name, version.version, registry.DIGEST_TAG, sha256(text.encode()))


def test_a_file_that_changed_after_the_registration_is_refused(uri: str, tmp_path: Path) -> None:
    put(uri, tmp_path, "config.yaml", b"recipe: other\n")
    with pytest.raises(UserError, match=r"config.yaml is not the file that was registered; nothing was kept"):
        pull(uri, tmp_path / "pulled")
    with pytest.raises(UserError, match=r"config.yaml is not the file that was registered"):
        verify_version(uri)
    assert not (tmp_path / "pulled" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("config.yaml", "config.yml"), "is not the one that was registered"),
        (lambda text: "nonsense\n", "is not the one that was registered"),
    ],
)
def test_a_list_of_digests_that_changed_with_the_files_is_refused(
    uri: str, tmp_path: Path, change: Callable[[str], str], words: str
) -> None:
    put(uri, tmp_path, "SHA256SUMS", change("0" * 64 + "  config.yaml\n").encode())
    with pytest.raises(UserError, match=words) as caught:
        pull(uri, tmp_path / "pulled")
    assert "\n" not in str(caught.value) and list((tmp_path / "pulled").iterdir()) == []


def test_a_list_of_digests_that_was_registered_badly_is_one_line(uri: str, tmp_path: Path) -> None:
    bad = {
        "nonsense\n": r"its SHA256SUMS is damaged \(not a line of SHA-256 sums: 'nonsense'\)",
        f"{'0' * 64}  ../escaped.md\n": r"names '\.\./escaped.md', which is not a file",
        f"{'0' * 64}  /tmp/escaped.md\n": "names '/tmp/escaped.md'",
        f"{'0' * 64}  a\\..\\escaped.md\n": "which is not a file below",
        "": "has no generator.safetensors",
    }
    for text, words in bad.items():
        tampered_list(uri, tmp_path, lambda _, text=text: text)
        with pytest.raises(UserError, match=words) as caught:
            pull(uri, tmp_path / "pulled")
        assert "\n" not in str(caught.value) and list((tmp_path / "pulled").iterdir()) == []


def test_pull_executes_nothing_of_a_poisoned_version(uri: str, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    code = f"import os\nos.mkdir({str(marker)!r})\n".encode()
    poison = pickle.dumps(_Poison(marker))
    put(uri, tmp_path, "MLmodel", b"flavors: {python_function: {loader_module: poison, code: code}}\n")
    put(uri, tmp_path, "code/poison.py", code)
    put(uri, tmp_path, "code/mimic3d_pyfunc.py", code)
    put(uri, tmp_path, "python_model.pkl", poison)
    put(uri, tmp_path, "previews/grid.png", poison)
    pulled = Path(pull(uri, tmp_path / "pulled"))
    load_generator(pulled)
    assert {path.suffix for path in pulled.rglob("*")} == {".md", ".yaml", ".safetensors", ".json", ""}
    assert not marker.exists()
    with pytest.raises(UserError, match=r"MLmodel is not the file that was registered"):
        verify_version(uri)


def test_a_file_that_was_added_is_found_by_verify(uri: str, tmp_path: Path) -> None:
    put(uri, tmp_path, "previews/added.png", b"")
    with pytest.raises(UserError, match=r"previews/added.png was added after the registration"):
        verify_version(uri)


def test_a_version_of_a_newer_format_or_of_another_program_is_refused(uri: str, tmp_path: Path) -> None:
    version = registry.version_of(uri)
    client().set_model_version_tag(version.name, version.version, registry.FORMAT_TAG, "2")
    with pytest.raises(UserError, match=r"registered by a newer mimic3d \(format 2\): upgrade mimic3d"):
        pull(uri, tmp_path / "pulled")
    client().set_model_version_tag(version.name, version.version, registry.FORMAT_TAG, "1")
    client().delete_model_version_tag(version.name, version.version, registry.DIGEST_TAG)
    with pytest.raises(UserError, match="was not registered by `mimic3d`"):
        pull(uri, tmp_path / "pulled")


def test_a_pull_replaces_the_former_model_and_removes_what_a_killed_pull_left(
    uri: str, tmp_path: Path
) -> None:
    pulled = tmp_path / "pulled"
    (pulled / ".pull-killed").mkdir(parents=True)
    for name in ("training.safetensors", "generator.safetensors", "lineage.json", "mine.txt"):
        (pulled / name).write_text("former", encoding="utf-8")
    pull(uri, pulled)
    found = {path.relative_to(pulled).as_posix() for path in pulled.rglob("*") if path.is_file()}
    assert found == {
        "README.md",
        "SHA256SUMS",
        "config.yaml",
        "generator.safetensors",
        "lineage.json",
        "mine.txt",
    }
    assert not (pulled / ".pull-killed").exists()
    load_generator(pulled)
    (pulled / "config.yaml").write_text("recipe: other\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"config.yaml is not the file that was pulled; pull the model again"):
        verify_folder(pulled)


def test_a_download_that_was_interrupted_resumes(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download, asked, cut = pull_module._download, [], True

    def cut_download(version: object, name: str, folder: str) -> None:
        asked.append(name)
        if name == "generator.safetensors" and cut:
            raise UserError("the connection was cut")
        download(version, name, folder)

    monkeypatch.setattr(pull_module, "_download", cut_download)
    with pytest.raises(UserError, match="was cut"):
        pull(uri, tmp_path / "pulled")
    assert not (tmp_path / "pulled" / "config.yaml").exists()
    asked, cut = [], False
    pull(uri, tmp_path / "pulled")
    assert "generator.safetensors" in asked and "config.yaml" not in asked
    load_generator(tmp_path / "pulled")


def test_a_connection_that_is_cut_midway_leaves_nothing_and_the_next_pull_works(
    uri: str, tmp_path: Path, stack: local.StackStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(str(stack.services["mlflow"].url)) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        fault = proxy.truncate(path="/generator.safetensors")
        with pytest.raises(UserError, match=r"generator\.safetensors .* was cut; try again") as caught:
            pull(uri, tmp_path / "pulled")
        assert fault.hits and "\n" not in str(caught.value)
        assert not (tmp_path / "pulled" / "generator.safetensors").exists()
        proxy.heal()
        load_generator(Path(pull(uri, tmp_path / "pulled")))


def test_a_model_goes_up_and_down_in_parts_through_the_server(
    run_id: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in (
        ("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "true"),
        ("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", "6000000"),
        ("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", "5242880"),
        ("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "true"),
        ("MLFLOW_MULTIPART_DOWNLOAD_MINIMUM_FILE_SIZE", "6000000"),
        ("MLFLOW_MULTIPART_DOWNLOAD_CHUNK_SIZE", "5242880"),
    ):
        monkeypatch.setenv(variable, value)
    folder = model_uris.builtin_folder("builtin:cars")
    assert folder is not None
    version = register_generator(folder, name, run_id, {})
    pulled = Path(pull(f"models:/{name}/{version}", tmp_path / "pulled"))
    for file in ("generator.safetensors", "training.safetensors"):
        assert sha256_of_file(pulled / file) == sha256_of_file(folder / file)


def test_a_file_that_arrives_cut_short_is_downloaded_again(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download, times = pull_module._download, 0

    def shorten(version: object, name: str, folder: str) -> None:
        nonlocal times
        download(version, name, folder)
        if name == "generator.safetensors":
            times += 1
            if times == 1:
                os.truncate(Path(folder, name), Path(folder, name).stat().st_size * 4 // 5)

    monkeypatch.setattr(pull_module, "_download", shorten)
    load_generator(Path(pull(uri, tmp_path / "pulled")))
    assert times == 2


def test_two_pulls_into_one_folder_at_once_both_succeed(uri: str, tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def fetch() -> None:
        try:
            pull(uri, tmp_path / "pulled")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and verify_folder(tmp_path / "pulled")
    assert not [path for path in (tmp_path / "pulled").iterdir() if path.name.startswith(".pull")]


def test_a_model_that_another_process_has_just_cached_is_not_downloaded_again(
    uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MIMIC3D_HOME", str(tmp_path))
    version = registry.version_of(uri)
    folder = pull_module.cached(version)
    written = (folder / "generator.safetensors").stat().st_ino
    # Both find nothing, and one has downloaded it while the other waited.
    assert pull_module._pull(version, uri, folder, keep=True) == folder
    assert (folder / "generator.safetensors").stat().st_ino == written
    pull_module._pull(version, uri, folder)
    assert (folder / "generator.safetensors").stat().st_ino != written


def test_a_link_that_leaves_the_destination_is_not_followed(uri: str, tmp_path: Path) -> None:
    put(uri, tmp_path, "previews/grid.png", b"picture")
    digest = sha256(b"picture")
    tampered_list(uri, tmp_path, lambda text: f"{text}{digest}  previews/grid.png\n")
    (tmp_path / "pulled").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "pulled" / "previews").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="is a link that leaves"):
        pull(uri, tmp_path / "pulled")
    assert list((tmp_path / "outside").iterdir()) == []


def test_an_alias_that_moves_during_a_pull_gives_one_version(
    run_id: str, name: str, tmp_path: Path, generator_folder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = generator_folder("a", 0), generator_folder("b", 1)
    for folder in (first, second):
        register_generator(folder, name, run_id, {})
    client().set_registered_model_alias(name, "champion", "1")
    download = pull_module._download

    def move_alias(version: object, file: str, folder: str) -> None:
        client().set_registered_model_alias(name, "champion", "2")
        download(version, file, folder)

    monkeypatch.setattr(pull_module, "_download", move_alias)
    pulled = Path(pull(f"models:/{name}@champion", tmp_path / "pulled"))
    assert sha256_of_file(pulled / "generator.safetensors") == sha256_of_file(first / "generator.safetensors")


def test_a_model_is_pulled_into_object_storage(uri: str, s3_folder: str) -> None:
    former = (
        "data_card.md",
        "previews/grid.png",
        "training.safetensors",
    )
    for name in former:
        storage.write_bytes(f"{s3_folder}/{name}", b"former")
    listed = "".join(f"{'0' * 64}  {name}\n" for name in former)
    storage.write_bytes(f"{s3_folder}/SHA256SUMS", listed.encode())
    pull(uri, s3_folder)
    names = {place.removeprefix(f"{s3_folder}/") for place in storage.list_files(s3_folder)}
    assert names == {"README.md", "SHA256SUMS", "config.yaml", "generator.safetensors", "lineage.json"}
    listed = parse_sha256sums(storage.read_bytes(f"{s3_folder}/SHA256SUMS").decode())
    assert sha256(storage.read_bytes(f"{s3_folder}/config.yaml")) == listed["config.yaml"]
