"""The operations of a pickle, each of them bounded: what is made is linear in the bytes that are read.

Python's own unpickler compares and hashes whatever a file puts in, writes into whatever is at hand, and reserves what a
number asks for. Here keys are plain, only containers are written into, and state of other programs' objects is dropped.
"""

from __future__ import annotations

import collections
import math
import pickle
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from sightline.limits import limits, remedy

_DEEPEST_KEY = 16
"""Parts of a tuple that is a key; one of tuples of tuples would be hashed for ever."""
_LARGEST_STORAGE = 1 << 48
"""Elements; torch compares with the bytes that there are."""
_PLAIN = (str, bytes, float, bool, type(None))

_Slow: Any = pickle._Unpickler
"""The one written in Python, whose operations can be replaced."""


class TooLarge(Exception):
    """The pickle has more bytes, those of tensors apart, than the limit allows."""

    def __init__(self, size: int) -> None:
        most = f"{limits().pickle_megabytes:g} MB"
        super().__init__(
            f"its pickle has more than {most} beside its tensors; save it anew without what is not needed, "
            + remedy("pickle_megabytes", math.ceil(size / 1e6))
        )


class Foreign:
    """Stands for an object of another program's class: takes everything, keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Foreign:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Foreign:
        return self


class BoundedUnpickler(_Slow):
    """As pickle's; UnpicklingError for what no file of weights needs."""

    dispatch: ClassVar[dict[int, Any]] = dict(_Slow.dispatch)

    def __init__(self, file: Any, **settings: Any) -> None:
        super().__init__(file, **settings)
        self._room = _size_of(file)
        self._left = limits().pickle_megabytes * 1e6
        for name in ("_file_read", "_file_readline"):
            setattr(self, name, self._counted(getattr(self, name)))

    def _counted(self, read: Callable[..., bytes]) -> Callable[..., bytes]:
        """The same, until too much is read: a byte may become a hundred in memory."""

        def counted(*size: int) -> bytes:
            data = read(*size)
            self._left -= len(data)
            if self._left < 0:
                raise TooLarge(int(2 * limits().pickle_megabytes * 1e6))
            return data

        return counted

    def _instantiate(self, kind: Any, arguments: Any) -> None:
        self.append(Foreign())

    def load_bytearray8(self) -> None:
        length = int.from_bytes(self.read(8), "little")
        if length > self._room:
            raise pickle.UnpicklingError("bytes are announced that are not there")
        self.append(bytearray(self.read(length)))

    def load_binpersid(self) -> None:
        mark = self.stack.pop()
        if type(mark) is not tuple or mark[:1] != ("storage",) or len(mark) not in (5, 6):
            raise pickle.UnpicklingError("it names something that is no storage")
        _, _, key, place, length, *view = mark
        # Before torch 1.6, when marks had six parts, the elements followed in the same file.
        largest = self._room if view else _LARGEST_STORAGE
        sound = type(length) is int and 0 <= length <= largest and type(place) is str
        if not sound or any(each is not None for each in view):
            raise pickle.UnpicklingError("it names a storage that cannot be")
        _refuse_keys([key])
        self.append(self.persistent_load(mark))

    def load_setitem(self) -> None:
        value = self.stack.pop()
        self._set([self.stack.pop(), value])

    def load_setitems(self) -> None:
        self._set(self.pop_mark())

    def _set(self, items: list[Any]) -> None:
        into = self.stack[-1]
        if isinstance(into, dict):
            _refuse_keys(items[::2])
            into.update(zip(items[::2], items[1::2], strict=True))
        else:
            _refuse_all_but_foreign(into)

    def load_dict(self) -> None:
        items = self.pop_mark()
        _refuse_keys(items[::2])
        self.append(dict(zip(items[::2], items[1::2], strict=True)))

    def load_append(self) -> None:
        self._extend([self.stack.pop()])

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        into = self.stack[-1]
        if type(into) is list:
            into.extend(items)
        else:
            _refuse_all_but_foreign(into)

    def load_additems(self) -> None:
        items, into = self.pop_mark(), self.stack[-1]
        if type(into) is set:
            _refuse_keys(items)
            into.update(items)
        else:
            _refuse_all_but_foreign(into)

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        _refuse_keys(items)
        self.append(frozenset(items))

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if type(arguments) is not tuple:
            raise pickle.UnpicklingError("a call without arguments")
        if function is set:
            _refuse_keys(*arguments)
        elif function is collections.OrderedDict:
            for items in arguments:
                _refuse_keys(items if isinstance(items, dict) else (key for key, _ in items))
        self.stack[-1] = function(*arguments)

    def load_build(self) -> None:
        self.stack.pop()

    for _code, _operation in (
        *((pickle.BYTEARRAY8, load_bytearray8), (pickle.BINPERSID, load_binpersid), (pickle.SETITEM, load_setitem)),
        *((pickle.SETITEMS, load_setitems), (pickle.DICT, load_dict), (pickle.APPEND, load_append)),
        *((pickle.APPENDS, load_appends), (pickle.ADDITEMS, load_additems), (pickle.FROZENSET, load_frozenset)),
        *((pickle.REDUCE, load_reduce), (pickle.BUILD, load_build)),
    ):
        dispatch[_code[0]] = _operation


def _refuse_keys(keys: Iterable[Any]) -> None:
    for key in keys:
        parts = key if type(key) is tuple and len(key) <= _DEEPEST_KEY else (key,)
        for part in parts:
            # Larger numbers are all one where they are hashed.
            if not isinstance(part, (*_PLAIN, Foreign)) and not (type(part) is int and abs(part) < 1 << 61):
                raise pickle.UnpicklingError("a key that is no text and no number")


def _refuse_all_but_foreign(into: object) -> None:
    if not isinstance(into, Foreign):
        raise pickle.UnpicklingError("something is written into what holds nothing")


def _size_of(file: Any) -> int:
    here = file.tell()
    end: int = file.seek(0, 2)
    file.seek(here)
    return end
