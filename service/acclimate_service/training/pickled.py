"""What ``torch.save`` pickles, read without unpickling: no name is looked up, nothing is called.

A pickle is a program for a machine that builds objects and calls functions. Of its
instructions only those are followed here that put dicts, lists, tuples, texts and
numbers together. What stands for a tensor becomes a `Laid`, a few numbers that say
where its elements lie; any other object that training scripts save becomes `OPAQUE`;
and a pickle that names anything else is refused.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

STEPS: Final = 500_000  # instructions of one pickle: some 25 a tensor, a second in all
DIMENSIONS: Final = 16


class Unfit(Exception):
    """A pickle that is not one of tensors; the message completes "the weights file ..."."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A row of elements under a key; ``kind`` is torch's word, such as FloatStorage."""

    key: str
    kind: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Laid:
    """A tensor: which elements of what is stored, in which order."""

    stored: Stored
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Opaque:
    """Something that is no tensor and that nobody here needs."""


OPAQUE: Final = Opaque()
_DICT: Final = "collections.OrderedDict"
_TENSORS: Final = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_PARAMETER: Final = "torch._utils._rebuild_parameter"
# What stands beside the weights in a checkpoint, or for a tensor that is not a plain one.
_KNOWN: Final = frozenset(
    {
        *("builtins.set", "builtins.complex", "builtins.bytearray", "_codecs.encode"),
        *("__builtin__.set", "__builtin__.complex", "__builtin__.bytearray"),
        *("collections.Counter", "collections.defaultdict", "builtins.dict", "__builtin__.dict"),
        *("torch.Size", "torch.device", "torch.Tensor", "torch.nn.parameter.Parameter"),
        "torch.serialization._get_layout",
        "torch._tensor._rebuild_from_type_v2",
    }
)


