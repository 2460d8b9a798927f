"""The tensors and plain containers of a pickle, read without running any of it.

A pickle is a program for a stack machine, and Python's unpickler calls whatever functions it names.
This is another machine for the same program, with the instructions that torch.save writes; it
calls nothing. A name of OPAQUE (module classes) becomes an inert Opaque that keeps the state which
the pickle gives it; a few other names (tensors, OrderedDict) have a meaning of their own here; any
other name is refused, and so is any other instruction.
"""

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

MAX_INSTRUCTIONS = 5_000_000  # CheXNet's whole module has about 60,000
# Classes of modules, their functions (`_backend` of torch 0.4), numpy's scalars.
OPAQUE = re.compile(
    r"(torch\.nn\.(modules|backends|parallel)(\.\w+)*|torchvision\.models(\.\w+)*) \w+"
    r"|numpy(\._?core)?\.multiarray scalar|numpy dtype|_codecs encode|torch device"
)
_DICTS = ("collections OrderedDict", "builtins dict", "__builtin__ dict")
_SETS = ("builtins set", "__builtin__ set")
_STORAGE = re.compile(r"torch(\.cuda|\.storage)? (\w+Storage)")
_TENSORS = ("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2")
_PARAMETERS = (
    "torch._utils _rebuild_parameter",
    "torch.nn.parameter Parameter",
    "torch.autograd.variable Variable",
)


class RefusedPickle(Exception):
    """The pickle holds what is not admitted, or is damaged. One line."""


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle names: 'module name'. Never imported."""

    full: str


@dataclass
class Opaque:
    """What stands for an object of an OPAQUE class: the name, and what the pickle gave it."""

    name: str
    state: Any = None


@dataclass
class StorageRef:
    """A block of numbers in the file: kind as 'FloatStorage', its key there, numbers in all, and
    where this view of it begins."""

    kind: str
    key: str
    numel: int
    offset: int = 0


@dataclass
class TensorRef:
    """A tensor of a storage: all in numbers, not in bytes. Checked when it is made a tensor."""

    storage: StorageRef
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Mark:
    """Where the items of a container begin on the stack."""


@dataclass
class _Machine:
    """The stack, what was put below marks, and the memo of objects met again."""

    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop(self) -> Any:
        value = self.stack.pop()
        if isinstance(value, _Mark):
            raise RefusedPickle("a mark where a value should be")
        return value

    def items(self) -> list[Any]:
        """All values down to the last mark, which goes too."""
        for depth in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[depth], _Mark):
                values = self.stack[depth + 1 :]
                del self.stack[depth:]
                return values
        raise RefusedPickle("no mark")

    def top(self, kind: type | tuple[type, ...]) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise RefusedPickle(f"{type(self.stack[-1]).__name__} cannot be filled")
        return self.stack[-1]


def read_pickle(file: IO[bytes]) -> Any:
    """The value of the pickle that begins here; `file` then stands behind it.

    Dicts (OrderedDict too), lists, tuples, sets, numbers, text, bytes, and the classes above.
    RefusedPickle for anything else.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > MAX_INSTRUCTIONS:
                raise RefusedPickle(f"more than {MAX_INSTRUCTIONS} instructions")
            if opcode.name == "STOP":
                return machine.pop()
            _execute(machine, opcode.name, argument)
    except RefusedPickle:
        raise
    # Every error of a damaged program: values of other kinds than an instruction needs.
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise RefusedPickle(f"damaged ({type(error).__name__}: {error})") from error
    raise RefusedPickle("it has no end")


def _execute(machine: _Machine, name: str, argument: Any) -> None:
    if name in _VALUES:
        machine.stack.append(argument)
    elif name in _CONSTANTS:
        machine.stack.append(_CONSTANTS[name]())
    elif name in _INSTRUCTIONS:
        _INSTRUCTIONS[name](machine, argument)
    elif name not in ("PROTO", "FRAME"):
        raise RefusedPickle(f"the instruction {name}")


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def build(machine: _Machine, _: Any) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(values)))

    return build


def _append(machine: _Machine, _: Any) -> None:
    value = machine.pop()
    machine.top(list).append(value)


def _appends(machine: _Machine, _: Any) -> None:
    values = machine.items()
    machine.top(list).extend(values)


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.top(dict)[_hashable(key)] = value


