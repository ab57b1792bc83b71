"""Pickles that were made to harm: by a file's own size in opcodes, by sharing, by names, by pretence.

Calls, cut-short files, misshapen tensors and declared sizes are in `test_released.py`, chains and nests in
`test_released_start.py`.
"""

import gzip
import io
import os
import pickle
import pickletools
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from released_pickles import Call, Persistent, checkpoint, dump
from test_released import legacy_storage, refusal, small_generator

from mimic3d.checkpoints import pickle_parser
from mimic3d.checkpoints.pickle_parser import MAX_OPCODES, RefusedPickle, read_network_pickle
from mimic3d.checkpoints.released import import_released

torch.set_num_threads(1)


def short(text: str) -> bytes:
    """The opcode that pushes a short text."""
    return b"\x8c" + bytes([len(text)]) + text.encode()


def named(module: str, name: str) -> bytes:
    """The opcodes that push what is called `name` in `module`."""
    return short(module) + short(name) + b"\x93"


OS_SYSTEM = named(os.system.__module__, "system")
TENSOR = named("torch._utils", "_rebuild_tensor_v2")
STORAGE = named("torch.storage", "_load_from_bytes")


def storage_bytes(count: int = 6) -> bytes:
    """What PyTorch puts into a pickle for `count` float32 zeros."""
    return torch.zeros(count)._typed_storage().__reduce__()[1][0]


def binbytes(data: bytes) -> bytes:
    return b"B" + len(data).to_bytes(4, "little") + data


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """A limit of opcodes that is reached sooner than the real one, which takes seconds."""
    monkeypatch.setattr(pickle_parser, "MAX_OPCODES", 2000)
    return 2000


# Code, in places where a pickle does not usually hold any.


@pytest.mark.parametrize(
    ("data", "said"),
    [
        # A reduction whose function is got from the memo, after an innocent value took its first place.
        (b"\x80\x04" + OS_SYSTEM + b"\x94h\x00" + short("touch executed") + b"\x85R.", "names posix.system"),
        # A persistent id that is itself a call, and one of protocol 0.
        (b"\x80\x04" + OS_SYSTEM + short("touch executed") + b"\x85RQ.", "names posix.system"),
        (b"Ptouch executed\n.", "it uses PERSID of touch executed"),
        # An object made with keyword arguments, and one whose state is set by an attribute.
        (b"\x80\x04" + named("training.networks", "G") + b")}\x92.", "it uses NEWOBJ_EX"),
        (b"\x80\x04" + named("training.networks", "G") + b")\x81(}}\x86b.", "malformed or not a pickle"),
        (b"\x80\x04" + named("training.networks", "G") + b")\x81)}\x86b.", "tuple stands where a dict"),
        # A name reached through an attribute of another, through a copied dotted path, and a very long one.
        (
            b"\x80\x04" + named("torch", "_utils.os.system") + short("x") + b"\x85R.",
            "it names torch._utils.os",
        ),
        (
            b"\x80\x04" + named("training", "os.system") + short("x") + b"\x85R.",
            "it calls training.os.system",
        ),
        (b"\x80\x04ctraining" + b".a" * 10**6 + b"\nb\n.", "it names training.a.a"),
        # What PyTorch's own loader would execute.
        (
            b"\x80\x04" + named("torch._utils", "_rebuild_wrapper_subclass") + b")R.",
            "names torch._utils._rebu",
        ),
        (b"\x80\x04" + named("torch._dynamo.utils", "run") + b")R.", "names torch._dynamo.utils.run"),
        (b"\x80\x04" + named("torch.fx", "GraphModule") + b")R.", "names torch.fx.GraphModule"),
        (
            b"\x80\x04" + named("torch.nn.modules.container", "Sequential") + b")R.",
            "it calls torch.nn.modules",
        ),
        # Bytes handed over out of band, and another registry than the memo.
        (b"\x80\x05\x97.", "it uses NEXT_BUFFER"),
        (b"\x80\x05\x96\x08\0\0\0\0\0\0\0abcdefgh.", "it uses BYTEARRAY8"),
        (b"\x80\x04}\x8c\x05G_ema" + b"h\x07s.", "malformed or not a pickle"),
    ],
)
def test_opcodes_in_unusual_places_execute_nothing(tmp_path: Path, data: bytes, said: str) -> None:
    message = refusal(tmp_path, data)
    assert said.replace("posix", os.system.__module__) in message


