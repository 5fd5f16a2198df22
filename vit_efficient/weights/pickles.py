"""Reads a pickle as a description: no object is unpickled, nothing is imported, nothing is called
but the few functions of a given table.

`torch.save` writes a small part of the pickle language. Here that part is a stack machine over
plain values; whatever else a file holds is refused by name. So the file of a stranger can neither
run code nor claim memory (an unpickler allocates what a pickle says, before it reads on).
"""
from collections.abc import Callable, Mapping
import io
import pickletools
from typing import Any

from vit_efficient.weights.entry import FileError

MAX_BYTES = 4 << 20         # of a pickle; that of 1,000 arrays has 0.2 MB

LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
            "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES")
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
STORE, FETCH = ("BINPUT", "LONG_BINPUT"), ("BINGET", "LONG_BINGET")


class Built:
    """A value that the pickle completes after it has made it."""

    def build(self, state: Any) -> None:
        raise NotImplementedError


class Namespace(dict, Built):
    """What `argparse.Namespace` holds."""

    def build(self, state: Any) -> None:
        self.update(state)


class Ordered(dict, Built):
    """What a `collections.OrderedDict` holds, without the attributes that torch gives it."""

    def build(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise ValueError("attributes must stand in a dict")


def describe(data: bytes, known: Mapping[str, Any], persistent: Callable[[Any], Any]) -> Any:
    """The value that a pickle spells.

    Args:
      data: the pickle, at most MAX_BYTES.
      known: "module name" -> what stands for it; what is callable may be called.
      persistent: what stands for a persistent id.
    Raises:
      FileError: it needs a name that is not `known`, or is no whole pickle of torch's kind.
    """
    if len(data) > MAX_BYTES:
        raise FileError(f"a pickle of {len(data)} bytes, more than {MAX_BYTES}")
    machine = _Machine(known, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
            machine.do(opcode.name, argument)
        (value,) = machine.stack
        return value
    except FileError:
        raise
    except Exception as error:          # whatever the pickle does wrong, it is the file's mistake
        raise FileError(f"the pickle is damaged: {type(error).__name__} {error}"[:300]) from error


class _Machine:
    """The stack of a pickle that is being read, its marks and its memo."""

    def __init__(self, known: Mapping[str, Any], persistent: Callable[[Any], Any]):
        self.known, self.persistent = known, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        """One instruction."""
        stack = self.stack
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in STORE:
            self.memo[argument] = stack[-1]
        elif name in FETCH:
            stack.append(self.memo[argument])
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in SHORT_TUPLES:
            stack.append(tuple(self.take(SHORT_TUPLES[name])))
        elif name == "GLOBAL":
            self.look_up(argument)
        elif name in ACTIONS:
            ACTIONS[name](self)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise FileError(f"the pickle uses {name}, which torch.save has no use for")

    def take(self, count: int) -> list[Any]:
        """The last `count` values of the stack."""
        floor = len(self.stack) - count
        if floor < (self.marks[-1] if self.marks else 0):
            raise IndexError("the stack is empty")
        values = self.stack[floor:]
        del self.stack[floor:]
        return values

    def marked(self) -> list[Any]:
        """The values after the last mark."""
        begin = self.marks.pop()
        values = self.stack[begin:]
        del self.stack[begin:]
        return values

    def extend(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError("only a list can be extended")
        self.stack[-1].extend(values)

    def update(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict) or len(values) % 2:
            raise TypeError("only a dict has items")
        self.stack[-1].update(zip(values[::2], values[1::2]))

    def look_up(self, name: str) -> None:
        """Puts what stands for "module name" on the stack."""
        if name not in self.known:
            allowed = ", ".join(sorted({known.replace(" ", ".") for known in self.known}))
            raise FileError(f"the file needs {name.replace(' ', '.', 1)[:200]}, which weights have "
                            f"no use for; it was not run. Allowed: {allowed}")
        self.stack.append(self.known[name])

    def call(self) -> None:
        function, arguments = self.take(2)
        if not callable(function) or not isinstance(arguments, tuple):
            raise TypeError("this cannot be called")
        self.stack.append(function(*arguments))

    def build(self) -> None:
        (state,) = self.take(1)
        if not isinstance(self.stack[-1], Built):
            raise TypeError("this has no state")
        self.stack[-1].build(state)


ACTIONS: dict[str, Callable[[_Machine], None]] = {
    "TUPLE": lambda machine: machine.stack.append(tuple(machine.marked())),
    "APPEND": lambda machine: machine.extend(machine.take(1)),
    "APPENDS": lambda machine: machine.extend(machine.marked()),
    "SETITEM": lambda machine: machine.update(machine.take(2)),
    "SETITEMS": lambda machine: machine.update(machine.marked()),
    "STACK_GLOBAL": lambda machine: machine.look_up(" ".join(machine.take(2))),
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": lambda machine: machine.stack.append(machine.persistent(*machine.take(1))),
}
