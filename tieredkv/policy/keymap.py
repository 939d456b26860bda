"""A dictionary by key that never stalls: many small ones instead of a large one.

A dict rehashes all of itself when it grows, and again and again when keys come and go: with a million
keys that is a stall of 40 ms and more, in the middle of a request's answer. Keys are hashes, so their
last byte spreads them evenly.
"""

from collections.abc import Iterable, Iterator
from typing import Final, Generic, TypeVar

from tieredkv.types import Key

_SHARDS: Final = 64
SHARD_MASK: Final = _SHARDS - 1

Value = TypeVar("Value")


class KeyMap(Generic[Value]):
    """Key -> value. Keys are not empty.

    What is known of `key` is in `shards[key[-1] & SHARD_MASK]`: for who cannot afford a call per key.
    """

    __slots__ = ("shards",)

    def __init__(self) -> None:
        self.shards: tuple[dict[Key, Value], ...] = tuple({} for _ in range(_SHARDS))

    def get(self, key: Key) -> Value | None:
        """The value of `key`, if it has one (the empty key never has)."""
        return self.shards[key[-1] & SHARD_MASK].get(key) if key else None

    def __getitem__(self, key: Key) -> Value:
        return self.shards[key[-1] & SHARD_MASK][key]

    def __contains__(self, key: Key) -> bool:
        return bool(key) and key in self.shards[key[-1] & SHARD_MASK]

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def none_of(self, keys: Iterable[Key]) -> bool:
        """Whether none of `keys` has a value."""
        return not self.known(keys)

    def known(self, keys: Iterable[Key]) -> set[Key]:
        """Those of `keys` that have a value; empty ones never have."""
        shards = self.shards
        return {key for key in keys if key and key in shards[key[-1] & SHARD_MASK]}

    def update(self, keys: Iterable[Key], values: Iterable[Value]) -> None:
        """Each of `keys` has its value from now on."""
        shards = self.shards
        for key, value in zip(keys, values, strict=True):
            shards[key[-1] & SHARD_MASK][key] = value

    def assign(self, keys: Iterable[Key], value: Value) -> None:
        """All `keys` have this value from now on."""
        shards = self.shards
        for key in keys:
            shards[key[-1] & SHARD_MASK][key] = value

    def discard(self, keys: Iterable[Key]) -> None:
        """`keys`, which must be there, have no value any more."""
        shards = self.shards
        for key in keys:
            del shards[key[-1] & SHARD_MASK][key]

    def take(self, keys: Iterable[Key]) -> list[Value | None]:
        """What each of `keys` had for a value; it has none any more."""
        shards = self.shards
        return [shards[key[-1] & SHARD_MASK].pop(key, None) for key in keys]

    def first_known(self, keys: list[Key], start: int) -> int:
        """Index of the first of `keys[start:]` that has a value; their number if none has."""
        shards = self.shards
        for at in range(start, len(keys)):
            key = keys[at]
            if key in shards[key[-1] & SHARD_MASK]:
                return at
        return len(keys)

    def items(self) -> Iterator[tuple[Key, Value]]:
        """All keys and their values, in an order that the calls determine."""
        for shard in self.shards:
            yield from shard.items()

    def values(self) -> Iterator[Value]:
        """All values, once for each key."""
        for shard in self.shards:
            yield from shard.values()

    def clear(self) -> None:
        """Forget all."""
        for shard in self.shards:
            shard.clear()
