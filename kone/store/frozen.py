"""Cached objects that defend themselves: under pytest they raise when somebody changes what is shared (the mutation
detector).

In production the store hands out plain dicts; these cost a copy of every object.
"""

from __future__ import annotations

from typing import Any, NoReturn

from kone.apimachinery.objects import Object
from kone.store.store import Entry


def _refuse(self: object, *_args: object, **_kwargs: object) -> NoReturn:
    raise TypeError("a stored object is read-only; copy what you change (replace_in, deep_copy)")


class FrozenDict(dict[str, Any]):
    """A dict that cannot be changed; copies of it are plain dicts."""

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def __copy__(self) -> dict[str, Any]:
        return dict(self)

    def __deepcopy__(self, _memo: object) -> dict[str, Any]:
        return {key: thaw(value) for key, value in self.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (thaw(self),)


class FrozenList(list[Any]):
    """A list that cannot be changed; copies of it are plain lists."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = extend = insert = pop = remove = clear = sort = reverse = _refuse

    def copy(self) -> list[Any]:
        return list(self)

    def __copy__(self) -> list[Any]:
        return list(self)

    def __deepcopy__(self, _memo: object) -> list[Any]:
        return [thaw(value) for value in self]

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (thaw(self),)


def freeze(value: Any) -> Any:
    """The same JSON data, read-only all the way down; what is frozen already is not copied again."""
    if isinstance(value, FrozenDict | FrozenList):
        return value
    if isinstance(value, dict):
        return FrozenDict((key, freeze(item)) for key, item in value.items())
    if isinstance(value, list):
        return FrozenList(freeze(item) for item in value)
    return value


def thaw(value: Any) -> Any:
    """The same JSON data in plain dicts and lists that share nothing with it."""
    if isinstance(value, dict):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, list):
        return [thaw(item) for item in value]
    return value


class ProtectedEntry(Entry):
    """An Entry whose object raises TypeError when somebody changes it."""

    __slots__ = ()

    def __init__(self, key: str, revision: int, encoded: bytes, obj: Object | None = None) -> None:
        super().__init__(key, revision, encoded, None if obj is None else freeze(obj))

    def _decode(self) -> Object:
        frozen: Object = freeze(super()._decode())
        return frozen
