"""What an eviction policy is: keys in, keys out. It never sees slots, engines or bytes.

A policy tracks the *resident* positions of all prefix chains. Keys are chained: a key is worthless
without its prefix, so within one chain the tail must go before the head, and a key is never evicted
while a child of it is resident. The caller guarantees that parents form a forest (no cycles).

All calls come from the one thread that owns the manager. Times are seconds of the manager's clock and
never go back.
"""

from collections.abc import Container, Sequence
from typing import Protocol

from tieredkv.policy.hints import NO_HINTS, UseHints
from tieredkv.types import Key


class EvictionPolicy(Protocol):
    """Order in which resident positions leave."""

    def access(self, chain: Sequence[Key], now_s: float, hints: UseHints = NO_HINTS) -> None:
        """A request used `chain` (head first, all of its positions, resident or not).

        Called once per arrival, with what the GPU served included: this is the reference stream.
        `hints` is what the application says of the future; a policy may ignore it, and must not
        trust it.
        """
        ...

    def insert(self, keys: Sequence[Key], parents: Sequence[Key], now_s: float) -> None:
        """`keys` became resident, heads first; `parents[i]` precedes `keys[i]` in its chain.

        A parent is empty at the start of a chain, and need not be resident. Of two keys of one call
        the earlier is worth at least as much. A key that is resident already keeps its parent and is
        refreshed. Resident ancestors of all keys are refreshed too, so that no head is older than
        its tail.
        """
        ...

    def evict(self, count: int, protected: Container[Key], now_s: float) -> list[Key]:
        """Remove up to `count` positions, in this order, and return them.

        Fewer come back only when no more may leave: a key in `protected` stays, and so does a key
        with a resident child (one that is evicted by the same call is no longer resident). What is
        not returned is untouched, its place in the order included.
        """
        ...

    def advise(self, key: Key, hints: UseHints, now_s: float) -> None:
        """The application says something of the chain that ended in `key` when it was used last."""
        ...

    def maintain(self, now_s: float) -> None:
        """A good moment for work that no request should wait for. Called often; usually a no-op."""
        ...

    def remove(self, key: Key) -> None:
        """Forget a resident key that is gone for another reason; children of it may remain."""
        ...

    def clear(self) -> None:
        """Forget everything."""
        ...

    def __contains__(self, key: Key) -> bool: ...

    def __len__(self) -> int:
        """Number of resident positions."""
        ...

    def check(self) -> None:
        """Assert every invariant of the policy's own state. O(n); for tests."""
        ...


class PlainPolicy:
    """For policies that take no advice and need no maintenance."""

    def advise(self, key: Key, hints: UseHints, now_s: float) -> None:
        """See EvictionPolicy: ignored."""

    def maintain(self, now_s: float) -> None:
        """See EvictionPolicy: nothing to do."""
