"""Pickles from elsewhere, read without running anything: what a file may name is a table, and so is what it may do."""

import io
import pickle
import struct
from collections.abc import Mapping
from typing import Any, ClassVar

_STACK = "PROTO FRAME STOP MARK POP POP_MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET"
_VALUES = "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING"
_TEXTS = "BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8"
_CONTAINERS = "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT"
_OBJECTS = "GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD"


class Foreign(pickle.UnpicklingError):
    """A pickle names what is not in its reader's table; the text is that name."""


class Inert:
    """Stands in a table for a class: holds what its pickle says, and does nothing.

    Attributes:
        given: what it was called with.
        state: what its pickle gave it as its state; None where it gave none.
    """

    given: tuple
    state: Any

    def __new__(cls, *given: Any) -> Any:  # a subclass may make something else of what is given
        made = super().__new__(cls)
        made.given, made.state = given, None
        return made

    # Also what keeps a pickle from setting attributes of the class itself.
    def __setstate__(self, state: Any) -> None:
        self.state = state


class TableUnpickler(pickle._Unpickler):
    """Unpickles bytes in which nothing but the names of a table may be called.

    Python's own unpickler and not the one in C, which makes room for as many objects as a file of ten bytes says that
    it has. Keys of a dict are numbers, strings and `Inert`s: to hash a deep tuple would overflow the stack.

    Args:
        table: (module, name) as the file spells them -> what to take for it; a subclass of `Inert`, or a type of
            Python's own.
        encoding: of Python 2's strings.
    """

    dispatch: ClassVar = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]
        for name in f"{_STACK} {_VALUES} {_TEXTS} {_CONTAINERS} {_OBJECTS}".split()
    }

    def __init__(self, data: bytes, table: Mapping[tuple[str, str], Any], *, encoding: str = "ASCII") -> None:
        super().__init__(io.BytesIO(data), encoding=encoding)
        self._table = table

    def find_class(self, module: str, name: str) -> Any:
        """Looks in the table; nothing is imported."""
        if (module, name) not in self._table:
            raise Foreign(f"{module}.{name}")
        return self._table[module, name]

    def _fill(self, held: Any, items: list[Any]) -> None:
        keys = items[::2]
        if not isinstance(held, dict) or not all(isinstance(key, int | str | Inert) for key in keys):
            raise pickle.UnpicklingError("a dict has keys that are neither numbers nor strings")
        held.update(zip(keys, items[1::2], strict=True))

    def _load_setitem(self) -> None:
        items = [self.stack.pop(), self.stack.pop()][::-1]
        self._fill(self.stack[-1], items)

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        self._fill(self.stack[-1], items)

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._fill(self.stack[-1], items)

    def _load_bytearray(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))  # the base class makes room before it looks what is there

    dispatch[pickle.SETITEM[0]] = _load_setitem
    dispatch[pickle.SETITEMS[0]] = _load_setitems
    dispatch[pickle.DICT[0]] = _load_dict
    dispatch[pickle.BYTEARRAY8[0]] = _load_bytearray
