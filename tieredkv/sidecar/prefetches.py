"""Prefixes that are loaded before their request comes, because somebody who routes requests said so.

To the brain they are requests of an engine of our own, which needs nothing of what it asked for once that
is there: from then on the policy decides what stays.
"""

from itertools import count
from typing import Final

from tieredkv.brain.values import Progress
from tieredkv.manager import TierManager
from tieredkv.types import EngineId, RequestId

PREFETCHER: Final = EngineId("")
"""Engines have names of at least one character."""


class Prefetches:
    """Those of one pool. Owned by the loop's thread."""

    def __init__(self, manager: TierManager, strides: tuple[int, ...]) -> None:
        self._manager = manager
        self._strides = strides
        self._numbers = count(1)
        manager.attach(PREFETCHER)

    def begin(self, session: str, tenant: str) -> int | None:
        """Load what the session used last; how many chunks will come, None when that is not known (any more)."""
        chain = self._manager.chain(session, tenant=tenant)
        if not chain:
            return None
        request = RequestId(str(next(self._numbers)))
        # Nobody uses the chain yet: the policy must not learn of an access.
        found = self._manager.arrive(
            PREFETCHER, request, chain, strides=self._strides, tokens=0, tenant=tenant, hints={}, again=True
        )
        if not found.coming:
            self._manager.release(PREFETCHER, request)
            return 0
        wanted = sum(found.coming // stride for stride in self._strides)
        return wanted - sum(int((slots >= 0).sum()) for slots in found.slots)

    def take(self, progress: Progress) -> bool:
        """Whether this is news of a prefetch, and not for an engine."""
        if progress.engine != PREFETCHER:
            return False
        if progress.over:
            self._manager.release(PREFETCHER, progress.request)
        return True
