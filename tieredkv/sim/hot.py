"""The hot tier in front: the engine's own KV cache as vLLM keeps it, blocks in the order of their last use."""

from tieredkv.policy.lru import LRU
from tieredkv.types import Key


class HotTier:
    """`blocks` of GPU memory. The deepest block of a request is the oldest, as vLLM frees them."""

    def __init__(self, blocks: int) -> None:
        assert blocks >= 1
        self.blocks = blocks
        self._lru = LRU(blocks)

    def prefix(self, keys: list[Key]) -> int:
        """How many blocks at the head of `keys` are there. A parent never leaves before its child."""
        low, high = 0, len(keys)
        while low < high:
            middle = (low + high) // 2
            if keys[middle] in self._lru:
                low = middle + 1
            else:
                high = middle
        return low

    def use(self, keys: list[Key]) -> None:
        """A request has all of `keys` in the cache and is done: of one that is longer than it the head stays."""
        keys = keys[: self.blocks]
        here = self.prefix(keys)
        self._lru.access(keys[:here], 0.0)
        new = keys[here:]
        if new:
            missing = len(self._lru) + len(new) - self.blocks
            self._lru.evict(missing, set(keys), 0.0)
            self._lru.insert(new, [keys[here - 1] if here else Key(b""), *new[:-1]], 0.0)