@dataclass(frozen=True)
class _Name:
    """A global's name: a word, and never what it names."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Pickled:
    """What a pickle says, and every stored row that it speaks of, by key."""

    value: Any
    stored: Mapping[str, Stored]


def read(file: BinaryIO) -> Pickled:
    """Read the next pickle of *file*, which is left behind its end.

    Raises:
        Unfit: it is damaged, too long, or holds what no state dict holds.
    """
    machine = _Machine()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of texts in a form that is refused below anyhow
            for opcode, argument, _ in pickletools.genops(file):
                machine.spend(1)
                machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unfit(f"is damaged ({type(error).__name__}: {str(error)[:100]})") from error
    return Pickled(value=machine.result, stored=machine.stored)


class _Machine:
    """The few instructions of a pickle that build plain values."""

    def __init__(self) -> None:
        self.result: Any = None
        self.stored: dict[str, Stored] = {}
        self._left = STEPS
        self._stack: list[Any] = []
        self._marks: list[int] = []  # how high the stack was at each
        self._memo: dict[int, Any] = {}
        self._steps: dict[str, Callable[[Any], None]] = {
            "PROTO": self._ignore,
            "MARK": self._mark,
            "BINPUT": self._remember,
            "LONG_BINPUT": self._remember,
            "BINGET": self._recall,
            "LONG_BINGET": self._recall,
            "TUPLE": self._tuple,
            "TUPLE1": lambda _: self._short_tuple(1),
            "TUPLE2": lambda _: self._short_tuple(2),
            "TUPLE3": lambda _: self._short_tuple(3),
            "APPEND": self._append,
            "APPENDS": self._append_many,
            "SETITEM": self._set_one,
            "SETITEMS": self._set_many,
            "GLOBAL": self._global,
            "BINPERSID": self._stored,
            "REDUCE": self._called,
            "BUILD": self._built,
            "STOP": self._stop,
        }

    def spend(self, steps: int) -> None:
        """Count work.

        Raises:
            Unfit: there was too much.
        """
        self._left -= steps
        if self._left < 0:
            raise Unfit(f"describes its tensors in more than {STEPS} steps")

    def step(self, opcode: str, argument: Any) -> None:
        """Follow one instruction.

        Raises:
            Unfit: it is none of those that are followed.
            IndexError, KeyError, ValueError, TypeError: it finds less than it needs.
        """
        if opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode]())
        elif opcode in _LITERALS:
            self._stack.append(argument)
        elif opcode in self._steps:
            self._steps[opcode](argument)
        else:
            raise Unfit(f"uses the pickle instruction {opcode}, which no state dict needs")

    def _since_mark(self) -> list[Any]:
        at = self._marks.pop()
        found = self._stack[at:]
        del self._stack[at:]
        return found

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _ignore(self, _: Any) -> None:
        pass

    def _remember(self, key: int) -> None:
        self._memo[key] = self._stack[-1]

    def _recall(self, key: int) -> None:
        self._stack.append(self._memo[key])

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _short_tuple(self, length: int) -> None:
        found = tuple(self._stack[-length:])
        if len(found) != length:
            raise IndexError("the stack is empty")
        del self._stack[-length:]
        self._stack.append(found)

    def _append(self, _: Any) -> None:
        value = self._stack.pop()
        self._extend([value])

    def _extend(self, values: list[Any]) -> None:
        into = self._stack[-1]
        if isinstance(into, list):
            into.extend(values)
        elif not isinstance(into, Opaque):
            raise TypeError("appends to what is no list")

    def _set(self, pairs: list[Any]) -> None:
        into = self._stack[-1]
        if not isinstance(into, (dict, Opaque)):
            raise TypeError("sets an item of what is no dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # Other keys may be nested so deeply that hashing them would not return.
            if isinstance(into, dict):
                into[key if isinstance(key, (str, int)) else OPAQUE] = value

    def _set_one(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _set_many(self, _: Any) -> None:
        self._set(self._since_mark())

    def _append_many(self, _: Any) -> None:
        self._extend(self._since_mark())

    def _global(self, text: str) -> None:
        name = text.replace(" ", ".")
        module, _, last = name.rpartition(".")
        plain = module in ("torch", "torch.storage") and last.isidentifier()
        rebuilds = module == "torch._utils" and last.startswith("_rebuild_")
        if not (plain or rebuilds or name == _DICT or name in _KNOWN):
            raise Unfit(f"is a pickle that names {name[:80]!r}, and nothing of it is run")
        self._stack.append(_Name(name))

    def _stored(self, _: Any) -> None:
        kind, name, key, _place, count = self._stack.pop()[:5]
        if kind != "storage" or not isinstance(name, _Name):
            raise ValueError("an object from elsewhere that is no storage")
        last = name.text.rpartition(".")[2]
        found = Stored(key=_text(key), kind=last, count=_count(count))
        self.stored[found.key] = found
        self._stack.append(found)

    def _called(self, _: Any) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise TypeError("calls what is no name")
        if name.text in _TENSORS:
            self._stack.append(_laid(*arguments[:4]))
        elif name.text == _PARAMETER:
            self._stack.append(arguments[0])
        elif name.text == _DICT:
            self._stack.append({})
            pairs = arguments[0] if arguments else ()
            self.spend(len(pairs))  # one list may be named again and again
            for key, value in pairs:
                self._set([key, value])
        else:
            self._stack.append(OPAQUE)

    def _built(self, _: Any) -> None:
        self._stack.pop()  # attributes of the object below, which are of no use here

    def _stop(self, _: Any) -> None:
        self.result = self._stack.pop()


def _laid(stored: Any, offset: Any, shape: Any, strides: Any) -> Laid:
    if not isinstance(stored, Stored) or len(shape) != len(strides) or len(shape) > DIMENSIONS:
        raise ValueError("a tensor of no known form")
    return Laid(
        stored=stored,
        offset=_count(offset),
        shape=tuple(map(_count, shape)),
        strides=tuple(map(_count, strides)),
    )


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise ValueError("a number of elements that cannot be")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("a key that is no text")
    return value


_CONSTANTS: Final[dict[str, Callable[[], Any]]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: OPAQUE,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_LITERALS: Final = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
)
