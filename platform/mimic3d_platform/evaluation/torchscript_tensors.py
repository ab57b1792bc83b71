"""Reads the tensors of a TorchScript archive, such as CLIP's, without running the program in it."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
}


class _Module:
    """A module of the archive: its attributes."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


class _Reader(pickle.Unpickler):
    """Takes every class of the archive for a `_Module`, and knows no other name but those of tensors."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(archive.open(f"{folder}/data.pkl"))
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise ValueError(f"it names {module}.{name}, which archives of weights do not need")

    def persistent_load(self, identity: Any) -> Tensor:
        _, dtype, key, _, count = identity
        data = self.archive.read(f"{self.folder}/data/{key}")
        return torch.frombuffer(bytearray(data), dtype=dtype, count=count)


def _tensor(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> Tensor:
    return storage.as_strided(size, stride, offset)


def torchscript_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of an archive by the dotted names of its modules.

    Raises:
        ValueError: no archive, or one that holds other things than modules, numbers and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            listed = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            [pickled] = [name for name in listed if name.count("/") == 1]
            root = _Reader(archive, pickled.partition("/")[0]).load()
    except (zipfile.BadZipFile, pickle.UnpicklingError, KeyError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is not a TorchScript archive of weights: {error}") from None
    tensors: dict[str, Tensor] = {}
    _collect(root, "", tensors)
    return tensors


def _collect(module: object, prefix: str, tensors: dict[str, Tensor]) -> None:
    if isinstance(module, Tensor):
        tensors[prefix] = module
    elif isinstance(module, _Module):
        for name, value in module.attributes.items():
            _collect(value, f"{prefix}.{name}" if prefix else name, tensors)