def _set_items(machine: _Machine, _: Any) -> None:
    values = machine.items()
    machine.top(dict).update(_pairs(values))


def _pairs(values: list[Any]) -> dict[Any, Any]:
    return {_hashable(key): value for key, value in zip(values[::2], values[1::2], strict=True)}


def _hashable(key: Any) -> Any:
    """Keys are text and numbers: no object of the pickle decides how it is compared."""
    if not isinstance(key, str | int | float | bytes):
        raise RefusedPickle(f"{type(key).__name__} as a key")
    return key


def _add_items(machine: _Machine, _: Any) -> None:
    values = machine.items()
    machine.top(set).update(_hashable(value) for value in values)


def _put(machine: _Machine, argument: Any) -> None:
    machine.memo[int(argument)] = machine.stack[-1]


def _memoize(machine: _Machine, _: Any) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _get(machine: _Machine, argument: Any) -> None:
    machine.stack.append(machine.memo[int(argument)])


def _global(machine: _Machine, argument: Any) -> None:
    machine.stack.append(_name(str(argument)))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.stack.append(_name(f"{module} {name}"))


def _name(full: str) -> Name:
    """RefusedPickle for a name that has no meaning here; the message names it."""
    known = (*_DICTS, *_SETS, *_TENSORS, *_PARAMETERS, "torch Size")
    if full in known or OPAQUE.fullmatch(full) or _STORAGE.fullmatch(full):
        return Name(full)
    raise RefusedPickle(f"it names {full.replace(' ', '.')!r}"[:120])


def _reduce(machine: _Machine, _: Any) -> None:
    arguments, function = machine.pop(), machine.pop()
    machine.stack.append(_call(function, arguments))


def _call(function: Any, arguments: Any) -> Any:
    """What a call of a named function or class stands for."""
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise RefusedPickle(f"a call of {type(function).__name__}")
    if function.full in _TENSORS:
        storage, offset, size, stride = arguments[:4]
        if not isinstance(storage, StorageRef):
            raise RefusedPickle(f"a tensor of {type(storage).__name__}")
        return TensorRef(storage, offset, tuple(size), tuple(stride))
    if function.full in _PARAMETERS:
        if not arguments or not isinstance(arguments[0], TensorRef):
            raise RefusedPickle("a parameter without a tensor")
        return arguments[0]
    if function.full in _DICTS:
        return {_hashable(key): value for key, value in arguments[0]} if arguments else {}
    if function.full in _SETS:
        return {_hashable(value) for value in arguments[0]} if arguments else set()
    if function.full == "torch Size":
        return tuple(arguments[0])
    if OPAQUE.fullmatch(function.full):
        return Opaque(function.full)
    raise RefusedPickle(f"a call of {function.full!r}")


def _build(machine: _Machine, _: Any) -> None:
    """State for the object on top: kept by an Opaque, and of no meaning for a tensor (whether it
    needs a gradient) or a dict (attributes of an OrderedDict)."""
    state = machine.pop()
    target = machine.top((Opaque, TensorRef, dict))
    if isinstance(target, Opaque):
        target.state = state


def _persistent(machine: _Machine, _: Any) -> None:
    """torch's references: to a storage, or in old files to a class with its source code."""
    reference = machine.pop()
    if not isinstance(reference, tuple) or not reference:
        raise RefusedPickle("a reference that is not torch's")
    if reference[0] == "module" and isinstance(reference[1], Name):
        machine.stack.append(reference[1])
        return
    kind, key, numel = reference[1], reference[2], reference[4]
    match = _STORAGE.fullmatch(kind.full) if isinstance(kind, Name) else None
    if reference[0] != "storage" or match is None or not isinstance(key, str):
        raise RefusedPickle("a reference that is not torch's")
    view = reference[5] if len(reference) > 5 else None  # (its key, where it begins, its length)
    machine.stack.append(StorageRef(match[2], key, numel, view[1] if view else 0))


# fmt: off
_VALUES = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
))
# fmt: on
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "MARK": _Mark,
}
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.items())),
    "LIST": lambda machine, _: machine.stack.append(machine.items()),
    "DICT": lambda machine, _: machine.stack.append(_pairs(machine.items())),
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "ADDITEMS": _add_items,
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _memoize,
    "GET": _get,
    "BINGET": _get,
    "LONG_BINGET": _get,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