@pytest.mark.parametrize("where", range(5))
def test_a_call_in_any_pickle_of_a_storage_is_refused(tmp_path: Path, where: int) -> None:
    parts: list[object] = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, 0, ["0"]]
    parts[where] = Call(os.system, f"touch {tmp_path / 'executed'}")
    inner = b"".join(pickle.dumps(part, 4) for part in parts)
    call = b"\x80\x04" + STORAGE + binbytes(inner) + b"\x85R."
    message = refusal(tmp_path, call)
    # The fourth must be a whole storage before the fifth is looked at.
    assert "which network pickles do not use" in message or (where == 4 and "stands where" in message)


def test_a_storage_within_a_storage_is_refused(tmp_path: Path) -> None:
    deeper = Call(torch.storage._load_from_bytes, storage_bytes())
    for _ in range(3):
        deeper = Call(torch.storage._load_from_bytes, legacy_storage(deeper))
    assert "nothing was executed" in refusal(tmp_path, dump({"G_ema": deeper}))


# Time and memory.


@pytest.mark.parametrize("opcode", [b"\x8f", b"}", b"(", b"N", b"}\x94"])
def test_opcodes_without_end_are_cut_off(tmp_path: Path, opcode: bytes, limit: int) -> None:
    assert f"it has more than {limit} opcodes" in refusal(tmp_path, b"\x80\x04" + opcode * (2 * limit))


