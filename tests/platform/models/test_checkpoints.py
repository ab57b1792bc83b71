"""Checkpoints in storage: written completely or not at all, verified, kept by a policy."""

import time
from pathlib import Path

import pytest
import torch

from fault_proxy import FaultProxy
from mimic3d.config.recipes import get_recipe
from mimic3d.training.checkpoint import Progress, Snapshot
from mimic3d_platform import storage
from mimic3d_platform.errors import UserError
from mimic3d_platform.models.checkpoints import (
    MANIFEST,
    CheckpointStore,
    DamagedCheckpoint,
    KeepPolicy,
    StoredCheckpoint,
)
from mimic3d_platform.settings import get_settings
from mimic3d_platform.training.checkpoint_writer import CheckpointWriter


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path / "runs"), "run")


def put(store: CheckpointStore, folder: Path, nimg: int, **facts: object) -> StoredCheckpoint:
    (folder / "generator").mkdir(parents=True, exist_ok=True)
    (folder / "state.pt").write_bytes(b"state at %d" % nimg * 100)
    (folder / "generator" / "config.yaml").write_text("seed: 1\n", encoding="utf-8")
    return store.put(folder, store.new_name(nimg), nimg, facts)


def snapshot(nimg: int) -> Snapshot:
    parts = {
        part: {"weight": torch.full((4,), float(nimg))} for part in ("generator", "ema", "dual", "patch")
    }
    return Snapshot(get_recipe("cars-demo"), {"nimg": nimg} | parts, Progress(nimg, {}, 1.0))


def test_a_stored_checkpoint_is_listed_and_fetched(store: CheckpointStore, tmp_path: Path) -> None:
    assert store.all() == []
    put(store, tmp_path / "b", 800, workers=2)
    put(store, tmp_path / "a", 400)
    found = CheckpointStore(store.uri.removesuffix("/run/checkpoints"), "run").all()
    assert [checkpoint.nimg for checkpoint in found] == [400, 800]
    assert found[1].facts == {"workers": 2} and found[1].name.startswith("000000800-")
    folder = store.fetch(found[1], tmp_path / "read")
    assert (folder / "state.pt").read_bytes() == (tmp_path / "b" / "state.pt").read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "state.pt").write_bytes((folder / "state.pt").read_bytes()[:50]),
        lambda folder: (folder / "generator" / "config.yaml").unlink(),
        lambda folder: (folder / "generator" / "config.yaml").write_text("seed: 2\n", encoding="utf-8"),
        lambda folder: (folder / MANIFEST).write_bytes(b'{"nimg": 8'),
    ],
    ids=["truncated", "missing", "another", "manifest"],
)
def test_a_damaged_checkpoint_is_refused(store: CheckpointStore, tmp_path: Path, damage) -> None:
    stored = put(store, tmp_path / "a", 800)
    damage(Path(stored.uri))
    [found] = CheckpointStore(store.uri.removesuffix("/run/checkpoints"), "run").all()
    with pytest.raises(
        DamagedCheckpoint, match=f"{stored.name} is damaged: .*(state.pt|config.yaml|manifest)"
    ):
        store.fetch(found, tmp_path / "read")


