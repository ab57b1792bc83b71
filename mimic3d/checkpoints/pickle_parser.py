"""A parser of network pickles that executes nothing: it interprets the opcodes and imports and calls no name.

EG3D's and Mimic3D's checkpoints are pickles, which are programs: loading one runs it. This parser interprets
the opcodes that build containers and numbers. An import gives a name; a call of one of the few names that the
format needs gives plain data (an array, a `Module`) built here; every other name is refused. Python's
unpickler is not used, so it has no hooks that could be bypassed: no name is imported and no attribute is set.
Memory is allocated only for data that the file holds. The number of opcodes is bounded, those of nested
storages included, which bounds time and memory.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class RefusedPickle(ValueError):
    """The file has something that network pickles do not have: one line that says what, and at which byte."""


@dataclass
class Module:
    """A network or a module of one: the name of its class, and its attributes."""

    class_name: str
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Name:
    """The result of an import: only its name."""

    text: str


@dataclass
class _DType:
    code: str


@dataclass(frozen=True)
class _StorageId:
    dtype: np.dtype
    key: str
    count: int


@dataclass(frozen=True)
class _Rules:
    """The names, calls and references that a pickle may have; those of nested storages are others."""

    names: Callable[[str], bool]
    calls: dict[str, Callable[..., Any]]
    persistent: Callable[[Any], Any] | None = None


class _Budget:
    """The number of opcodes that are still allowed, in the pickle and its nested storages together.

    An opcode of one byte can make an object of two hundred, and a storage can be referred to, and parsed, any
    number of times.
    """

    def __init__(self, opcodes: int) -> None:
        self.left = opcodes

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise RefusedPickle(f"it has more than {MAX_OPCODES} opcodes, more than any network's")


# A network takes tens of thousands; a checkpoint has four networks at most.
MAX_OPCODES = 2**20
_MAX_DIMENSIONS = 8
_MAX_NAME = 200
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_STORAGES = {
    "torch.FloatStorage": "<f4",
    "torch.DoubleStorage": "<f8",
    "torch.HalfStorage": "<f2",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "<i1",
    "torch.ByteStorage": "<u1",
    "torch.BoolStorage": "<u1",
}
# Classes of the released networks' modules that are pickled as plain objects; they are never imported.
_MODULE_CLASS = re.compile(r"(training|torch\.nn\.modules)(\.\w+)+")
_EASY_DICT = ("dnnlib.EasyDict", "dnnlib.util.EasyDict")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}


def read_network_pickle(data: bytes) -> Any:
    """Parses a released network pickle: containers, numbers, `Module`s, and arrays for its tensors.

    The arrays are read-only and share the file's memory.

    Raises:
        RefusedPickle: the file refers to anything else, or is damaged.
    """
    stream, budget = io.BytesIO(data), _Budget(MAX_OPCODES)

    def storage(data: Any) -> np.ndarray:
        return _storage(data, budget)

    calls = {**_CALLS, _STORAGE_CALL: storage}
    value = _parse(stream, _Rules(_is_part, calls), budget)
    if stream.read(1):
        raise RefusedPickle(f"the pickle ends at byte {stream.tell() - 1}, but the file continues")
    return value


def quoted(text: object) -> str:
    """Untrusted text, escaped and cut to fit one line of a message."""
    shown = str(text)
    return ascii(shown if len(shown) <= 80 else shown[:77] + "...")[1:-1].replace("\\'", "'")


def _parse(stream: io.BytesIO, rules: _Rules, budget: _Budget) -> Any:
    """Parses one pickle up to its STOP; the stream is then just after it."""
    machine, start, position = _Machine(rules), stream.tell(), None
    try:
        for opcode, argument, position in pickletools.genops(stream):  # noqa: B007, named in errors
            budget.spend()
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except RefusedPickle as error:
        raise RefusedPickle(f"{error} (byte {position})") from None
    except (IndexError, KeyError, TypeError):
        raise RefusedPickle(f"it is malformed or not a pickle (byte {position})") from None
    except (ValueError, OverflowError, MemoryError) as error:
        reached = "from its first byte" if position in (None, start) else f"after byte {position}"
        raise RefusedPickle(f"it is cut short or not a pickle {reached} ({quoted(error)})") from None
    raise AssertionError("genops ends with STOP or raises")


class _Machine:
    """The pickle machine, without imports and calls."""

    def __init__(self, rules: _Rules) -> None:
        self.rules = rules
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        else:
            method = getattr(self, f"_{opcode.lower()}", None)
            if method is None:
                named = f" of {quoted(argument)}" if isinstance(argument, str) else ""
                raise RefusedPickle(f"it uses {opcode}{named}, which network pickles do not use; is it one?")
            method(argument)

    def _items(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def _proto(self, _: int) -> None: ...

    def _frame(self, _: int) -> None: ...

    def _mark(self, _: None) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def _memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _binput(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _long_binput, _long_binget = _binput, _binget

    def _empty_dict(self, _: None) -> None:
        self.stack.append({})

    def _empty_list(self, _: None) -> None:
        self.stack.append([])

    def _empty_set(self, _: None) -> None:
        self.stack.append(set())

    def _empty_tuple(self, _: None) -> None:
        self.stack.append(())

    def _tuple(self, _: None) -> None:
        items = self._items()
        self.stack.append(tuple(items))

    def _tuple1(self, _: None) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def _tuple2(self, _: None) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def _tuple3(self, _: None) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def _append(self, _: None) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: None) -> None:
        self._extend(self._items())

    def _extend(self, items: list[Any]) -> None:
        _expect(self.stack[-1], list).extend(items)

    def _additems(self, _: None) -> None:
        items = self._items()
        _expect(self.stack[-1], set).update(_expect(item, str) for item in items)

    def _setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _setitems(self, _: None) -> None:
        self._set(self._items())

    def _set(self, items: list[Any]) -> None:
        target = _expect(self.stack[-1], dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_expect(key, str, int)] = value

    def _global(self, argument: str) -> None:
        self._name(argument.replace(" ", "."))

    def _stack_global(self, _: None) -> None:
        name, module = _expect(self.stack.pop(), str), _expect(self.stack.pop(), str)
        self._name(f"{module}.{name}")

    def _name(self, text: str) -> None:
        if not self.rules.names(text):
            raise RefusedPickle(
                f"it names {quoted(text)}, which network pickles do not use; nothing was executed"
            )
        self.stack.append(_Name(text))

    def _reduce(self, _: None) -> None:
        arguments, function = _expect(self.stack.pop(), tuple), self.stack.pop()
        name = _expect(function, _Name).text
        if name not in self.rules.calls:
            raise RefusedPickle(f"it calls {quoted(name)}; nothing was executed")
        try:
            self.stack.append(self.rules.calls[name](*arguments))
        except RefusedPickle as error:
            raise RefusedPickle(f"{name}: {error}") from None

    def _newobj(self, _: None) -> None:
        arguments, name = self.stack.pop(), _expect(self.stack.pop(), _Name).text
        if arguments != () or not (name in _EASY_DICT or _MODULE_CLASS.fullmatch(name)):
            raise RefusedPickle(f"it makes a {quoted(name)} from arguments, which network pickles do not do")
        self.stack.append({} if name in _EASY_DICT else Module(name.rsplit(".", 1)[-1]))

    def _build(self, _: None) -> None:
        state, target = self.stack.pop(), _expect(self.stack[-1], Module, _DType)
        if isinstance(target, Module):
            target.state.update(_expect(state, dict))
        elif _expect(state, tuple)[1] not in ("<", "|"):
            raise RefusedPickle("it holds numbers of another byte order")

    def _binpersid(self, _: None) -> None:
        if self.rules.persistent is None:
            raise RefusedPickle("it refers to objects outside of it, which network pickles do not")
        self.stack.append(self.rules.persistent(self.stack.pop()))


def _expect(value: Any, *kinds: type) -> Any:
    # bool is an int to Python, not to a format.
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(kind.__name__.strip("_") for kind in kinds)
        raise RefusedPickle(f"a {type(value).__name__.strip('_')} stands where a {wanted} belongs")
    return value


def _module(meta: Any) -> Module:
    """An object of a persistent class; its source text, which the format includes, is not read."""
    meta = _expect(meta, dict)
    if _expect(meta.get("type"), str) != "class":
        raise RefusedPickle("it is not a persistent class")
    return Module(_expect(meta.get("class_name"), str), _expect(meta.get("state"), dict))


def _ordered_dict(*arguments: Any) -> dict[Any, Any]:
    if arguments:
        raise RefusedPickle("it is made from arguments")
    return {}


def _parameter(array: Any, requires_grad: Any, hooks: Any) -> np.ndarray:
    return _expect(array, np.ndarray)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> np.ndarray:
    storage = _expect(storage, np.ndarray)
    size, stride = _expect(size, tuple), _expect(stride, tuple)
    # Checked before the product is computed, since that of many large numbers would fill the memory.
    if len(size) > _MAX_DIMENSIONS or len(stride) != len(size):
        raise RefusedPickle(
            f"a tensor of {len(size)} dimensions and {len(stride)} strides is not a network's"
        )
    numbers = [_expect(number, int) for number in (offset, *size, *stride)]
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min(numbers) < 0 or count > storage.size or last >= storage.size > 0:
        raise RefusedPickle(f"a tensor of shape {quoted(size)} reaches beyond its storage of {storage.size}")
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _scalar(dtype: Any, data: Any) -> Any:
    dtype = np.dtype("<" + _expect(dtype, _DType).code)
    if len(_expect(data, bytes)) != dtype.itemsize:
        raise RefusedPickle("its bytes do not fit its type")
    return np.frombuffer(data, dtype)[0].item()


def _dtype(code: Any, *rest: Any) -> _DType:
    if _expect(code, str) not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"):
        raise RefusedPickle(f"type {quoted(code)} is not a number's")
    return _DType(code)


def _storage(data: Any, budget: _Budget) -> np.ndarray:
    """A storage in PyTorch's format before its zip files: five pickles, then count and bytes."""
    data = _expect(data, bytes)
    stream = io.BytesIO(data)
    magic, protocol, system = (_parse(stream, _PLAIN, budget) for _ in range(3))
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
        raise RefusedPickle("it is not a storage as PyTorch writes them into pickles")
    if _expect(system, dict).get("little_endian") is not True:
        raise RefusedPickle("it holds numbers of another byte order")
    found = _expect(_parse(stream, _STORAGE, budget), _StorageId)
    keys = _parse(stream, _PLAIN, budget)
    count, start = int.from_bytes(stream.read(8), "little"), stream.tell()
    declared, held = found.count * found.dtype.itemsize, len(data) - start
    if keys != [found.key] or count != found.count or held != declared:
        raise RefusedPickle(f"it declares {declared} bytes of numbers, but has {held}")
    return np.frombuffer(data, found.dtype, found.count, start)


def _storage_id(identity: Any) -> _StorageId:
    kind, name, key, _, count, view = _expect(identity, tuple)
    if kind != "storage" or view is not None or _expect(count, int) < 0:
        raise RefusedPickle("it refers to something other than a whole storage")
    return _StorageId(np.dtype(_STORAGES[_expect(name, _Name).text]), _expect(key, str), count)


_STORAGE_CALL = "torch.storage._load_from_bytes"
_CALLS: dict[str, Callable[..., Any]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _module,
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
}
_PLAIN = _Rules(lambda name: False, {})
_STORAGE = _Rules(_STORAGES.__contains__, {}, _storage_id)


def _is_part(name: str) -> bool:
    """True if a network pickle may refer to the object."""
    known = name in _CALLS or name == _STORAGE_CALL or name in _EASY_DICT
    return known or (len(name) <= _MAX_NAME and _MODULE_CLASS.fullmatch(name) is not None)