def test_repeated_references_to_a_storage_are_cut_off(tmp_path: Path, limit: int) -> None:
    # Its first pickle takes a tenth of all opcodes; it is named a hundred times.
    inner = b"\x80\x04" + b"N" * (limit // 10) + b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
    inner += storage_bytes().split(b"\x19.", 1)[1]
    again = b"h\x00h\x01\x85R"
    data = b"\x80\x04" + STORAGE + b"\x94" + binbytes(inner) + b"\x94" + again * 100 + b"N."
    assert len(data) < limit + len(again) * 100
    assert f"it has more than {limit} opcodes" in refusal(tmp_path, data)


def test_a_network_is_far_from_the_limit_of_opcodes() -> None:
    generator = small_generator()
    count = sum(1 for _ in pickletools.genops(checkpoint(generator)))
    # The paper's has twice as many blocks; a checkpoint holds four networks.
    assert 2 * 4 * count < MAX_OPCODES / 4


def test_the_product_of_a_hundred_thousand_sizes_is_not_computed(tmp_path: Path) -> None:
    large = b"\x8a\xfe" + b"\xff" * 253 + b"\x7f"
    sizes = b"(" + b"h\x02" * 100_000 + b"t\x94"
    data = b"\x80\x04" + TENSOR + b"\x94" + STORAGE + binbytes(storage_bytes()) + b"\x85R\x94"
    data += large + b"\x94" + sizes + b"h\x00(h\x01K\x00h\x03h\x03\x89}tR."
    assert "a tensor of 100000 dimensions and 100000 strides" in refusal(tmp_path, data)


@pytest.mark.parametrize(("size", "stride"), [((1,) * 40, (1,) * 40), ((2, 3), (1,)), ((6,), ())])
def test_invalid_dimensions_are_refused(tmp_path: Path, size: tuple, stride: tuple) -> None:
    storage = torch.storage.TypedStorage([0.0] * 6, dtype=torch.float32, _internal=True)
    tensor = Call(torch._utils._rebuild_tensor_v2, storage, 0, size, stride, False, {})
    said = f"a tensor of {len(size)} dimensions and {len(stride)} strides"
    assert said in refusal(tmp_path, dump({"G_ema": tensor}))


def test_tensors_that_share_memory_are_refused(tmp_path: Path) -> None:
    generator = small_generator()
    tensors = generator.state_dict()
    # One object, which a pickle holds once, however many tensors are made of it.
    numbers = torch.zeros(max(tensor.numel() for tensor in tensors.values())).untyped_storage()
    numbers = torch.storage.TypedStorage(wrap_storage=numbers, dtype=torch.float32, _internal=True)
    shared = {
        name: Call(
            torch._utils._rebuild_tensor_v2, numbers, 0, tuple(tensor.shape), tensor.stride(), False, {}
        )
        for name, tensor in tensors.items()
    }
    assert "its tensors share memory" in refusal(tmp_path, checkpoint(generator, change=shared))


def test_a_file_larger_than_any_checkpoint_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "network.pkl"
    with file.open("wb") as sparse:
        sparse.truncate(2**40)
    with pytest.raises(ValueError, match=f"it has {2**40} bytes, more than any network pickle"):
        import_released(file, tmp_path / "generator")
    assert list(tmp_path.iterdir()) == [file]


def test_special_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pkl")
    for name, said in {
        "pipe.pkl": "no such file",
        ".": "it is a folder",
        "/dev/zero": "no such file",
    }.items():
        with pytest.raises(ValueError, match=said):
            import_released(tmp_path / name, tmp_path / "generator")


# Structures that are not what they stand for.


def itself() -> bytes:
    """A network that is a part of itself, through the memo; no pickler makes one of a reduction."""
    parts = b"}\x94"
    state = b"}" + short("_modules") + parts + b"s\x94"
    meta = b"}(" + short("type") + short("class") + short("class_name") + short("Part") + short("state")
    module = named("torch_utils.persistence", "_reconstruct_persistent_obj") + meta + b"h\x01u\x85R\x94"
    # In the memo are 0 the parts, 1 the state, 2 the network: parts["again"] = network.
    cycle = b"h\x00" + short("again") + b"h\x02s"
    return b"\x80\x04" + state + module + cycle + b"}" + short("G_ema") + b"h\x02s."


def test_a_network_that_is_a_part_of_itself_is_refused(tmp_path: Path) -> None:
    assert "the network is not a tree" in refusal(tmp_path, itself())


def test_a_list_and_a_dictionary_that_contain_themselves_are_parsed_once(tmp_path: Path) -> None:
    for data in (b"\x80\x04]\x94h\x00a.", b"\x80\x04}\x94" + short("G_ema") + b"h\x00s."):
        assert "it holds no network G_ema" in refusal(tmp_path, data)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"_modules": []}, "the _modules of a Part are not a dictionary"),
        ({"_parameters": {"weight": 3.5}}, "weight is not a tensor"),
        ({"_buffers": {"w_avg": {"a": 1}}}, "w_avg is not a tensor"),
        ({"_modules": {"backbone": [1]}}, "backbone is not a module"),
        ({"_modules": {"a\nb": "x"}}, r"a\nb is not a module"),
        ({"_parameters": {"x" * 1000: 1}}, "x... is not a tensor"),
    ],
)
def test_wrong_types_in_a_network_are_named(tmp_path: Path, state: dict, said: str) -> None:
    assert said in refusal(tmp_path, dump({"G_ema": Persistent("Part", state)}))


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"type": torch.zeros(3), "class_name": "G", "state": {}}, "a ndarray stands where a str"),
        ({"type": "function", "class_name": "G", "state": {}}, "it is not a persistent class"),
        ({"type": "class", "class_name": 7, "state": {}}, "a int stands where a str"),
        ({"type": "class", "class_name": "G", "state": [1]}, "a list stands where a dict"),
        ({"type": "class", "class_name": "G"}, "a NoneType stands where a dict"),
    ],
)
def test_wrong_types_in_a_persistent_class_are_named(tmp_path: Path, meta: dict, said: str) -> None:
    class Meta(Persistent):
        def __reduce__(self):
            return super().__reduce__()[0], (meta,)

    assert said in refusal(tmp_path, dump({"G_ema": Meta("G", {})}))


def test_a_number_type_that_is_an_array_is_refused_by_name() -> None:
    array = b"h\x00(h\x01K\x00K\x06\x85K\x01\x85\x89}tR"
    data = b"\x80\x04" + TENSOR + b"\x94" + STORAGE + binbytes(storage_bytes()) + b"\x85R\x94"
    data += named("numpy", "dtype") + array + b"\x89\x88\x87R."
    with pytest.raises(RefusedPickle, match=r"numpy.dtype: a ndarray stands where a str belongs"):
        read_network_pickle(data)


def test_archives_and_arrays_are_not_pickles(tmp_path: Path) -> None:
    zipped, tarred, array = io.BytesIO(), io.BytesIO(), io.BytesIO()
    zipfile.ZipFile(zipped, "w").close()
    tarfile.open(fileobj=tarred, mode="w").close()
    np.save(array, np.zeros(3))
    for data in (
        zipped.getvalue(),
        tarred.getvalue(),
        array.getvalue(),
        gzip.compress(dump({"G_ema": None})),
    ):
        assert "not a pickle" in refusal(tmp_path, data) or "is it one?" in refusal(tmp_path, data)