@pytest.mark.parametrize("content", [None, b"state"], ids=["lost", "cut short"])
def test_files_that_storage_acknowledged_and_lost_make_no_checkpoint(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    def copy_and_lose(source: Path, target: str) -> None:
        copy_tree(source, target)
        place = storage.join(target, "state.pt")
        storage.delete_tree(place)
        if content is not None:
            storage.write_bytes(place, content)

    copy_tree = storage.copy_tree
    with monkeypatch.context() as patched, pytest.raises(UserError, match=r"took state.pt, but"):
        patched.setattr(storage, "copy_tree", copy_and_lose)
        put(store, tmp_path / "a", 800)
    assert store.all() == []


def test_an_incomplete_checkpoint_is_not_listed(store: CheckpointStore, tmp_path: Path) -> None:
    kept, half = (put(store, tmp_path / "a", nimg) for nimg in (400, 800))
    storage.delete_tree(storage.join(half.uri, MANIFEST))
    assert [checkpoint.uri for checkpoint in store.all()] == [kept.uri]
    assert store.delete_incomplete() == [half.name]
    assert storage.list_files(half.uri) == [] and len(storage.list_files(kept.uri)) == 3


def checkpoint(nimg: int, token: str = "a", **metrics: float) -> StoredCheckpoint:
    return StoredCheckpoint(f"runs/{nimg:09d}-{token}", nimg, {}, {"metrics": metrics})


def test_a_checkpoint_that_is_deleted_during_the_listing_is_left_out(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = [put(store, tmp_path / str(nimg), nimg) for nimg in (8, 16)]
    listed = storage.list_files

    def list_then_deleted(*arguments, **named):
        places = listed(*arguments, **named)
        if named.get("suffix"):
            store.delete(stored[0])
        return places

    other = CheckpointStore(store.uri.removesuffix("/run/checkpoints"), "run")
    monkeypatch.setattr(storage, "list_files", list_then_deleted)
    assert [found.nimg for found in other.all()] == [16]


def test_the_policy_keeps_the_newest_the_best_multiples_and_the_end_of_stage_1() -> None:
    there = [checkpoint(nimg) for nimg in range(100, 1100, 100)]
    there[2] = checkpoint(300, **{"fid_x/3d": 4.0, "warp_psnr/3d": 30.0, "floaters/3d": 0.1})
    there[6] = checkpoint(700, **{"fid_x/3d": 9.0, "warp_psnr/3d": 40.0, "floaters/3d": 0.2})

    def kept(**policy: object) -> list[int]:
        return [stays.nimg for stays in KeepPolicy(**policy).kept(there)]

    assert kept(newest=2) == [900, 1000]
    assert kept(newest=1, every_nimg=400) == [400, 800, 1000]
    assert kept(newest=1, best="fid_x/3d") == [300, 1000]
    assert kept(newest=1, best="warp_psnr/3d") == [700, 1000]
    assert kept(newest=1, best="floaters/3d") == [300, 1000]
    assert kept(newest=1, stage1_nimg=600) == [600, 1000]


def test_of_two_checkpoints_at_the_same_images_one_is_kept() -> None:
    there = [checkpoint(100, "a"), checkpoint(200, "a"), checkpoint(200, "b")]
    assert [stays.uri for stays in KeepPolicy(newest=2).kept(there)] == [
        "runs/000000100-a",
        "runs/000000200-b",
    ]


def test_of_two_checkpoints_at_the_same_images_the_later_one_is_kept(
    store: CheckpointStore, tmp_path: Path
) -> None:
    """The earlier one may be damaged: a run that resumed from one before it has made it again."""
    for attempt in range(4):
        damaged = put(store, tmp_path / "a", 800 + attempt)
        (Path(damaged.uri) / "state.pt").write_bytes(b"another")
        time.sleep(0.002)
        again = put(store, tmp_path / "a", 800 + attempt)
        assert store.prune(KeepPolicy(newest=1)) == [again]


def test_pruning_deletes_all_files_of_a_checkpoint(store: CheckpointStore, tmp_path: Path) -> None:
    stored = [put(store, tmp_path / "a", nimg) for nimg in (100, 200, 300)]
    assert [stays.uri for stays in store.prune(KeepPolicy(newest=1))] == [stored[2].uri]
    assert storage.list_files(store.uri) == storage.list_files(stored[2].uri)


def test_the_first_tensor_with_a_value_that_is_not_finite_is_named() -> None:
    taken = snapshot(8)
    assert taken.not_finite() is None
    taken.state["dual"]["weight"][2] = float("nan")
    assert taken.not_finite() == "dual.weight"


def test_a_checkpoint_is_stored_once_storage_is_back(s3_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = get_settings()
    for name, value in settings.export().items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    with FaultProxy(settings.s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("MIMIC3D_PATIENCE_S", "1")
        store = CheckpointStore(s3_folder, "run")
        notes: list[str] = []
        stored: list[int] = []
        writer = CheckpointWriter(
            store,
            KeepPolicy(),
            before=lambda: storage.write_bytes(f"{s3_folder}/run/before", b"stored"),
            on_stored=lambda checkpoint, seconds: stored.append(checkpoint.nimg),
            on_error=notes.append,
        )
        proxy.cut()
        writer.save(snapshot(8), {"workers": 1})
        deadline = time.monotonic() + 100
        while not notes and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "nothing answers" in notes[0]
        # The training goes on: while the first cannot be stored, the last takes the second's place.
        for nimg in (16, 24):
            writer.save(snapshot(nimg), {"workers": 1})
        proxy.heal()
        writer.drain()
        assert [found.nimg for found in store.all()] == stored == [8, 24]
        assert storage.read_bytes(f"{s3_folder}/run/before") == b"stored"
        assert store.delete_incomplete() == []


def test_an_error_that_is_not_transient_is_raised_at_the_next_save(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("no folder", encoding="utf-8")
    writer = CheckpointWriter(CheckpointStore(str(tmp_path / "runs"), "run"), KeepPolicy())
    writer.save(snapshot(8), {})
    with pytest.raises(UserError, match=str(tmp_path / "runs")):
        writer.drain()
    with pytest.raises(UserError):
        writer.save(snapshot(16), {})
